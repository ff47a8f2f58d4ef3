"""What kernels on packed codewords share: the activations' side, scale indices, and plain points.

A row group is a stream of 32-bit words, one a lane and block (see `latticeq.storage.bits`); the
kernels that decode words are in `latticeq.linear.cell_kernels`. Codewords that fill no such word
are split into fields, decoded to points, and scaled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.linear.int8_kernels import scale_of_row
from latticeq.simd import (
    broadcast,
    coordinate,
    filled,
    lane_index,
    load,
    load_blocks,
    load_byte_blocks,
    peek_at,
    rint,
    select,
    shift_right,
    store_strided,
    store_threes,
    to_float,
    to_int,
    total,
)
from latticeq.transforms.hadamard_kernels import hadamard_row

__all__ = ["prepare_row", "scale_index_at", "scale_points", "split_fields", "table_rows"]


@kernel
def prepare_row(x: Any, codes: Any, pairs: Any) -> Any:
    """Rotate one token, round it to int8 under one scale, and lay it out for cell kernels.

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
    whole = 128 * (x.size // 128)
    rotated = np.empty(x.size + -x.size % 128, np.float32)
    rotated[x.size :] = 0
    if codes is not None:
        hadamard_row(x, rotated[: x.size], codes)
    else:
        rotated[: x.size] = x
    scale, inverse = scale_of_row(rotated)
    if inverse == 0:
        pairs[:] = 0
        return scale
    for i in range(0, whole, 128):
        _store_pairs(rotated, i, inverse, pairs, 3 * i // 8)
    if whole < x.size:
        last = np.empty((16, 3), np.int32)
        _store_pairs(rotated, whole, inverse, last, 0)
        pairs[whole // 8 :] = last[: len(pairs) - whole // 8]
    return scale


@kernel(inline=True)
def _store_pairs(x: Any, first: int, inverse: Any, pairs: Any, at: int) -> None:
    """Round sixteen blocks and store what `prepare_row` keeps of them."""
    rounded = to_int(rint(load_blocks(x, first) * inverse))
    bytes_ = rounded & 255
    even = coordinate(bytes_, 0) | (coordinate(bytes_, 2) << 8)
    even = even | (coordinate(bytes_, 4) << 16) | (coordinate(bytes_, 6) << 24)
    odd = coordinate(bytes_, 1) | (coordinate(bytes_, 3) << 8)
    odd = odd | (coordinate(bytes_, 5) << 16) | (coordinate(bytes_, 7) << 24)
    store_threes(pairs, at, even, odd, total(rounded))


@kernel(inline=True)
def scale_index_at(address: int, width: int, like: Any) -> Any:
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
def table_rows(tables: Any) -> Any:
    """Return the rows of `latticeq.codes.words.word_tables` as four int32 lanes."""
    return load(tables, 0), load(tables, 16), load(tables, 32), load(tables, 48)


@kernel(parallel=True)
def split_fields(strings: Any, fields: Any) -> None:
    """Split every block's w bytes into eight fields of w bits, a byte each.

    Parameters
    ----------
    strings : (n, N / 8, 16, w) uint8
    fields : (n, N / 8, 16, 8) uint8, output
    """
    width = strings.shape[3]
    mask = np.uint64((1 << width) - 1)
    for group in prange(len(strings)):
        for block in range(strings.shape[1]):
            for lane in range(16):
                joined = np.uint64(0)
                for j in range(width):
                    joined |= np.uint64(strings[group, block, lane, j]) << np.uint64(8 * j)
                for i in range(8):
                    field = (joined >> np.uint64(width * i)) & mask
                    fields[group, block, lane, i] = np.uint8(field)


@kernel(parallel=True)
def scale_points(points: Any, scale: Any, out: Any) -> None:
    """Multiply the points of row groups by the scales of their blocks, transposed.

    Parameters
    ----------
    points : (n, N / 8, 16, 8) uint8
        The bits of signed bytes.
    scale : (n, N / 8, 16) float32
    out : (N, 16 * n) float32, output
    """
    columns = out.shape[1]
    for step in prange(len(points)):
        mine, my_scale = points[step], scale[step]
        for block in range(len(mine)):
            signed = (load_byte_blocks(mine, 128 * block) ^ 128) - 128
            value = to_float(signed) * load(my_scale, 16 * block)
            store_strided(out, 8 * block * columns + 16 * step, columns, value)
