"""Kernels that write and decode a cache of codewords: sixteen positions are the sixteen lanes.

The keys, or values, of one layer and kv head are a stream: for every tile of sixteen positions and
every block of eight coordinates, sixteen 32-bit words of digits (digit i in bits 4i to 4i + 3, lane
l the position 16 tile + l) and sixteen scale indices; and for every position a float16 norm. It is
the layout of a packed matrix whose rows are positions (`latticeq.storage.bits`), so that attention
decodes straight into registers, as a product with packed weights does
(`latticeq.model.kv.nest_attention`).

Streams lie in pages. A plan, (pages, 6) int64, holds the addresses of one layer's words, scale
indices and norms of its keys, then of its values, in every page.
"""

from __future__ import annotations

import numpy as np

from latticeq.codes.cubic import codeword_lanes as cubic_codeword_lanes
from latticeq.codes.cubic import digits_lanes as cubic_digits_lanes
from latticeq.codes.grids import half_bits, half_value
from latticeq.codes.voronoi import codeword_lanes as voronoi_codeword_lanes
from latticeq.codes.voronoi import digits_lanes as voronoi_digits_lanes
from latticeq.jit import kernel, prange
from latticeq.linear.cell_kernels import cubic_codewords, voronoi_codewords
from latticeq.model.kv.basis import to_basis_row
from latticeq.simd import (
    block,
    coordinate,
    load,
    load_blocks,
    load_ints_at,
    load_numbers_at,
    lookup,
    shift_right,
    store,
    store_blocks,
    store_strided,
    to_float,
    to_int,
)

__all__ = ["APPEND", "APPEND_MANY", "DECODE_HEAD", "LANES", "norms_at"]

LANES = 16
"""Positions of a tile."""

_HALVES = np.empty(0, np.uint16)  # its dtype says what lies at an address


@kernel
def _normalise(row, out):  # type: ignore[no-untyped-def]
    """Set out to a row over its root mean square in float16, and return the latter's bits.

    They are NaN's for a row that holds NaN or infinity, or is too large for float16.
    """
    squares = 0.0
    for i in range(row.size):
        squares += np.float64(row[i]) * np.float64(row[i])
    bits = half_bits(np.float32(np.sqrt(squares / row.size)))
    norm = half_value(bits)
    inverse = np.float32(1) / norm if norm > 0 else np.float32(0)
    for i in range(row.size):
        out[i] = row[i] * inverse if norm > 0 else np.float32(0)
    return bits


@kernel(inline=True)
def _words(digits):  # type: ignore[no-untyped-def]
    """Join eight digits of four bits, the first one lowest."""
    low = coordinate(digits, 0) | (coordinate(digits, 1) << 4)
    low = low | (coordinate(digits, 2) << 8) | (coordinate(digits, 3) << 12)
    high = (coordinate(digits, 4) << 16) | (coordinate(digits, 5) << 20)
    high = high | (coordinate(digits, 6) << 24) | (coordinate(digits, 7) << 28)
    return low | high


@kernel(inline=True)
def _voronoi_coded(x, betas, inverse, q, first_fit):  # type: ignore[no-untyped-def]
    """Return the digits of sixteen blocks and the indices of their scales."""
    point, which = voronoi_codeword_lanes(x, betas, inverse, q, first_fit)
    return voronoi_digits_lanes(to_int(point + point), q), which


@kernel(inline=True)
def _cubic_coded(x, betas, inverse, q, first_fit):  # type: ignore[no-untyped-def]
    point, which = cubic_codeword_lanes(x, betas, inverse, q, first_fit)
    return cubic_digits_lanes(point, q), which


