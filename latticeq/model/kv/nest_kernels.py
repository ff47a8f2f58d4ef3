"""Kernels of a cache of Voronoi codewords: sixteen positions are the sixteen lanes.

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

from latticeq.codes.grids import half_bits, half_value
from latticeq.codes.voronoi import codeword_lanes, digits_lanes
from latticeq.codes.words import ONES, decode_words_lanes
from latticeq.jit import kernel, prange
from latticeq.linear.nest_kernels import scale_index_at, table_rows
from latticeq.model.kv.basis import to_basis_row
from latticeq.simd import (
    block,
    coordinate,
    filled,
    load,
    load_blocks,
    load_ints_at,
    lookup,
    peek_at,
    store,
    store_blocks,
    store_strided,
    sub_bytes,
    to_float,
    to_int,
)

__all__ = ["LANES", "append_many", "append_rows", "decode_head", "decoded_lanes", "load_norms"]

LANES = 16
"""Positions of a tile."""


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


@kernel
def append_rows(x, first, last, basis, turn, code, page, place):  # type: ignore[no-untyped-def]
    """Code the keys, or values, of some tokens and write them in one layer of a page.

    Parameters
    ----------
    x : (T, G, K) float32
    first, last : int
        Which of the T tokens.
    basis : (2, G, K) float32
    turn : (K, K) float32
        See `latticeq.model.kv.basis`.
    code : tuple
        q, the bits of a scale index, betas and 1 / betas, both (k,) float32, and whether the first
        scale that fits is taken.
    page : tuple, output
        Words (G, tiles, K / 8, 16) int32, scale indices (G, tiles, K / 8, 2 * bits) uint8, norms
        (G, 16 * tiles) uint16.
    place : int
        The position of token 0 in the page.
    """
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
        point, which = codeword_lanes(load_blocks(rows, 8 * at), betas, inverse, q, first_fit)
        store(coded, at, _words(digits_lanes(to_int(point + point), q)))
        store(coded, padded + at, which)
    for n in range(count):
        b, g, t = n % blocks, n // blocks % kv_heads, first + n // (blocks * kv_heads)
        tile, lane = (place + t) // LANES, (place + t) % LANES
        words[g, tile, b, lane] = coded[0, n]
        for bit in range(width):
            spot = lane * width + bit
            cleared = indices[g, tile, b, spot // 8] & (255 ^ (1 << (spot % 8)))
            indices[g, tile, b, spot // 8] = cleared | ((coded[1, n] >> bit & 1) << (spot % 8))


@kernel(parallel=True)
def append_many(x, first, last, basis, turn, code, page, place):  # type: ignore[no-untyped-def]
    """Do what `append_rows` does, a tile of positions a task: no two write to one byte."""
    start = (place + first) // LANES
    tiles = (place + last - 1) // LANES + 1 - start
    for step in prange(tiles):
        begin = (start + step) * LANES - place
        append_rows(x, max(first, begin), min(last, begin + LANES), basis, turn, code, page, place)


@kernel(inline=True)
def decoded_lanes(words, q, byte_tables):  # type: ignore[no-untyped-def]
    """Return the eight doubled coordinates of sixteen words, in float32."""
    even, odd = decode_words_lanes(words, q, byte_tables)
    low = filled(2 * q * ONES, even)
    even, odd = sub_bytes(even, low), sub_bytes(odd, low)  # signed bytes from here on
    return to_float(
        block(
            (even << 24) >> 24,
            (odd << 24) >> 24,
            (even << 16) >> 24,
            (odd << 16) >> 24,
            (even << 8) >> 24,
            (odd << 8) >> 24,
            even >> 24,
            odd >> 24,
        )
    )


@kernel
def load_norms(address, count, norms):  # type: ignore[no-untyped-def]
    """Set the first norms to the float16 numbers at an address, and the others to zero.

    It does what `latticeq.codes.grids.half_value` does, for many and none negative: the exponent is
    moved to its place in float32, which is 2**112 too low there.
    """
    for s in range(count):
        bits = np.int32(peek_at(address + 2 * s, 2))
        value = np.int32(bits << 13).view(np.float32) * np.float32(2.0**112)
        norms[s] = np.float32(np.nan) if bits >= 0x7C00 else value
    for s in range(count, norms.size):
        norms[s] = np.float32(0)


@kernel(parallel=True)
def decode_head(plan, kind, g, tiles, code, seen, out):  # type: ignore[no-untyped-def]
    """Decode the keys, or values, of one kv head.

    Parameters
    ----------
    plan : (pages, 6) int64
    kind : int
        0 for keys, 1 for values.
    g : int
        The kv head.
    tiles : int
        Of a page.
    code : tuple
        q, the bits of a scale index, what each index multiplies doubled coordinates by, (16,)
        float32, and the tables of `latticeq.codes.words.word_tables`.
    seen : int
        Positions to decode, rounded up to a tile.
    out : (n, K, 64) float32, or (n, 64, K), output
        Keys, or values, in tiles of 64 positions.
    """
    q, width, betas, tables = code
    size = out.shape[1 + kind]
    blocks = size // 8
    for step in prange(-(-seen // LANES)):
        page, tile = step // tiles, g * tiles + step % tiles
        words = plan[page, 3 * kind] + 64 * blocks * tile
        indices = plan[page, 3 * kind + 1] + 2 * width * blocks * tile
        norms, rows = np.empty(LANES, np.float32), np.empty((LANES, 8), np.float32)
        load_norms(plan[page, 3 * kind + 2] + 2 * LANES * tile, LANES, norms)
        norm, table, byte_tables = load(norms, 0), load(betas, 0), table_rows(tables)
        mine, place = out[step * LANES // 64], step * LANES % 64
        for b in range(blocks):
            point = decoded_lanes(load_ints_at(words + 64 * b), q, byte_tables)
            beta = lookup(table, scale_index_at(indices + 2 * width * b, width, norm))
            point = point * (beta * norm)
            if kind == 0:
                store_strided(mine, 8 * b * 64 + place, 64, point)
            else:
                store_blocks(rows, 0, point)
                mine[place : place + LANES, 8 * b : 8 * b + 8] = rows
