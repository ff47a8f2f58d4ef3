"""Attention of one token that reads keys and values as codewords, decoded in registers.

Sixteen positions are the lanes, see `latticeq.model.kv.nest_kernels`. With v the integer points of
a block b, betas times their unit and norms, and p what softmax makes of the scores,

    scores[h, s] = norm_s · Σ_b β_sb · Σ_i q[h, 8b + i] v_s[8b + i]
    mixed[h, i]  = Σ_s (p[h, s] · norm_s · β_sb) v_s[i]

Points are bytes, so both inner sums are dot products of bytes, four a lane, once what they meet is
an integer too. Both are rounded to 256 a + b, two bytes, and the sums are exact: queries have 15
bits and a sign under one scale a head, the weights p · norm · β of a chunk 15 bits under the
largest. For the second sum the four bytes of a lane, coordinates of one position, are
first exchanged with three neighbours, so that they are four positions of one coordinate.

A word is decoded once for all query heads that share the kv head. Positions are taken in chunks,
each of which a thread finishes by itself: its largest score, its sum of exponentials and its mix.
Chunks are joined afterwards, scaled to one largest score (Milakov and Gimelshein, *Online
normalizer calculation for softmax*, arXiv 1805.02867).
"""

from __future__ import annotations

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.linear.cell_kernels import cubic_codewords, voronoi_codewords
from latticeq.model.attention_one import join
from latticeq.model.kernels import exponentiate_row
from latticeq.model.kv.basis import from_basis_row, to_basis_row
from latticeq.model.kv.nest_kernels import LANES, load_norms
from latticeq.simd import (
    broadcast,
    dot_bytes,
    dot_wide_bytes,
    filled,
    float_bits,
    fused_multiply_add,
    gather_byte,
    load,
    load_ints_at,
    lookup,
    max_lanes,
    maximum,
    prefetch_at,
    store,
    sub_bytes,
    sum_fours,
    sum_lanes,
    to_float,
    transpose_bytes,
)

__all__ = ["ATTEND"]

CHUNK = 256
"""Positions of one task: fixed, so that results do not depend on the number of threads. They are
those of a page of a longer cache (`latticeq.model.kv.coded.PAGE`), so a chunk lies in one."""

LARGEST_QUERY = np.float32(127 * 256 + 127)
LARGEST_WEIGHT = np.float32(2**15 - 1)
ROUNDING = np.float32(1.5 * 2**23)
"""From here to 2**24 float32 has the whole numbers."""

ONES = 0x01010101


