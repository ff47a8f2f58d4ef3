"""Voronoi codewords laid out anew when they are loaded, so that few instructions decode them.

To decode a Voronoi codeword is to find a closest point: about sixty instructions for sixteen words.
So when a matrix is loaded its points are found once. Doubled, the eight coordinates of a point are
all even or all odd, and -2q <= 2 v < 2q:

    2 v_i = 2 n_i + h - 2q,    0 <= n_i < 2q <= 32,    h one bit a block.

That is 41 bits a block in place of 32: with two bits for the scale 5.375 bits a weight, and about a
third of the instructions. Four blocks of sixteen rows are five words a row, the lower four bits of
each block's n as its digits lie (`latticeq.storage.bits`), then all their fifth bits, that of
coordinate 2j of block k in bit 2k of byte j, and that of coordinate 2j + 1 in bit 2k + 1; and 24
bytes: one a row for four scale indices, that of block k in bits 2k and 2k + 1, then two a block for
h, a bit a row.

Bytes, their offset 2q and so every result are those of `latticeq.linear.cell_kernels`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.words import ONES
from latticeq.jit import kernel, prange
from latticeq.linear.cell_kernels import (
    Cell,
    matrix_of,
    operands_of,
    raised_dot,
    store_block,
    voronoi_codewords,
)
from latticeq.linear.int8_kernels import AHEAD
from latticeq.simd import (
    fields_at,
    filled,
    fused_multiply_add,
    load,
    load_floats_at,
    load_ints_at,
    lookup,
    mask_at,
    prefetch_at,
    select,
    shift_right,
    store,
    to_float,
)

__all__ = ["UNFOLDED", "can_unfold", "unfold"]

FOUR, SIDE = 5 * 64, 16 + 4 * 2
"""Bytes of four blocks of sixteen rows: of their words, and of their scale indices and bits h."""

LOW, HIGH = 0x1E1E1E1E, 0x20202020
"""Where a byte 2 n has the lower four bits of n, and the fifth."""


def can_unfold(n: int, index_width: int) -> bool:
    """Tell whether matrices of N columns and scale indices of so many bits can be laid out so."""
    return n % 32 == 0 and index_width <= 2


def unfold(
    words: NDArray[np.int32],
    indices: NDArray[np.uint8],
    width: int,
    q: int,
    tables: NDArray[np.int32],
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Lay out the codewords of a matrix anew.

    Parameters
    ----------
    words : (groups, N / 8, 16) int32
    indices : (groups, N / 8 * 2 * width) uint8
    width : int
        Bits of a scale index, 0 to 2.
    q : int
        At most 16.
    tables : (4, 16) int32
        See `latticeq.codes.words.word_tables`.

    Returns
    -------
    words : (groups, N / 32, 5, 16) int32
    sides : (groups, N / 32, 24) uint8
    """
    groups, blocks, _ = words.shape
    found = np.zeros((groups, blocks // 4, 5, 16), np.int32)
    sides = np.zeros((groups, blocks // 4, SIDE), np.uint8)
    _unfold(words, indices, width, q, tables, found, sides)
    return found, sides


@kernel
def _unfold_group(words, indices, width, q, tables, found, sides):  # type: ignore[no-untyped-def]
    """Do `unfold` for one row group."""
    lanes = np.empty((2, 16), np.int32)
    for block in range(len(words)):
        four, side, k = found[block // 4], sides[block // 4], block % 4
        even, odd, index = voronoi_codewords(
            load(words, 16 * block), indices + 2 * width * block, width, q, tables
        )
        store(lanes, 0, index & ((1 << width) - 1))
        store(lanes, 16, even & 1)
        even, odd = shift_right(even, 1) & 0x1F1F1F1F, shift_right(odd, 1) & 0x1F1F1F1F
        store(four, 16 * k, (even & 0x0F0F0F0F) | ((odd & 0x0F0F0F0F) << 4))
        fifth = ((even >> 4) & ONES) << (2 * k) | ((odd >> 4) & ONES) << (2 * k + 1)
        store(four, 64, load(four, 64) | fifth)
        for lane in range(16):
            side[lane] |= lanes[0, lane] << (2 * k)
            side[16 + 2 * k + lane // 8] |= lanes[1, lane] << (lane % 8)


@kernel(parallel=True)
def _unfold(words, indices, width, q, tables, found, sides):  # type: ignore[no-untyped-def]
    for group in prange(len(words)):
        at = np.int64(indices[group].ctypes.data)
        _unfold_group(words[group], at, width, q, tables, found[group], sides[group])


@kernel(inline=True)
def _numbers(word, fifth, k):  # type: ignore[no-untyped-def]
    """Return 2 n of the even and of the odd coordinates of block k of four, as bytes."""
    if k == 3:
        high_even, high_odd = shift_right(fifth, 1), shift_right(fifth, 2)
    else:
        high_even, high_odd = fifth << (5 - 2 * k), fifth << (4 - 2 * k)
    low_even, low_odd = (word << 1) & LOW, shift_right(word, 3) & LOW
    return low_even | (high_even & HIGH), low_odd | (high_odd & HIGH)


@kernel(inline=True)
def _add_block(total, k, words, side, shared, table, operand):  # type: ignore[no-untyped-def]
    """Add the product of block k of four to a sum; `shared` are their fifth bits and indices."""
    fifth, indices = shared
    even, odd = _numbers(load_ints_at(words + 64 * k), fifth, k)
    dot = raised_dot(even, odd, operand)
    dot = select(mask_at(side + 16 + 2 * k), dot + operand[3], dot)
    return fused_multiply_add(lookup(table, shift_right(indices, 2 * k)), to_float(dot), total)


@kernel(inline=True)
def _multiply_group(group, plan, operands, scale, y):  # type: ignore[no-untyped-def]
    """Do the share of `Cell.multiply_token` that one row group is."""
    matrix, mine = matrix_of(group, plan)
    fours = len(operands) // 4
    words, side = plan[matrix, 0] + FOUR * fours * mine, plan[matrix, 1] + SIDE * fours * mine
    table = load_floats_at(plan[matrix, 2])
    total = filled(0, table)
    for block in range(0, len(operands), 4):
        for line in range(0, FOUR, 64):
            prefetch_at(words + AHEAD + line)
        shared = (load_ints_at(words + 256), fields_at(side, 8))
        total = _add_block(total, 0, words, side, shared, table, operands[block])
        total = _add_block(total, 1, words, side, shared, table, operands[block + 1])
        total = _add_block(total, 2, words, side, shared, table, operands[block + 2])
        total = _add_block(total, 3, words, side, shared, table, operands[block + 3])
        words += FOUR
        side += SIDE
    row_scale = load_floats_at(plan[matrix, 3] + 64 * mine) * scale
    store(y, 16 * group, total * row_scale)


@kernel(parallel=True)
def _multiply(plan, q, tables, x, codes, y):  # type: ignore[no-untyped-def]
    operands, scale = operands_of(x, codes, 2 * q, False)
    for group in prange(plan[-1, 5]):
        _multiply_group(group, plan, operands, scale, y)


@kernel(inline=True)
def _decode_block(k, n, four, side, rows, out):  # type: ignore[no-untyped-def]
    """Decode block k of the nth four; `rows` are betas and row scales, `out` points and scales."""
    even, odd = _numbers(load(four, 16 * k), load(four, 64), k)
    half = select(mask_at(side + 16 + 2 * k), filled(ONES, even), 0)
    store_block(out[0], 4 * n + k, even | half, odd | half)
    index = shift_right(fields_at(side, 8), 2 * k)
    store(out[1], 16 * (4 * n + k), rows[1] * lookup(rows[0], index))


@kernel
def _decode_group(words, side, betas, scale, points, scales):  # type: ignore[no-untyped-def]
    """Do the share of `Cell.decode_groups` that one row group is."""
    rows, out = (load(betas, 0), load(scale, 0)), (points, scales)
    for n in range(len(words)):
        _decode_block(0, n, words[n], side, rows, out)
        _decode_block(1, n, words[n], side, rows, out)
        _decode_block(2, n, words[n], side, rows, out)
        _decode_block(3, n, words[n], side, rows, out)
        side += SIDE


@kernel(parallel=True)
def _decode(words, sides, width, betas, q, tables, out):  # type: ignore[no-untyped-def]
    for group in prange(len(words)):
        at, scale = np.int64(sides[group].ctypes.data), out[2][16 * group : 16 * group + 16]
        _decode_group(words[group], at, betas, scale, out[0][group], out[1][group])


UNFOLDED = Cell(_multiply, _decode, lambda q: 2 * q)
"""The kernels: words (groups, N / 32, 5, 16) and sides (groups, N / 32, 24) of `unfold`."""
