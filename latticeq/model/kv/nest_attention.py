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

A word is decoded once for up to four query heads that share the kv head, whose sums stay in
registers; how many go together is known when compiling, from the length of a tuple. Positions are
taken in chunks, each of which a thread finishes by itself: its largest score, its sum of
exponentials and its mix. Chunks are joined afterwards, scaled to one largest score (Milakov and
Gimelshein, *Online normalizer calculation for softmax*, arXiv 1805.02867).
"""

from __future__ import annotations

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.linear.cell_kernels import cubic_codewords, voronoi_codewords
from latticeq.model.attention_one import join
from latticeq.model.kernels import exponentiate_row
from latticeq.model.kv.basis import from_basis_row, to_basis_row
from latticeq.model.kv.nest_kernels import LANES, norms_at
from latticeq.simd import (
    dot_bytes,
    dot_wide_bytes,
    filled,
    filled_rows,
    float_bits,
    fused_multiply_add,
    gather_byte,
    lane_index,
    load,
    load_ints_at,
    load_rows,
    lookup,
    max_lanes,
    maximum,
    prefetch_at,
    select,
    spread_at,
    store,
    store_strided,
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
def _score(queries, code, addresses, place, scores, heads, codewords):  # type: ignore[no-untyped-def]
    """Set scores, (heads, CHUNK), to the products of queries with keys, in whole tiles.

    `queries` are operands, (heads, K / 8, 6), and scales, (heads,), of `_split_query`; `place` is
    the first tile of the chunk, counted over kv heads, and the positions that are seen.
    """
    operands, scales = queries
    nesting, _, index_bits, betas, tables = code
    first, count = place
    blocks = operands.shape[1]
    words = addresses[0] + 64 * blocks * first
    indices = addresses[1] + 2 * index_bits * blocks * first
    values, value_indices = addresses[3] - addresses[0], addresses[4] - addresses[1]
    table, zero = load(betas, 0), filled_rows(np.float32(0), heads)
    scale = spread_at(np.int64(scales.ctypes.data), 4, zero)
    for at in range(0, count, LANES):
        total, mine = zero, np.int64(operands.ctypes.data)
        prefetch_at(indices + value_indices)
        for _ in range(blocks):
            prefetch_at(words + values)
            even, odd, index = codewords(load_ints_at(words), indices, index_bits, nesting, tables)
            dot = to_float(_dots(mine, 24 * blocks, even, odd, float_bits(zero)))
            total = fused_multiply_add(dot, lookup(table, index), total)
            words += 64
            indices += 2 * index_bits
            mine += 24
        norm = norms_at(addresses[2] + 2 * (LANES * first + at))
        store_strided(scores, at, CHUNK, total * (norm * scale))


@kernel(inline=True)
def _dots(address, stride, even, odd, like):  # type: ignore[no-untyped-def]
    """Return the dots of a block of sixteen points with the integers of each head's query.

    The operands of heads, as `_split_query` writes them for a block, are `stride` bytes apart.
    """
    high = dot_bytes(spread_at(address + 16, stride, like), even, spread_at(address, stride, like))
    high = dot_bytes(high, odd, spread_at(address + 4, stride, like))
    low = spread_at(address + 20, stride, like)
    low = dot_bytes(low, even, spread_at(address + 8, stride, like))
    low = dot_bytes(low, odd, spread_at(address + 12, stride, like))
    return (high << 8) + low


@kernel
def _exponentiate(weights, count, width, sums):  # type: ignore[no-untyped-def]
    """Exponentiate scores, (heads, CHUNK); sums, (heads, 2), are the largest score and the sum."""
    scale = np.float32(1 / np.sqrt(width))
    for h in range(len(weights)):
        sums[h, 0], sums[h, 1] = exponentiate_row(weights[h, :count], scale)
        weights[h, count:] = 0


@kernel
def _weigh(weights, address, count, unit, scales):  # type: ignore[no-untyped-def]
    """Multiply weights, (heads, CHUNK), by norms, and scale them to what becomes integers.

    Parameters
    ----------
    weights : (heads, CHUNK) float32
    address : int
        Of the norms of `count` positions.
    unit : float32
        The largest number that a weight is still to be multiplied by.
    scales : (heads,) float32, output
        What the integers are worth; NaN if a weight is not finite.
    """
    zero = filled(np.float32(0), load(weights, 0))
    lanes = lane_index(zero)
    for h in range(len(weights)):
        top, nothing = zero, zero
        for at in range(0, count, LANES):
            # What memory held before, behind the last position, may be no number.
            norm = select(lanes < count - at, norms_at(address + 2 * at), zero)
            weight = load(weights, h * CHUNK + at) * norm
            store(weights, h * CHUNK + at, weight)
            top, nothing = maximum(top, weight), nothing + weight * 0
        scales[h] = max_lanes(top) * unit / LARGEST_WEIGHT + sum_lanes(nothing)
        inverse = np.float32(1) / scales[h] if scales[h] > 0 else np.float32(0)
        for at in range(h * CHUNK, h * CHUNK + count, LANES):
            store(weights, at, load(weights, at) * inverse)


@kernel(inline=True)
def _mix(weights, code, addresses, place, ahead, mixed, heads, codewords):  # type: ignore[no-untyped-def]
    """Set mixed, (heads, K), to the sum of values by weights, (heads, CHUNK), which change.

    `ahead` is the address of what is read next: the words of as many keys.
    """
    nesting, raised, index_bits, betas, tables = code
    first, count = place
    blocks = mixed.shape[1] // 8
    words = addresses[3] + 64 * blocks * first
    indices = addresses[4] + 2 * index_bits * blocks * first
    scales, sums = np.empty(len(heads), np.float32), np.empty((len(heads), 2, LANES), np.float32)
    _weigh(weights, addresses[5] + 2 * LANES * first, count, betas.max(), scales)
    table, zero = load(betas, 0), filled_rows(np.float32(0), heads)
    scale, none = spread_at(np.int64(scales.ctypes.data), 4, zero), float_bits(zero)
    for block in range(blocks):
        a_even, b_even, a_odd, b_odd = none, none, none, none
        for step in range(-(-count // LANES)):
            spot = step * blocks + block
            prefetch_at(ahead + 64 * spot)
            word, where = load_ints_at(words + 64 * spot), indices + 2 * index_bits * spot
            even, odd, index = codewords(word, where, index_bits, nesting, tables)
            # Subtracted after the exchange: the other way round LLVM takes minutes to compile it.
            even = sub_bytes(transpose_bytes(even), filled(raised * ONES, word))
            odd = sub_bytes(transpose_bytes(odd), filled(raised * ONES, word))
            # Beside this number a float32 has whole numbers as its lowest bits.
            weight = load_rows(weights, LANES * step, CHUNK, zero)
            number = fused_multiply_add(weight, lookup(table, index), zero + ROUNDING)
            bits = float_bits(number)
            a, b = gather_byte(bits, 1), gather_byte(bits, 0)
            a_even, b_even = dot_bytes(a_even, a, even), dot_wide_bytes(b_even, b, even)
            a_odd, b_odd = dot_bytes(a_odd, a, odd), dot_wide_bytes(b_odd, b, odd)
        store_strided(sums, 0, 2 * LANES, to_float(sum_fours((a_even << 8) + b_even)) * scale)
        store_strided(sums, LANES, 2 * LANES, to_float(sum_fours((a_odd << 8) + b_odd)) * scale)
        for h in range(len(heads)):
            for i in range(8):
                mixed[h, 8 * block + i] = sums[h, i % 2, i // 2]


@kernel(inline=True)
def _attend_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, heads, codewords):  # type: ignore[no-untyped-def]
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
    weights = np.empty((len(heads), CHUNK), np.float32)
    for h in range(0, mixed.shape[2], len(heads)):
        mine = slice(h, h + len(heads))
        asked = (operands[g, mine], scales[g, mine])
        _score(asked, key_code, addresses, place, weights, heads, codewords)
        _exponentiate(weights, place[1], mixed.shape[3], sums[g, chunk, mine])
        _mix(weights, value_code, addresses, place, ahead, mixed[g, chunk, mine], heads, codewords)


@kernel
def _prepare(q, bases, codes, seen, heads):  # type: ignore[no-untyped-def]
    """Turn queries, (H, K), and split them; return them with room for what chunks give.

    Returns
    -------
    operands : (G, n, K / 8, 6) int32
        n is H / G rounded up to whole groups of heads; those that there are not are zeros.
    scales : (G, n) float32
        See `_split_query`.
    mixed : (G, chunks, n, K) float32
    sums : (G, chunks, n, 2) float32
    """
    _, raised, _, _, _ = codes[0]
    query_basis, turn, _, _ = bases
    width, kv_heads = q.shape[1], query_basis.shape[1]
    shared = len(q) // kv_heads
    n, chunks = -(-shared // len(heads)) * len(heads), -(-seen // CHUNK)
    operands = np.zeros((kv_heads, n, width // 8, 6), np.int32)
    scales = np.zeros((kv_heads, n), np.float32)
    turned = np.empty(width, np.float32)
    for h in range(len(q)):
        g, mine = h // shared, h % shared
        to_basis_row(q[h], query_basis, g, turn, turned)
        scales[g, mine] = _split_query(turned, raised, operands[g, mine])
    mixed = np.empty((kv_heads, chunks, n, width), np.float32)
    return operands, scales, mixed, np.empty((kv_heads, chunks, n, 2), np.float32)


@kernel
def _finish(mixed, sums, bases, out):  # type: ignore[no-untyped-def]
    """Join the chunks of every head, and turn them back to the model's basis."""
    _, _, output_basis, back = bases
    shared = len(out) // len(mixed)
    joined = np.empty(mixed.shape[3], np.float32)
    for h in range(len(out)):
        g = h // shared
        join(mixed[g, :, h % shared], sums[g, :, h % shared], joined)
        from_basis_row(joined, output_basis, g, back, out[h])


