"""Attention of one token over a cache of floats, and what puts tokens into one.

The layout is that of `latticeq.model.attention`: here sixteen positions are the lanes of scores,
and sixteen coordinates those of values. Query heads that share a kv head go together, up to four,
so that a number of the cache is loaded, and widened from float16, once for them; how many is known
when compiling, from the length of a tuple.

Positions are taken in chunks of a page. Each is finished by itself: its largest score, its sum of
exponentials and its mix of values; `join` then scales chunks to one largest score, in their order.
So results do not depend on the number of threads. Short contexts take no parallel region, which
would cost more than their work.
"""

from __future__ import annotations

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.model.attention import TILE
from latticeq.model.kernels import exp, exponentiate_row
from latticeq.simd import (
    filled_rows,
    fused_multiply_add,
    load,
    load_blocks,
    load_numbers_at,
    prefetch_at,
    put_number_at,
    spread_at,
    store_numbers_at,
    store_strided,
)

__all__ = ["CHUNK", "append_many", "append_one", "attend_one", "join", "together"]

CHUNK = 256
"""Positions of a chunk, and of a page of a longer cache."""

_ALONE = 1536
"""Positions, over all kv heads, up to which one thread does them all."""


@kernel(parallel=True)
def attend_one(q, plan, like, page, kv_heads, seen, heads, out):  # type: ignore[no-untyped-def]
    """Let the queries of one token attend to every position of a layer.

    Parameters
    ----------
    q : (H, K) float32
        Rotated; K is a multiple of 16.
    plan : (pages, 2) int64
        Addresses of the layer's keys and values in each page.
    like : (n,) float32 or uint16
        Its dtype is that of the cache, uint16 for float16.
    page : int
        Positions of a page: `CHUNK`, or fewer if there is only one.
    kv_heads : int
        G.
    seen : int
        Positions, the token's own included.
    heads : tuple
        `together` of H / G.
    out : (H, K) float32, output
    """
    shared, width = len(q) // kv_heads, q.shape[1]
    n, chunks = -(-shared // len(heads)) * len(heads), -(-seen // CHUNK)
    asked = q.reshape(kv_heads, shared, width)
    if n > shared:  # heads that there are not ask with zeros
        asked = np.zeros((kv_heads, n, width), np.float32)
        asked[:, :shared] = q.reshape(kv_heads, shared, width)
    mixed = np.empty((kv_heads, chunks, n, width), np.float32)
    sums = np.empty((kv_heads, chunks, n, 2), np.float32)
    if kv_heads * seen <= _ALONE:
        for task in range(kv_heads * chunks):
            _attend_chunk(np.int64(task), asked, plan, like, page, seen, heads, mixed, sums)
    else:
        for task in prange(kv_heads * chunks):
            _attend_chunk(np.int64(task), asked, plan, like, page, seen, heads, mixed, sums)
    for h in range(len(q)):
        join(mixed[h // shared, :, h % shared], sums[h // shared, :, h % shared], out[h])


def together(shared: int) -> tuple[int, ...]:
    """Return as many entries as query heads of one kv head go together: even shares, at most 4."""
    groups = -(-shared // 4)
    return (0,) * -(-shared // groups)


@kernel
def _attend_chunk(task, asked, plan, like, page, seen, heads, mixed, sums):  # type: ignore[no-untyped-def]
    """Do one task: a chunk of positions of one kv head."""
    _, chunks, n, width = mixed.shape
    g, chunk = task // chunks, task % chunks
    count, offset = min(CHUNK, seen - chunk * CHUNK), g * page * width * like.itemsize
    keys, values = plan[chunk, 0] + offset, plan[chunk, 1] + offset
    further = plan[min(chunk + 1, chunks - 1), 0] + offset
    weights = np.empty((len(heads), CHUNK), np.float32)
    for h in range(0, n, len(heads)):
        mine = slice(h, h + len(heads))
        mixes, parts = mixed[g, chunk, mine], sums[g, chunk, mine]
        _score(asked[g, mine], keys, like, count, values - keys, heads, weights)
        _mix(weights, values, like, count, further - values, heads, parts, mixes)


@kernel(inline=True)
def _score(q, keys, like, count, ahead, heads, weights):  # type: ignore[no-untyped-def]
    """Set weights, (heads, CHUNK), to the products of queries with keys."""
    zero = filled_rows(np.float32(0), heads)
    width, row = q.shape[1], TILE * like.itemsize
    quarter = row // 4
    address = keys
    for s in range(0, count, TILE):
        t0, t1, t2, t3 = zero, zero, zero, zero
        number = np.int64(q.ctypes.data)
        for _ in range(width):
            x = spread_at(number, 4 * width, zero)
            t0 = fused_multiply_add(x, load_numbers_at(address, like), t0)
            t1 = fused_multiply_add(x, load_numbers_at(address + quarter, like), t1)
            t2 = fused_multiply_add(x, load_numbers_at(address + 2 * quarter, like), t2)
            t3 = fused_multiply_add(x, load_numbers_at(address + 3 * quarter, like), t3)
            prefetch_at(address + ahead)
            prefetch_at(address + ahead + row // 2)
            number += 4
            address += row
        store_strided(weights, s, CHUNK, t0)
        store_strided(weights, s + 16, CHUNK, t1)
        store_strided(weights, s + 32, CHUNK, t2)
        store_strided(weights, s + 48, CHUNK, t3)


@kernel(inline=True)
def _mix(weights, values, like, count, ahead, heads, sums, mixed):  # type: ignore[no-untyped-def]
    """Turn scores to weights, and mix values by them: sums (heads, 2), mixed (heads, K)."""
    zero = filled_rows(np.float32(0), heads)
    width, scale = mixed.shape[1], np.float32(1 / np.sqrt(mixed.shape[1]))
    for h in range(len(heads)):
        sums[h, 0], sums[h, 1] = exponentiate_row(weights[h, :count], scale)
    first, row, step = np.int64(weights.ctypes.data), width * like.itemsize, 16 * like.itemsize
    whole = width - width % 64
    for i in range(0, whole, 64):
        t0, t1, t2, t3 = zero, zero, zero, zero
        number, address = first, values + i * like.itemsize
        for _ in range(count):
            x = spread_at(number, 4 * CHUNK, zero)
            t0 = fused_multiply_add(x, load_numbers_at(address, like), t0)
            t1 = fused_multiply_add(x, load_numbers_at(address + step, like), t1)
            t2 = fused_multiply_add(x, load_numbers_at(address + 2 * step, like), t2)
            t3 = fused_multiply_add(x, load_numbers_at(address + 3 * step, like), t3)
            prefetch_at(address + ahead)
            prefetch_at(address + ahead + row // 2)
            number += 4
            address += row
        store_strided(mixed, i, width, t0)
        store_strided(mixed, i + 16, width, t1)
        store_strided(mixed, i + 32, width, t2)
        store_strided(mixed, i + 48, width, t3)
    for i in range(whole, width, 16):
        total = zero
        number, address = first, values + i * like.itemsize
        for _ in range(count):
            x = spread_at(number, 4 * CHUNK, zero)
            total = fused_multiply_add(x, load_numbers_at(address, like), total)
            prefetch_at(address + ahead)
            prefetch_at(address + ahead + row // 2)
            number += 4
            address += row
        store_strided(mixed, i, width, total)


@kernel
def join(mixed, sums, out):  # type: ignore[no-untyped-def]
    """Join one head's chunks: mixed (chunks, K), sums (chunks, 2), out (K,).

    A chunk's sums are its largest score, before the division by the root of K, and the sum of its
    exponentials.
    """
    chunks, width = mixed.shape
    scale = np.float32(1 / np.sqrt(width))
    largest = sums[0, 0]
    for c in range(1, chunks):
        largest = max(largest, sums[c, 0])
    out[:] = 0
    whole = np.float32(0)
    for c in range(chunks):
        share = exp(scale * (sums[c, 0] - largest))
        whole += share * sums[c, 1]
        for i in range(width):
            out[i] += share * mixed[c, i]
    for i in range(width):
        out[i] /= whole


@kernel
def append_one(k, v, plan, like, page, position):  # type: ignore[no-untyped-def]
    """Write the keys and values of one token, (G, K) each, to its position; see `attend_one`."""
    kv_heads, width = k.shape
    place, size = position % page, like.itemsize
    for g in range(kv_heads):
        keys = plan[position // page, 0] + (g * page + place // TILE * TILE) * width * size
        values = plan[position // page, 1] + (g * page + place) * width * size
        for i in range(width):
            put_number_at(keys + (i * TILE + place % TILE) * size, k[g, i], like)
            put_number_at(values + i * size, v[g, i], like)


@kernel(parallel=True)
def append_many(k, v, plan, like, page, start):  # type: ignore[no-untyped-def]
    """Write the keys and values of many tokens, (T, G, K) each, to positions from `start` on."""
    last = start + len(k)
    whole = k.shape[2] % 16 == 0
    for group in prange(start // 16, (last + 15) // 16):
        first = 16 * group
        if whole and first >= start and first + 16 <= last:
            _append_sixteen(k, v, plan, like, page, start, first)
        else:
            for position in range(max(first, start), min(first + 16, last)):
                append_one(k[position - start], v[position - start], plan, like, page, position)


@kernel
def _append_sixteen(k, v, plan, like, page, start, first):  # type: ignore[no-untyped-def]
    """Do `append_one` for sixteen positions of one tile, whose keys are transposed in registers."""
    kv_heads, width = k.shape[1:]
    place, size = first % page, like.itemsize
    rows, columns = np.empty((16, 8), np.float32), np.empty((8, 16), np.float32)
    for g in range(kv_heads):
        keys = plan[first // page, 0] + (g * page + place // TILE * TILE) * width * size
        values = plan[first // page, 1] + (g * page + place) * width * size
        for i in range(0, width, 8):
            for t in range(16):
                for j in range(8):
                    rows[t, j] = k[first - start + t, g, i + j]
            store_strided(columns, 0, 16, load_blocks(rows, 0))
            for j in range(8):
                at = keys + ((i + j) * TILE + place % TILE) * size
                store_numbers_at(at, load(columns, 16 * j), like)
        for t in range(16):
            row = v[first - start + t, g]
            for i in range(0, width, 16):
                store_numbers_at(values + (t * width + i) * size, load(row, i), like)
