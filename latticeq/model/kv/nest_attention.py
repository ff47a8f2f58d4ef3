"""Attention of one token that reads keys and values as Voronoi codewords, decoded in registers.

Sixteen positions are the lanes, see `latticeq.model.kv.nest_kernels`. With v the doubled points
of a block b, halves of scales β and norms, and p what softmax makes of the scores,

    scores[h, s] = norm_s · Σ_b β_sb · Σ_i q[h, 8b + i] v_s[8b + i]
    mixed[h, i]  = Σ_s (p[h, s] · norm_s · β_sb) v_s[i]

A word is decoded once for all query heads that share the kv head. Positions are taken in chunks,
each of which a thread finishes by itself: its largest score, its sum of exponentials and its mix.
Chunks are joined afterwards, scaled to one largest score (Milakov and Gimelshein, *Online
normalizer calculation for softmax*, arXiv 1805.02867).
"""

from __future__ import annotations

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.linear.nest_kernels import scale_index_at, table_rows
from latticeq.model.attention_one import join
from latticeq.model.kernels import exponentiate_row
from latticeq.model.kv.basis import from_basis_row, to_basis_row
from latticeq.model.kv.nest_kernels import LANES, decoded_lanes, load_norms
from latticeq.simd import (
    coordinate,
    filled,
    fused_multiply_add,
    load,
    load_blocks,
    load_ints_at,
    lookup,
    store,
    total,
)

__all__ = ["attend_one"]

CHUNK = 128
"""Positions of one task: fixed, so that results do not depend on the number of threads."""