@kernel
def _voronoi_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, heads):  # type: ignore[no-untyped-def]
    _attend_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, heads, voronoi_codewords)


@kernel
def _cubic_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, heads):  # type: ignore[no-untyped-def]
    _attend_chunk(task, queries, codes, plan, tiles, seen, mixed, sums, heads, cubic_codewords)


@kernel(parallel=True)
def _attend_voronoi(q, bases, codes, plan, tiles, seen, heads, out):  # type: ignore[no-untyped-def]
    operands, scales, mixed, sums = _prepare(q, bases, codes, seen, heads)
    keys, values = codes  # a parallel region takes no nested tuple
    for task in prange(mixed.shape[0] * mixed.shape[1]):
        queries = (operands, scales)
        both = (keys, values)
        _voronoi_chunk(np.int64(task), queries, both, plan, tiles, seen, mixed, sums, heads)
    _finish(mixed, sums, bases, out)


@kernel(parallel=True)
def _attend_cubic(q, bases, codes, plan, tiles, seen, heads, out):  # type: ignore[no-untyped-def]
    operands, scales, mixed, sums = _prepare(q, bases, codes, seen, heads)
    keys, values = codes
    for task in prange(mixed.shape[0] * mixed.shape[1]):
        queries = (operands, scales)
        both = (keys, values)
        _cubic_chunk(np.int64(task), queries, both, plan, tiles, seen, mixed, sums, heads)
    _finish(mixed, sums, bases, out)


ATTEND = {"voronoi": _attend_voronoi, "cubic": _attend_cubic}
"""`latticeq.model.kv.nest_cells.CacheCell.attend_one` by the cell."""
