"""Kernels that multiply straight from packed Voronoi codewords, sixteen rows a vector.

A row group is a stream of 32-bit words, one a lane and block (see `latticeq.storage.bits`). Each
step decodes sixteen codewords to bytes and takes their dot product with the same eight activations,
so no sum across lanes is ever needed:

    y_m = row_scale_m · a · Σ_blocks β_mb · (v_mb · x_b) / 2

with v the doubled integer points, x the activations in int8 and a their scale. The products of one
block are exact integers, at most 8 · 2q · 127 in magnitude; one float32 rounding a block follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.codes.voronoi import fold_lanes, generator_lanes
from latticeq.codes.words import decode_words_lanes
from latticeq.jit import kernel, prange
from latticeq.linear.int8_kernels import quantize_row
from latticeq.simd import (
    broadcast,
    dot_bytes,
    filled,
    fused_multiply_add,
    lane_index,
    load,
    load_byte_blocks,
    load_floats_at,
    load_ints_at,
    lookup,
    peek_at,
    select,
    shift_right,
    store,
    store_strided,
    to_float,
)
from latticeq.transforms.hadamard import hadamard_row

__all__ = ["dequantize_any_groups", "dequantize_groups", "multiply_row", "prepare_row"]


@kernel
def prepare_row(x: Any, codes: Any, pairs: Any) -> Any:
    """Rotate one token, round it to int8 under one scale, and lay it out for `multiply_row`.

    Parameters
    ----------
    x : (N,) float32
    codes : (m, m / 4) uint8, or None
        ``hadamard_codes(N)``; None if `x` is rotated already.
    pairs : (N / 8, 3) int32, output
        For each block its even coordinates and its odd ones as signed bytes, and their sum.

    Returns
    -------
    float32
        The scale: the rotated token is about scale times the bytes.
    """
    rotated = x
    if codes is not None:
        rotated = np.empty_like(x)
        hadamard_row(x, rotated, codes)
    values = np.empty(x.size, np.int8)
    scale = quantize_row(rotated, values)
    for block in range(len(pairs)):
        even, odd, total = np.uint32(0), np.uint32(0), np.int32(0)
        for i in range(4):
            a, b = values[8 * block + 2 * i], values[8 * block + 2 * i + 1]
            even |= np.uint32(np.uint32(np.uint8(a)) << np.uint32(8 * i))
            odd |= np.uint32(np.uint32(np.uint8(b)) << np.uint32(8 * i))
            total += np.int32(a) + np.int32(b)
        pairs[block, 0] = np.int32(even)
        pairs[block, 1] = np.int32(odd)
        pairs[block, 2] = total
    return scale


@kernel(inline=True)
def _scale_index_at(address: int, width: int, like: Any) -> Any:
    """Return the scale indices of sixteen rows, 2 * width bytes at an address."""
    lane = lane_index(like)
    if width == 2:
        bits = broadcast(np.int32(peek_at(address, 4)), lane)
        return shift_right(bits, lane * 2) & 3
    if width == 0:
        return filled(0, lane)
    if width == 1:
        return shift_right(broadcast(np.int32(peek_at(address, 2)), lane), lane) & 1
    low, high = peek_at(address, 4), peek_at(address + 4, 4) if width == 4 else 0
    if width == 3:
        low, high = low & 0xFFFFFF, (peek_at(address + 4, 2) << 8) | (low >> 24)
    bits = select(lane < 8, broadcast(np.int32(low), lane), broadcast(np.int32(high), lane))
    return shift_right(bits, (lane & 7) * width) & ((1 << width) - 1)


@kernel(inline=True)
def _rows(tables: Any) -> Any:
    return load(tables, 0), load(tables, 16), load(tables, 32), load(tables, 48)


@kernel(parallel=True)
def multiply_row(plan: Any, q: int, tables: Any, pairs: Any, scale: float, y: Any) -> None:
    """Multiply one row of int8 activations by several matrices of packed codewords.

    Parameters
    ----------
    plan : (matrices, 6) int64
        For each matrix: the addresses of its words, (groups, N / 8, 16) int32; scale indices,
        (groups, N / 8, 2 * width) uint8; betas, (16,) float32, half the scale that each index
        names, as decoded points are doubled; row scales, (16 * groups,) float32; the width of a
        scale index; and the number of groups of this matrix and those before it.
    q : int
        Of all of them.
    tables : (4, 16) int32
        Of `latticeq.codes.words.word_tables`.
    pairs : (N / 8, 3) int32
        From `prepare_row`.
    scale : float
        The activations' scale.
    y : (16 * groups of all,) float32, output
    """
    blocks = len(pairs)
    for group in prange(plan[-1, 5]):
        matrix, mine = 0, group
        while plan[matrix, 5] <= group:
            matrix, mine = matrix + 1, group - plan[matrix, 5]
        width = plan[matrix, 4]
        words = plan[matrix, 0] + 64 * blocks * mine
        indices = plan[matrix, 1] + 2 * width * blocks * mine
        table = load_floats_at(plan[matrix, 2])
        total = filled(0, table)
        lane = lane_index(table)
        byte_tables = _rows(tables)
        for block in range(blocks):
            even, odd = decode_words_lanes(load_ints_at(words + 64 * block), q, byte_tables)
            # The bytes are raised by 2q: the accumulator starts where that makes it right.
            dot = broadcast(np.int32(-2 * q * pairs[block, 2]), lane)
            dot = dot_bytes(dot, even, broadcast(pairs[block, 0], lane))
            dot = dot_bytes(dot, odd, broadcast(pairs[block, 1], lane))
            beta = lookup(table, _scale_index_at(indices + 2 * width * block, width, lane))
            total = fused_multiply_add(beta, to_float(dot), total)
        row_scale = load_floats_at(plan[matrix, 3] + 64 * mine) * scale
        store(y, 16 * group, total * row_scale)


@kernel(parallel=True)
def dequantize_groups(
    words: Any,
    scale_index: Any,
    width: int,
    betas: Any,
    row_scale: Any,
    q: int,
    tables: Any,
    first: int,
    out: Any,
) -> None:
    """Decode some row groups to float32, transposed: what a matrix product reads.

    Parameters
    ----------
    words : (groups, N / 8, 16) int32
    scale_index : (groups, N / 8 * 2 * width) uint8
    width : int
        Bits of a scale index.
    betas : (16,) float32
        Half the scale that each index names, as decoded points are doubled.
    row_scale : (16 * groups,) float32
    q : int
    tables : (4, 16) int32
        Of `latticeq.codes.words.word_tables`.
    first : int
        The first group to decode.
    out : (N, 16 * n) float32, output
        Column j holds row 16 * first + j of the matrix.
    """
    columns = out.shape[1]
    for step in prange(columns // 16):
        group = first + step
        mine, indices = words[group], scale_index[group].ctypes.data
        table, scale = load(betas, 0), load(row_scale, 16 * group)
        byte_tables = _rows(tables)
        for block in range(len(mine)):
            even, odd = decode_words_lanes(load(mine, 16 * block), q, byte_tables)
            beta = scale * lookup(table, _scale_index_at(indices + 2 * width * block, width, even))
            at = 8 * block * columns + 16 * step
            for i in range(4):
                value = to_float((shift_right(even, 8 * i) & 255) - 2 * q)
                store(out, at + 2 * i * columns, value * beta)
                value = to_float((shift_right(odd, 8 * i) & 255) - 2 * q)
                store(out, at + (2 * i + 1) * columns, value * beta)


@kernel(parallel=True)
def dequantize_any_groups(
    digits: Any,
    scale_index: Any,
    width: int,
    betas: Any,
    row_scale: Any,
    q: int,
    first: int,
    out: Any,
) -> None:
    """Do what `dequantize_groups` does for any q, from digits of any width.

    Parameters
    ----------
    digits : (groups, N / 8, 16, w) uint8
        w = ceil(log2 q) bytes a block, see `latticeq.storage.bits`.
    """
    columns = out.shape[1]
    digit_bits = digits.shape[3]
    mask = np.uint64((1 << digit_bits) - 1)
    for step in prange(columns // 16):
        group = first + step
        mine, indices = digits[group], scale_index[group].ctypes.data
        table, scale = load(betas, 0), load(row_scale, 16 * group)
        blocks = np.empty((16, 8), np.uint8)
        for block in range(len(mine)):
            for lane in range(16):
                joined = np.uint64(0)
                for j in range(digit_bits):
                    joined |= np.uint64(mine[block, lane, j]) << np.uint64(8 * j)
                for i in range(8):
                    blocks[lane, i] = (joined >> np.uint64(digit_bits * i)) & mask
            point = fold_lanes(generator_lanes(load_byte_blocks(blocks, 0)), q)
            beta = scale * lookup(table, _scale_index_at(indices + 2 * width * block, width, scale))
            store_strided(out, 8 * block * columns + 16 * step, columns, to_float(point) * beta)