@kernel(parallel=True)
def attend_one(q, bases, codes, plan, tiles, seen, out):  # type: ignore[no-untyped-def]
    """Let the queries of one token attend to every position of a layer.

    Parameters
    ----------
    q : (H, K) float32
    bases : tuple
        Basis and turn of queries, basis of outputs and the turn back: `latticeq.model.kv.basis`.
    codes : tuple
        The code of keys and that of values, as `decode_head` takes them.
    plan : (pages, 6) int64
    tiles : int
        Of a page.
    seen : int
        Positions, the token's own included.
    out : (H, K) float32, output
    """
    query_basis, turn, output_basis, back = bases
    key_code, value_code = codes  # a parallel region takes no nested tuple
    heads, width = q.shape
    kv_heads = query_basis.shape[1]
    shared = heads // kv_heads
    chunks = -(-seen // CHUNK)
    turned = np.empty_like(q)
    for h in range(heads):
        to_basis_row(q[h], query_basis, h // shared, turn, turned[h])
    mixed = np.empty((kv_heads, chunks, shared, width), np.float32)
    sums = np.empty((kv_heads, chunks, shared, 2), np.float32)
    for task in prange(kv_heads * chunks):
        g, chunk = task // chunks, task % chunks
        mine = turned[g * shared : (g + 1) * shared]
        count = min(CHUNK, seen - chunk * CHUNK)
        first_tile = chunk * (CHUNK // LANES)
        page, tile = first_tile // tiles, g * tiles + first_tile % tiles
        weights = np.empty((shared, CHUNK), np.float32)
        _score(mine, key_code, plan[page], tile, count, weights)
        _exponentiate(weights, count, width, sums[g, chunk])
        _mix(weights, value_code, plan[page], tile, count, mixed[g, chunk])
    joined = np.empty(width, np.float32)
    for h in range(heads):
        g = h // shared
        join(mixed[g, :, h % shared], sums[g, :, h % shared], joined)
        from_basis_row(joined, output_basis, g, back, out[h])


@kernel
def _exponentiate(weights, count, width, sums):  # type: ignore[no-untyped-def]
    """Exponentiate scores, (H/G, CHUNK); sums, (H/G, 2), are the largest score and the sum."""
    scale = np.float32(1 / np.sqrt(width))
    for h in range(len(weights)):
        sums[h, 0], sums[h, 1] = exponentiate_row(weights[h, :count], scale)
        weights[h, count:] = 0


@kernel
def _score(q, code, addresses, tile, count, scores):  # type: ignore[no-untyped-def]
    """Set scores, (H/G, CHUNK), to the products of queries with keys, in whole tiles."""
    nesting, index_bits, betas, tables = code
    blocks = q.shape[1] // 8
    words = addresses[0] + 64 * blocks * tile
    indices = addresses[1] + 2 * index_bits * blocks * tile
    norms = np.empty(CHUNK, np.float32)
    load_norms(addresses[2] + 2 * LANES * tile, count, norms)
    table, byte_tables = load(betas, 0), table_rows(tables)
    zero = filled(np.float32(0), table)
    for at in range(0, count, LANES):
        for h in range(q.shape[0]):
            store(scores, h * CHUNK + at, zero)
        for b in range(blocks):
            point = decoded_lanes(load_ints_at(words), nesting, byte_tables)
            beta = lookup(table, scale_index_at(indices, index_bits, zero))
            for h in range(q.shape[0]):
                dot = _dot(q[h, 8 * b : 8 * b + 8], point)
                sum_so_far = load(scores, h * CHUNK + at)
                store(scores, h * CHUNK + at, fused_multiply_add(beta, dot, sum_so_far))
            words += 64
            indices += 2 * index_bits
        for h in range(q.shape[0]):
            store(scores, h * CHUNK + at, load(scores, h * CHUNK + at) * load(norms, at))


@kernel(inline=True)
def _dot(x, point):  # type: ignore[no-untyped-def]
    """Return the product of eight numbers with eight coordinates, in two chains of sums."""
    c0, c1 = coordinate(point, 0), coordinate(point, 1)
    t0, t1 = c0 * x[0], c1 * x[1]
    t0 = fused_multiply_add(filled(x[2], t0), coordinate(point, 2), t0)
    t1 = fused_multiply_add(filled(x[3], t0), coordinate(point, 3), t1)
    t0 = fused_multiply_add(filled(x[4], t0), coordinate(point, 4), t0)
    t1 = fused_multiply_add(filled(x[5], t0), coordinate(point, 5), t1)
    t0 = fused_multiply_add(filled(x[6], t0), coordinate(point, 6), t0)
    t1 = fused_multiply_add(filled(x[7], t0), coordinate(point, 7), t1)
    return t0 + t1


@kernel
def _mix(weights, code, addresses, tile, count, mixed):  # type: ignore[no-untyped-def]
    """Set mixed, (H/G, K), to the sum of values by weights, (H/G, CHUNK), which are overwritten."""
    nesting, index_bits, betas, tables = code
    shared, blocks = weights.shape[0], mixed.shape[1] // 8
    words = addresses[3] + 64 * blocks * tile
    indices = addresses[4] + 2 * index_bits * blocks * tile
    norms = np.empty(CHUNK, np.float32)
    load_norms(addresses[5] + 2 * LANES * tile, count, norms)
    table, byte_tables = load(betas, 0), table_rows(tables)
    for h in range(shared):
        for at in range(0, CHUNK, LANES):
            store(weights, h * CHUNK + at, load(weights, h * CHUNK + at) * load(norms, at))
    sums = np.empty((shared, 8, LANES), np.float32)
    halves = np.empty(LANES, np.float32)
    for b in range(blocks):
        sums[:] = 0
        for step in range(-(-count // LANES)):
            spot = step * blocks + b
            point = decoded_lanes(load_ints_at(words + 64 * spot), nesting, byte_tables)
            beta = lookup(table, scale_index_at(indices + 2 * index_bits * spot, index_bits, table))
            for h in range(shared):
                _add(load(weights, h * CHUNK + LANES * step) * beta, point, sums, 8 * LANES * h)
        for h in range(shared):
            # Each coordinate's sixteen sums lie in a row, as two blocks of eight.
            store(halves, 0, total(load_blocks(sums, 8 * LANES * h)))
            for i in range(8):
                mixed[h, 8 * b + i] = halves[2 * i] + halves[2 * i + 1]


@kernel(inline=True)
def _add(weight, point, sums, at):  # type: ignore[no-untyped-def]
    """Add weighted coordinates to eight rows of sixteen sums."""
    store(sums, at, fused_multiply_add(weight, coordinate(point, 0), load(sums, at)))
    store(sums, at + 16, fused_multiply_add(weight, coordinate(point, 1), load(sums, at + 16)))
    store(sums, at + 32, fused_multiply_add(weight, coordinate(point, 2), load(sums, at + 32)))
    store(sums, at + 48, fused_multiply_add(weight, coordinate(point, 3), load(sums, at + 48)))
    store(sums, at + 64, fused_multiply_add(weight, coordinate(point, 4), load(sums, at + 64)))
    store(sums, at + 80, fused_multiply_add(weight, coordinate(point, 5), load(sums, at + 80)))
    store(sums, at + 96, fused_multiply_add(weight, coordinate(point, 6), load(sums, at + 96)))
    store(sums, at + 112, fused_multiply_add(weight, coordinate(point, 7), load(sums, at + 112)))
