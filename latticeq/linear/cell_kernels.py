"""Kernels that multiply straight from packed codewords, sixteen rows a vector, one for each cell.

Each step decodes sixteen codewords to bytes and takes their dot product with the same eight
activations, so no sum across lanes is ever needed:

    y_m = row_scale_m · a · Σ_blocks β_mb · unit · (v_mb · x_b)

with v the integer points of the cell, x the activations in int8 and a their scale. The products of
one block are exact integers, at most 8 · 2q · 127 in magnitude; one float32 rounding a block
follows.

Every cell has two kernels, `Cell.multiply_token` and `Cell.decode_groups`. They differ in how a
word is decoded and by what its bytes are raised, nothing else: both are inlined, so a process
compiles only the cells that it meets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from latticeq.codes.cell_words import cubic_words_lanes, d8_words_lanes, fixed_words_lanes
from latticeq.codes.words import decode_words_lanes
from latticeq.jit import kernel, prange
from latticeq.linear.int8_kernels import AHEAD
from latticeq.linear.nest_kernels import prepare_row, scale_index_at, table_rows
from latticeq.simd import (
    broadcast,
    count_ones,
    dot_bytes,
    filled,
    fused_multiply_add,
    load,
    load_floats_at,
    load_ints_at,
    lookup,
    prefetch_at,
    select,
    shift_right,
    store,
    to_float,
)

__all__ = [
    "CELLS",
    "Cell",
    "cubic_codewords",
    "matrix_of",
    "operands_of",
    "raised_dot",
    "store_block",
    "voronoi_codewords",
]


class Cell(NamedTuple):
    """The kernels of one cell.

    Parameters
    ----------
    multiply_token : callable
        ``multiply_token(plan, q, tables, x, codes, y)`` rotates one token, rounds it to int8 and
        multiplies it by several matrices. `plan`, (matrices, 6) int64, has for each matrix the
        addresses of its words, (groups, N / 8, 16) int32; scale indices, (groups, N / 8, 2 * width)
        uint8; betas, (16,) float32, each times the unit of points, repeated for higher bits of an
        index; row scales, (16 * groups,) float32; the width of a scale index, 0 where words hold
        it; and the number of groups of this matrix and those before it. `tables`, (4, 16) int32,
        are `latticeq.codes.words.word_tables`, read for the cell "voronoi" only; `x`, (N,) float32,
        and `codes` are as `latticeq.linear.nest_kernels.prepare_row` takes them; `y`, (16 * groups
        of all,) float32, is the output.
    decode_groups : callable
        ``decode_groups(words, indices, width, betas, q, tables, out)`` decodes row groups. `out` is
        a tuple: points, (groups, N / 8, 2, 16) int32, coordinates 0 to 3 and 4 to 7 of each block
        as bytes raised by `raised`; scales, (groups, N / 8, 16) float32, what a unit is worth, its
        row's scale included; and row scales, (16 * groups,) float32, which are read. Other arrays
        are as above, one axis for groups before them.
    raised : callable
        ``raised(q)`` is what a point's bytes are raised by; they are at most twice that.
    """

    multiply_token: Callable[..., None]
    decode_groups: Callable[..., None]
    raised: Callable[[int], int]


@kernel(inline=True)
def voronoi_codewords(words: Any, indices: int, width: int, q: int, tables: Any) -> Any:
    """Decode sixteen words: raised bytes of even and of odd coordinates, and scale indices."""
    even, odd = decode_words_lanes(words, q, table_rows(tables))
    return even, odd, scale_index_at(indices, width, words)


@kernel(inline=True)
def _nestquantm(words: Any, indices: int, width: int, q: int, tables: Any) -> Any:
    even, odd = fixed_words_lanes(words, q)
    return even, odd, scale_index_at(indices, width, words)


@kernel(inline=True)
def cubic_codewords(words: Any, indices: int, width: int, q: int, tables: Any) -> Any:
    """Do what `voronoi_codewords` does for the cell cubic."""
    even, odd = cubic_words_lanes(words)
    return even, odd, scale_index_at(indices, width, words)


@kernel(inline=True)
def _d8(words: Any, indices: int, width: int, q: int, tables: Any) -> Any:
    return d8_words_lanes(words, q)


@kernel(inline=True)
def matrix_of(group: int, plan: Any) -> Any:
    """Return which matrix of a plan a row group belongs to, and which one of its own it is."""
    # A loop's index is unsigned, and unsigned and signed integers together make floats.
    matrix, mine = 0, np.int64(group)
    while plan[matrix, 5] <= group:
        matrix, mine = matrix + 1, np.int64(group) - plan[matrix, 5]
    return matrix, mine


@kernel(inline=True)
def _multiply_group(
    group: int, plan: Any, q: int, operands: Any, tables: Any, scale: float, y: Any, dots: Any
) -> None:
    """Do the share of `Cell.multiply_token` that one row group is."""
    matrix, mine = matrix_of(group, plan)
    blocks = len(operands)
    width = plan[matrix, 4]
    words = plan[matrix, 0] + 64 * blocks * mine
    indices = plan[matrix, 1] + 2 * width * blocks * mine
    table = load_floats_at(plan[matrix, 2])
    total = filled(0, table)
    for block in range(blocks):
        prefetch_at(words + AHEAD)
        dot, index = dots(load_ints_at(words), indices, width, q, tables, operands[block])
        total = fused_multiply_add(lookup(table, index), to_float(dot), total)
        words += 64
        indices += 2 * width
    row_scale = load_floats_at(plan[matrix, 3] + 64 * mine) * scale
    store(y, 16 * group, total * row_scale)


@kernel(inline=True)
def raised_dot(even: Any, odd: Any, operand: Any) -> Any:
    """Multiply raised bytes: the accumulator starts where that makes the dot right."""
    dot = broadcast(operand[2], even)
    dot = dot_bytes(dot, even, broadcast(operand[0], even))
    return dot_bytes(dot, odd, broadcast(operand[1], even))


@kernel(inline=True)
def _voronoi_dots(words: Any, indices: int, width: int, q: int, tables: Any, operand: Any) -> Any:
    even, odd, index = voronoi_codewords(words, indices, width, q, tables)
    return raised_dot(even, odd, operand), index


@kernel(inline=True)
def _nestquantm_dots(
    words: Any, indices: int, width: int, q: int, tables: Any, operand: Any
) -> Any:
    even, odd, index = _nestquantm(words, indices, width, q, tables)
    return raised_dot(even, odd, operand), index


@kernel(inline=True)
def _cubic_dots(words: Any, indices: int, width: int, q: int, tables: Any, operand: Any) -> Any:
    """Multiply 4 n + 2 b - (2q - 1): the part of the parity b is one number for the whole block."""
    dot = raised_dot((words << 2) & 0x3C3C3C3C, shift_right(words, 2) & 0x3C3C3C3C, operand)
    is_odd = (count_ones(words & 0x11111111) & 1) != 0
    return select(is_odd, dot + operand[3], dot), scale_index_at(indices, width, words)


@kernel(inline=True)
def _d8_dots(words: Any, indices: int, width: int, q: int, tables: Any, operand: Any) -> Any:
    even, odd, index = d8_words_lanes(words, q)
    return raised_dot(even, odd, operand), index


@kernel
def operands_of(x: Any, codes: Any, offset: int, is_cubic: bool) -> Any:
    """Return what each block is multiplied with, (N / 8, 4) int32, and the token's scale.

    A block's even and its odd coordinates, where the dot starts, and what it changes by if all
    bytes are larger by one, or, for cell cubic, if the parity of its codeword is odd:
    2 (sum of x_i, i >= 1) - 2 x_0.
    """
    pairs = np.empty((x.size // 8, 3), np.int32)
    scale = prepare_row(x, codes, pairs)
    found = np.empty((len(pairs), 4), np.int32)
    for block in range(len(pairs)):
        total = pairs[block, 2]
        found[block, 0], found[block, 1] = pairs[block, 0], pairs[block, 1]
        found[block, 2], found[block, 3] = -offset * total, total
        if is_cubic:
            first = np.int32(np.int8(pairs[block, 0] & 255))
            found[block, 2] += 2 * first
            found[block, 3] = 2 * total - 4 * first
    return found, scale


@kernel(inline=True)
def store_block(points: Any, block: int, even: Any, odd: Any) -> None:
    """Store the bytes of a block, coordinates 0 to 3 and then 4 to 7 of sixteen rows."""
    low = (even & 0xFF) | ((odd & 0xFF) << 8)
    low = low | ((even & 0xFF00) << 8) | ((odd & 0xFF00) << 16)
    high = (shift_right(even, 16) & 0xFF) | (shift_right(odd, 8) & 0xFF00)
    high = high | (shift_right(even, 8) & 0xFF0000) | (odd & -0x1000000)
    store(points, 32 * block, low)
    store(points, 32 * block + 16, high)


@kernel(inline=True)
def _decode_group(
    group: int, words: Any, indices: int, width: int, betas: Any, q: int, tables: Any, out: Any,
    codewords: Any,
) -> None:  # fmt: skip
    """Do the share of `Cell.decode_groups` that one row group is."""
    points, scales, scale = out[0][group], out[1][group], load(out[2], 16 * group)
    table = load(betas, 0)
    for block in range(len(words)):
        even, odd, index = codewords(
            load(words, 16 * block), indices + 2 * width * block, width, q, tables
        )
        store_block(points, block, even, odd)
        store(scales, 16 * block, scale * lookup(table, index))


@kernel(parallel=True)
def _multiply_voronoi(plan: Any, q: int, tables: Any, x: Any, codes: Any, y: Any) -> None:
    operands, scale = operands_of(x, codes, 2 * q, False)
    for group in prange(plan[-1, 5]):
        _multiply_group(group, plan, q, operands, tables, scale, y, _voronoi_dots)


@kernel(parallel=True)
def _decode_voronoi(
    words: Any, indices: Any, width: int, betas: Any, q: int, tables: Any, out: Any
) -> None:
    for group in prange(len(words)):
        at = np.int64(indices[group].ctypes.data)
        _decode_group(group, words[group], at, width, betas, q, tables, out, voronoi_codewords)


@kernel(parallel=True)
def _multiply_nestquantm(plan: Any, q: int, tables: Any, x: Any, codes: Any, y: Any) -> None:
    operands, scale = operands_of(x, codes, 2 * q, False)
    for group in prange(plan[-1, 5]):
        _multiply_group(group, plan, q, operands, tables, scale, y, _nestquantm_dots)


@kernel(parallel=True)
def _decode_nestquantm(
    words: Any, indices: Any, width: int, betas: Any, q: int, tables: Any, out: Any
) -> None:
    for group in prange(len(words)):
        at = np.int64(indices[group].ctypes.data)
        _decode_group(group, words[group], at, width, betas, q, tables, out, _nestquantm)


@kernel(parallel=True)
def _multiply_cubic(plan: Any, q: int, tables: Any, x: Any, codes: Any, y: Any) -> None:
    operands, scale = operands_of(x, codes, 2 * q - 1, True)
    for group in prange(plan[-1, 5]):
        _multiply_group(group, plan, q, operands, tables, scale, y, _cubic_dots)


@kernel(parallel=True)
def _decode_cubic(
    words: Any, indices: Any, width: int, betas: Any, q: int, tables: Any, out: Any
) -> None:
    for group in prange(len(words)):
        at = np.int64(indices[group].ctypes.data)
        _decode_group(group, words[group], at, width, betas, q, tables, out, cubic_codewords)


@kernel(parallel=True)
def _multiply_d8(plan: Any, q: int, tables: Any, x: Any, codes: Any, y: Any) -> None:
    operands, scale = operands_of(x, codes, q, False)
    for group in prange(plan[-1, 5]):
        _multiply_group(group, plan, q, operands, tables, scale, y, _d8_dots)


@kernel(parallel=True)
def _decode_d8(
    words: Any, indices: Any, width: int, betas: Any, q: int, tables: Any, out: Any
) -> None:
    for group in prange(len(words)):
        at = np.int64(indices[group].ctypes.data)
        _decode_group(group, words[group], at, width, betas, q, tables, out, _d8)


CELLS = {
    "voronoi": Cell(_multiply_voronoi, _decode_voronoi, lambda q: 2 * q),
    "nestquantm": Cell(_multiply_nestquantm, _decode_nestquantm, lambda q: 2 * q),
    "cubic": Cell(_multiply_cubic, _decode_cubic, lambda q: 2 * q - 1),
    "d8": Cell(_multiply_d8, _decode_d8, lambda q: q),
}
"""The kernels by the name of the cell."""