@kernel
def _split_query(q, raised, operands):  # type: ignore[no-untyped-def]
    """Round one query to integers 256 a + b, and return what they are to be multiplied by.

    Parameters
    ----------
    q : (K,) float32
    raised : int
        By what the bytes of points are raised.
    operands : (K / 8, 6) int32, output
        For each block the bytes a of its even and of its odd coordinates, the bytes b of both, and
        where the dots with a and with b start.

    Returns
    -------
    float32
        NaN if `q` is not finite.
    """
    top, nothing = np.float32(0), np.float32(0)
    for i in range(q.size):
        top = max(top, abs(q[i]))
        nothing += q[i] * np.float32(0)
    is_finite = nothing == 0
    inverse = LARGEST_QUERY / top if top > 0 and is_finite else np.float32(0)
    parts = operands.view(np.int8)
    for b in range(len(operands)):
        high_sum, low_sum = np.int64(0), np.int64(0)
        for i in range(8):
            number = np.int64(np.rint(q[8 * b + i] * inverse)) if is_finite else 0
            low = ((number + 128) & 255) - 128
            high = (number - low) >> 8
            high_sum, low_sum = high_sum + high, low_sum + low
            parts[b, 4 * (i % 2) + i // 2] = high
            parts[b, 8 + 4 * (i % 2) + i // 2] = low
        operands[b, 4], operands[b, 5] = -raised * high_sum, -raised * low_sum
    return top / LARGEST_QUERY + nothing


@kernel(inline=True)
def _score(operands, scales, code, addresses, place, scores, codewords):  # type: ignore[no-untyped-def]
    """Set scores, (H/G, CHUNK), to the products of queries with keys, in whole tiles.

    `place` is the first tile of the chunk, counted over kv heads, and the positions that are seen.
    """
    nesting, _, index_bits, betas, tables = code
    first, count = place
    shared, blocks = operands.shape[:2]
    words = addresses[0] + 64 * blocks * first
    indices = addresses[1] + 2 * index_bits * blocks * first
    values, value_indices = addresses[3] - addresses[0], addresses[4] - addresses[1]
    norms = np.empty(CHUNK, np.float32)
    load_norms(addresses[2] + 2 * LANES * first, count, norms)
    table = load(betas, 0)
    for at in range(0, count, LANES):
        for h in range(shared):
            store(scores, h * CHUNK + at, filled(np.float32(0), table))
        prefetch_at(indices + value_indices)
        for b in range(blocks):
            prefetch_at(words + values)
            even, odd, index = codewords(load_ints_at(words), indices, index_bits, nesting, tables)
            beta = lookup(table, index)
            for h in range(shared):
                mine = operands[h, b]
                high = dot_bytes(broadcast(mine[4], even), even, broadcast(mine[0], even))
                high = dot_bytes(high, odd, broadcast(mine[1], even))
                low = dot_bytes(broadcast(mine[5], even), even, broadcast(mine[2], even))
                low = dot_bytes(low, odd, broadcast(mine[3], even))
                sum_so_far = load(scores, h * CHUNK + at)
                dot = to_float((high << 8) + low)
                store(scores, h * CHUNK + at, fused_multiply_add(beta, dot, sum_so_far))
            words += 64
            indices += 2 * index_bits
        for h in range(shared):
            scale = load(norms, at) * scales[h]
            store(scores, h * CHUNK + at, load(scores, h * CHUNK + at) * scale)


@kernel
def _exponentiate(weights, count, width, sums):  # type: ignore[no-untyped-def]
    """Exponentiate scores, (H/G, CHUNK); sums, (H/G, 2), are the largest score and the sum."""
    scale = np.float32(1 / np.sqrt(width))
    for h in range(len(weights)):
        sums[h, 0], sums[h, 1] = exponentiate_row(weights[h, :count], scale)
        weights[h, count:] = 0


@kernel
def _weigh(weights, address, count, unit, scales):  # type: ignore[no-untyped-def]
    """Multiply weights, (H/G, CHUNK), by norms, and scale them to what becomes integers.

    Parameters
    ----------
    weights : (H/G, CHUNK) float32
    address : int
        Of the norms of `count` positions.
    unit : float32
        The largest number that a weight is still to be multiplied by.
    scales : (H/G,) float32, output
        What the integers are worth; NaN if a weight is not finite.
    """
    norms = np.empty(CHUNK, np.float32)
    load_norms(address, count, norms)
    zero = filled(np.float32(0), load(norms, 0))
    for h in range(len(weights)):
        top, nothing = zero, zero
        for at in range(h * CHUNK, (h + 1) * CHUNK, LANES):
            weight = load(weights, at) * load(norms, at - h * CHUNK)
            store(weights, at, weight)
            top, nothing = maximum(top, weight), nothing + weight * 0
        scales[h] = max_lanes(top) * unit / LARGEST_WEIGHT + sum_lanes(nothing)
        inverse = np.float32(1) / scales[h] if scales[h] > 0 else np.float32(0)
        for at in range(h * CHUNK, (h + 1) * CHUNK, LANES):
            store(weights, at, load(weights, at) * inverse)


@kernel(inline=True)
def _mix(weights, code, addresses, place, ahead, mixed, codewords):  # type: ignore[no-untyped-def]
    """Set mixed, (H/G, K), to the sum of values by weights, (H/G, CHUNK), which are overwritten.

    `ahead` is the address of what is read next: the words of as many keys.
    """
    nesting, raised, index_bits, betas, tables = code
    first, count = place
    shared, blocks = weights.shape[0], mixed.shape[1] // 8
    words = addresses[3] + 64 * blocks * first
    indices = addresses[4] + 2 * index_bits * blocks * first
    scales = np.empty(shared, np.float32)
    _weigh(weights, addresses[5] + 2 * LANES * first, count, betas.max(), scales)
    table, steps = load(betas, 0), -(-count // LANES)
    # Zeros, as sums take steps in pairs: a last one without a partner meets nothing.
    points, units = np.zeros((CHUNK // LANES, 2, LANES), np.int32), np.zeros(CHUNK, np.float32)
    sums = np.empty((2, LANES), np.float32)
    for b in range(blocks):
        for step in range(steps):
            spot = step * blocks + b
            where = indices + 2 * index_bits * spot
            prefetch_at(ahead + 64 * spot)
            even, odd, index = codewords(
                load_ints_at(words + 64 * spot), where, index_bits, nesting, tables
            )
            low = filled(raised * ONES, even)
            # Subtracted after the exchange: the other way round LLVM takes minutes to compile it.
            store(points, 32 * step, sub_bytes(transpose_bytes(even), low))
            store(points, 32 * step + 16, sub_bytes(transpose_bytes(odd), low))
            store(units, LANES * step, lookup(table, index))
        for h in range(shared):
            _sum_block(weights, h * CHUNK, units, points, steps, scales[h], sums)
            for i in range(8):
                mixed[h, 8 * b + i] = sums[i % 2, i // 2]


@kernel(inline=True)
def _sum_block(weights, first, units, points, steps, scale, sums):  # type: ignore[no-untyped-def]
    """Sum the points of a block by a head's weights.

    Parameters
    ----------
    weights, units : float32
        The products of the head's weights, from `first` on, and units, (CHUNK,), are at most
        `LARGEST_WEIGHT`.
    points : (CHUNK / 16, 2, 16) int32
        Even and odd coordinates of sixteen positions: a lane is four positions of one of them.
    steps : int
        How many times sixteen positions there are.
    scale : float32
        What the integers are worth.
    sums : (2, 16) float32, output
        Of even and of odd coordinates, four times each.
    """
    zero = filled(0, load(points, 0))
    # Two sums in turn, since one waits five cycles for its own last step.
    a = b = (zero, zero, zero, zero)
    for step in range(0, steps, 2):
        a = _add_positions(a, weights, first, units, points, step)
        b = _add_positions(b, weights, first, units, points, step + 1)
    store(sums, 0, to_float(sum_fours((a[0] + b[0] << 8) + a[1] + b[1])) * scale)
    store(sums, 16, to_float(sum_fours((a[2] + b[2] << 8) + a[3] + b[3])) * scale)


@kernel(inline=True)
def _add_positions(so_far, weights, first, units, points, step):  # type: ignore[no-untyped-def]
    """Add the products of sixteen positions to sums of high and low bytes, even and odd ones."""
    even, odd = load(points, 32 * step), load(points, 32 * step + 16)
    # Beside this number a float32 has whole numbers as its lowest bits.
    weight, unit = load(weights, first + LANES * step), load(units, LANES * step)
    bits = float_bits(fused_multiply_add(weight, unit, filled(ROUNDING, unit)))
    high, low = gather_byte(bits, 1), gather_byte(bits, 0)
    return (
        dot_bytes(so_far[0], high, even),
        dot_wide_bytes(so_far[1], low, even),
        dot_bytes(so_far[2], high, odd),
        dot_wide_bytes(so_far[3], low, odd),
    )


@kernel(inline=True)
def _attend_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, codewords):  # type: ignore[no-untyped-def]
    """Do one task: a chunk of positions of one kv head."""
    operands, scales = queries
    key_code, value_code = codes
    chunks = mixed.shape[1]
    g, chunk = task // chunks, task % chunks
    first_tile = chunk * (CHUNK // LANES)
    addresses = plan[first_tile // tiles]
    place = (g * tiles + first_tile % tiles, min(CHUNK, seen - chunk * CHUNK))
    next_tile = min(chunk + 1, chunks - 1) * (CHUNK // LANES)
    ahead = plan[next_tile // tiles, 0] + 8 * mixed.shape[3] * (g * tiles + next_tile % tiles)
    weights = np.empty((mixed.shape[2], CHUNK), np.float32)
    _score(operands[g], scales[g], key_code, addresses, place, weights, codewords)
    _exponentiate(weights, place[1], mixed.shape[3], sums[g, chunk])
    _mix(weights, value_code, addresses, place, ahead, mixed[g, chunk], codewords)


@kernel
def _prepare(q, bases, codes, seen):  # type: ignore[no-untyped-def]
    """Turn queries, (H, K), and split them; return them with room for what chunks give.

    Returns
    -------
    operands : (G, H / G, K / 8, 6) int32
    scales : (G, H / G) float32
        See `_split_query`.
    mixed : (G, chunks, H / G, K) float32
    sums : (G, chunks, H / G, 2) float32
    """
    _, raised, _, _, _ = codes[0]
    query_basis, turn, _, _ = bases
    heads, width = q.shape
    kv_heads = query_basis.shape[1]
    shared = heads // kv_heads
    operands = np.empty((kv_heads, shared, width // 8, 6), np.int32)
    scales, turned = np.empty((kv_heads, shared), np.float32), np.empty(width, np.float32)
    for h in range(heads):
        g, mine = h // shared, h % shared
        to_basis_row(q[h], query_basis, g, turn, turned)
        scales[g, mine] = _split_query(turned, raised, operands[g, mine])
    chunks = -(-seen // CHUNK)
    mixed = np.empty((kv_heads, chunks, shared, width), np.float32)
    return operands, scales, mixed, np.empty((kv_heads, chunks, shared, 2), np.float32)


@kernel
def _finish(mixed, sums, bases, out):  # type: ignore[no-untyped-def]
    """Join the chunks of every head, and turn them back to the model's basis."""
    _, _, output_basis, back = bases
    shared, width = mixed.shape[2:]
    joined = np.empty(width, np.float32)
    for h in range(len(out)):
        g = h // shared
        join(mixed[g, :, h % shared], sums[g, :, h % shared], joined)
        from_basis_row(joined, output_basis, g, back, out[h])


@kernel
def _voronoi_chunk(task, queries, codes, plan, tiles, seen, mixed, sums):  # type: ignore[no-untyped-def]
    _attend_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, voronoi_codewords)


@kernel
def _cubic_chunk(task, queries, codes, plan, tiles, seen, mixed, sums):  # type: ignore[no-untyped-def]
    _attend_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, cubic_codewords)


@kernel(parallel=True)
def _attend_voronoi(q, bases, codes, plan, tiles, seen, out):  # type: ignore[no-untyped-def]
    operands, scales, mixed, sums = _prepare(q, bases, codes, seen)
    keys, values = codes  # a parallel region takes no nested tuple
    for task in prange(mixed.shape[0] * mixed.shape[1]):
        queries = (operands, scales)
        _voronoi_chunk(np.int64(task), queries, (keys, values), plan, tiles, seen, mixed, sums)
    _finish(mixed, sums, bases, out)


@kernel(parallel=True)
def _attend_cubic(q, bases, codes, plan, tiles, seen, out):  # type: ignore[no-untyped-def]
    operands, scales, mixed, sums = _prepare(q, bases, codes, seen)
    keys, values = codes
    for task in prange(mixed.shape[0] * mixed.shape[1]):
        queries = (operands, scales)
        _cubic_chunk(np.int64(task), queries, (keys, values), plan, tiles, seen, mixed, sums)
    _finish(mixed, sums, bases, out)


ATTEND = {"voronoi": _attend_voronoi, "cubic": _attend_cubic}
"""`latticeq.model.kv.nest_cells.CacheCell.attend_one` by the cell."""