@kernel(inline=True)
def _append(x, tokens, basis, turn, code, page, place, coded_lanes):  # type: ignore[no-untyped-def]
    """Do what `CacheCell.append_rows` does."""
    first, last = tokens
    q, width, betas, inverse, first_fit = code
    words, indices, norms = page
    kv_heads, size = x.shape[1], x.shape[2]
    blocks = size // 8
    count = (last - first) * kv_heads * blocks
    padded = -(-count // LANES) * LANES
    rows = np.zeros(padded * 8, np.float32)
    moved = np.empty(size, np.float32)
    for t in range(first, last):
        for g in range(kv_heads):
            to_basis_row(x[t, g], basis, g, turn, moved)
            at = ((t - first) * kv_heads + g) * size
            norms[g, place + t] = _normalise(moved, rows[at : at + size])
    coded = np.empty((2, padded), np.int32)
    for at in range(0, padded, LANES):
        digits, which = coded_lanes(load_blocks(rows, 8 * at), betas, inverse, q, first_fit)
        store(coded, at, _words(digits))
        store(coded, padded + at, which)
    for n in range(count):
        b, g, t = n % blocks, n // blocks % kv_heads, first + n // (blocks * kv_heads)
        tile, lane = (place + t) // LANES, (place + t) % LANES
        words[g, tile, b, lane] = coded[0, n]
        for bit in range(width):
            spot = lane * width + bit
            cleared = indices[g, tile, b, spot // 8] & (255 ^ (1 << (spot % 8)))
            indices[g, tile, b, spot // 8] = cleared | ((coded[1, n] >> bit & 1) << (spot % 8))


@kernel
def _append_voronoi(x, first, last, basis, turn, code, page, place):  # type: ignore[no-untyped-def]
    _append(x, (first, last), basis, turn, code, page, place, _voronoi_coded)


@kernel
def _append_cubic(x, first, last, basis, turn, code, page, place):  # type: ignore[no-untyped-def]
    _append(x, (first, last), basis, turn, code, page, place, _cubic_coded)


@kernel(inline=True)
def _tile_of_tokens(step, first, last, place):  # type: ignore[no-untyped-def]
    """Return which tokens lie in a tile, counted from that of the first one."""
    begin = ((place + first) // LANES + np.int64(step)) * LANES - place
    return max(first, begin), min(last, begin + LANES)


@kernel(parallel=True)
def _append_many_voronoi(x, first, last, basis, turn, code, page, place):  # type: ignore[no-untyped-def]
    for step in prange((place + last - 1) // LANES + 1 - (place + first) // LANES):
        start, end = _tile_of_tokens(step, first, last, place)
        _append_voronoi(x, start, end, basis, turn, code, page, place)


@kernel(parallel=True)
def _append_many_cubic(x, first, last, basis, turn, code, page, place):  # type: ignore[no-untyped-def]
    for step in prange((place + last - 1) // LANES + 1 - (place + first) // LANES):
        start, end = _tile_of_tokens(step, first, last, place)
        _append_cubic(x, start, end, basis, turn, code, page, place)


@kernel(inline=True)
def norms_at(address):  # type: ignore[no-untyped-def]
    """Return the sixteen float16 norms at an address in float32.

    Infinity becomes NaN: it is the norm of a row that was too large.
    """
    value = load_numbers_at(address, _HALVES)
    return value + (value - value)


@kernel(inline=True)
def _coordinates(even, odd, raised):  # type: ignore[no-untyped-def]
    """Return the eight coordinates of sixteen codewords in float32, given their raised bytes."""
    return to_float(
        block(
            even & 255,
            odd & 255,
            shift_right(even, 8) & 255,
            shift_right(odd, 8) & 255,
            shift_right(even, 16) & 255,
            shift_right(odd, 16) & 255,
            shift_right(even, 24),
            shift_right(odd, 24),
        )
        - raised
    )


@kernel(inline=True)
def _decode_tile(step, plan, kind, g, tiles, code, out, codewords):  # type: ignore[no-untyped-def]
    """Do the share of `CacheCell.decode_head` that one tile of positions is."""
    q, raised, width, betas, tables = code
    blocks = out.shape[1 + kind] // 8
    page, tile = step // tiles, g * tiles + step % tiles
    words = plan[page, 3 * kind] + 64 * blocks * tile
    indices = plan[page, 3 * kind + 1] + 2 * width * blocks * tile
    rows = np.empty((LANES, 8), np.float32)
    norm, table = norms_at(plan[page, 3 * kind + 2] + 2 * LANES * tile), load(betas, 0)
    mine, place = out[step * LANES // 64], step * LANES % 64
    for b in range(blocks):
        even, odd, index = codewords(
            load_ints_at(words + 64 * b), indices + 2 * width * b, width, q, tables
        )
        point = _coordinates(even, odd, raised) * (lookup(table, index) * norm)
        if kind == 0:
            store_strided(mine, 8 * b * 64 + place, 64, point)
        else:
            store_blocks(rows, 0, point)
            mine[place : place + LANES, 8 * b : 8 * b + 8] = rows


@kernel(parallel=True)
def _decode_voronoi(plan, kind, g, tiles, code, seen, out):  # type: ignore[no-untyped-def]
    for step in prange(-(-seen // LANES)):
        _decode_tile(np.int64(step), plan, kind, g, tiles, code, out, voronoi_codewords)


@kernel(parallel=True)
def _decode_cubic(plan, kind, g, tiles, code, seen, out):  # type: ignore[no-untyped-def]
    for step in prange(-(-seen // LANES)):
        _decode_tile(np.int64(step), plan, kind, g, tiles, code, out, cubic_codewords)


APPEND = {"voronoi": _append_voronoi, "cubic": _append_cubic}
APPEND_MANY = {"voronoi": _append_many_voronoi, "cubic": _append_many_cubic}
DECODE_HEAD = {"voronoi": _decode_voronoi, "cubic": _decode_cubic}
