"""What kernels on packed codewords share: the activations' side, scale indices, and plain points.

A row group is a stream of 32-bit words, one a lane and block (see `latticeq.storage.bits`); the
kernels that decode words are in `latticeq.linear.cell_kernels`. Codewords that fill no such word
are split into fields, decoded to points, and scaled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.linear.int8_kernels import OFFSET, int8_scale, scale_of_row
from latticeq.simd import (
    coordinate,
    fields_at,
    filled,
    lane_index,
    load,
    load_blocks,
    magnitude,
    maximum,
    rint,
    shift_right,
    store,
    store_threes,
    to_float,
    to_int,
    total,
)
from latticeq.transforms.hadamard_kernels import hadamard_row

__all__ = [
    "float_points",
    "prepare_row",
    "repeated_scales",
    "round_points",
    "scale_index_at",
    "split_fields",
    "table_rows",
]


def repeated_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scales as a table of sixteen in which only the bits of an index count.

    Parameters
    ----------
    scales : (k,) float32
        At most sixteen.

    Returns
    -------
    (16,) float32
        What `scale_index_at` leaves above an index changes nothing. Entries that no index names
        are zero.
    """
    period = np.zeros(2 ** (len(scales) - 1).bit_length(), np.float32)
    period[: len(scales)] = scales
    return np.tile(period, 16 // len(period))


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
    """Return the scale indices of sixteen rows, 2 * width bytes at an address.

    Bits above the index are not cleared: they are looked up in `repeated_scales`.
    """
    if width == 2:
        return fields_at(address, 2)
    if width == 3:
        return fields_at(address, 3)
    if width == 1:
        return fields_at(address, 1)
    if width == 4:
        return fields_at(address, 4)
    return filled(0, lane_index(like))


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
def float_points(points: Any, scales: Any, offset: int, out: Any) -> None:
    """Turn decoded row groups into float32, transposed: column j of out is row j of the groups.

    Parameters
    ----------
    points : (n, N / 8, 2, 16) int32
        Four coordinates each, raised by `offset`.
    scales : (n, N / 8, 16) float32
    offset : int
    out : (N, 16 * n) float32, output
    """
    columns = out.shape[1]
    for group in prange(len(points)):
        mine, my_scales = points[group], scales[group]
        for block in range(len(mine)):
            scale = load(my_scales, 16 * block)
            for half in range(2):
                word = load(mine, 32 * block + 16 * half)
                at = (8 * block + 4 * half) * columns + 16 * group
                for i in range(4):
                    value = to_float((shift_right(word, 8 * i) & 255) - offset)
                    store(out, at + i * columns, value * scale)


@kernel(parallel=True)
def round_points(points: Any, scales: Any, offset: int, words: Any, row_scale: Any) -> None:
    """Round decoded row groups to int8: what `latticeq.linear.int8_tiles.round_tile` makes of them.

    Parameters
    ----------
    points, scales, offset
        As in `float_points`.
    words : (n, N / 4, 16) int32, output
    row_scale : (16 * n,) float32, output
    """
    for group in prange(len(points)):
        mine, my_scales = points[group], scales[group]
        first = load(my_scales, 0)
        largest = filled(np.float32(0), first)
        for block in range(len(mine)):
            size = filled(0, lane_index(first))
            for half in range(2):
                word = load(mine, 32 * block + 16 * half)
                for i in range(4):
                    size = maximum(size, magnitude((shift_right(word, 8 * i) & 255) - offset))
            largest = maximum(largest, to_float(size) * load(my_scales, 16 * block))
        scale, inverse = int8_scale(largest)
        store(row_scale, 16 * group, scale)
        out = words[group]
        for block in range(len(mine)):
            unit = load(my_scales, 16 * block)
            for half in range(2):
                word = load(mine, 32 * block + 16 * half)
                rounded = filled(0, word)
                for i in range(4):
                    value = to_float((shift_right(word, 8 * i) & 255) - offset) * unit
                    rounded = rounded | ((to_int(rint(value * inverse)) + OFFSET) << (8 * i))
                store(out, 32 * block + 16 * half, rounded)
