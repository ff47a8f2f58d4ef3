"""Kernels that multiply straight from packed Voronoi codewords, sixteen rows a vector.

A row group is a stream of 32-bit words, one a lane and block (see `latticeq.storage.bits`). Each step
decodes sixteen codewords to bytes and takes their dot product with the same eight activations, so no
sum across lanes is ever needed:

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
from latticeq.simd import (
    broadcast,
    dot_bytes,
    filled,
    fused_multiply_add,
    lane_index,
    load,
    load_byte_blocks,
    lookup,
    peek,
    select,
    shift_right,
    store,
    store_strided,
    to_float,
)

__all__ = ["deal", "dequantize_any_groups", "dequantize_groups", "multiply_row"]


@kernel
def deal(values: Any, pairs: Any) -> None:
    """Lay int8 activations out for `multiply_row`.

    Parameters
    ----------
    values : (N,) int8
    pairs : (N / 8, 3) int32, output
        For each block its even coordinates and its odd ones as bytes, and their sum.
    """
    for block in range(len(pairs)):
        even, odd, total = np.uint32(0), np.uint32(0), 0
        for i in range(4):
            a, b = values[8 * block + 2 * i], values[8 * block + 2 * i + 1]
            even |= np.uint32(np.uint32(np.uint8(a)) << np.uint32(8 * i))
            odd |= np.uint32(np.uint32(np.uint8(b)) << np.uint32(8 * i))
            total += a + b
        pairs[block, 0] = np.int32(even)
        pairs[block, 1] = np.int32(odd)
        pairs[block, 2] = total


@kernel(inline=True)
def _scale_index_lanes(stream: Any, block: int, width: int, like: Any) -> Any:
    """Return the scale indices of sixteen rows, `width` bits each, 2·width bytes a block."""
    lane = lane_index(like)
    if width == 0:
        return filled(0, lane)
    if width == 2:
        return shift_right(broadcast(peek(stream, 4 * block), lane), lane * 2) & 3
    low, high = np.int32(0), np.int32(0)
    for j in range(width):
        low |= np.int32(np.int32(stream[2 * width * block + j]) << np.int32(8 * j))
        high |= np.int32(np.int32(stream[2 * width * block + width + j]) << np.int32(8 * j))
    bits = select(lane < 8, broadcast(low, lane), broadcast(high, lane))
    return shift_right(bits, (lane & 7) * width) & ((1 << width) - 1)


@kernel(parallel=True)
def multiply_row(
    words: Any, scale_index: Any, width: int, betas: Any, row_scale: Any, q: int, pairs: Any, y: Any
) -> None:
    """Multiply one row of int8 activations by packed codewords; y is short of its scale.

    Parameters
    ----------
    words : (groups, N / 8, 16) int32
    scale_index : (groups, N / 8 * 2 * width) uint8
    width : int
        Bits of a scale index.
    betas : (16,) float32
        Half the scale that each index names; halved because decoded points are doubled.
    row_scale : (16 * groups,) float32
    q : int
    pairs : (N / 8, 3) int32
        From `deal`.
    y : (16 * groups,) float32, output
    """
    for group in prange(len(words)):
        mine, indices = words[group], scale_index[group]
        table = load(betas, 0)
        total = filled(0, table)
        lane = lane_index(table)
        for block in range(len(pairs)):
            even, odd = decode_words_lanes(load(mine, 16 * block), q)
            # The bytes are raised by 2q: the accumulator starts where that makes it right.
            dot = broadcast(np.int32(-2 * q * pairs[block, 2]), lane)
            dot = dot_bytes(dot, even, broadcast(pairs[block, 0], lane))
            dot = dot_bytes(dot, odd, broadcast(pairs[block, 1], lane))
            beta = lookup(table, _scale_index_lanes(indices, block, width, lane))
            total = fused_multiply_add(beta, to_float(dot), total)
        store(y, 16 * group, total * load(row_scale, 16 * group))


@kernel(parallel=True)
def dequantize_groups(
    words: Any,
    scale_index: Any,
    width: int,
    betas: Any,
    row_scale: Any,
    q: int,
    first: int,
    out: Any,
) -> None:
    """Decode some row groups to float32, transposed: what a matrix product reads.

    Parameters
    ----------
    words, scale_index, width, betas, row_scale, q
        As in `multiply_row`.
    first : int
        The first group to decode.
    out : (N, 16 * n) float32, output
        Column j holds row 16 * first + j of the matrix.
    """
    columns = out.shape[1]
    for step in prange(columns // 16):
        group = first + step
        mine, indices = words[group], scale_index[group]
        table, scale = load(betas, 0), load(row_scale, 16 * group)
        for block in range(len(mine)):
            even, odd = decode_words_lanes(load(mine, 16 * block), q)
            beta = scale * lookup(table, _scale_index_lanes(indices, block, width, even))
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
        mine, indices = digits[group], scale_index[group]
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
            beta = scale * lookup(
                table, _scale_index_lanes(indices, block, width, lane_index(scale))
            )
            store_strided(out, 8 * block * columns + 16 * step, columns, to_float(point) * beta)
