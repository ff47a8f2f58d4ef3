"""Kernels for int8 rows under one scale each, sixteen rows interleaved as packed codewords are."""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.jit import kernel, prange
from latticeq.simd import (
    broadcast,
    dot_wide_bytes,
    filled,
    lane_index,
    largest,
    largest_lane,
    load,
    load_floats_at,
    load_ints_at,
    load_strided,
    maximum,
    prefetch_at,
    rint,
    select,
    shift_right,
    store,
    store_bytes,
    to_float,
    to_int,
)
from latticeq.transforms.hadamard_kernels import hadamard_row

__all__ = [
    "AHEAD",
    "dequantize_int8_groups",
    "int8_scale",
    "multiply_int8_row",
    "multiply_rounded_token",
    "quantize_row",
    "scale_of_row",
]

OFFSET = 128
"""Weights are stored as unsigned bytes, raised by this."""

SMALLEST = np.float32(1e-30)
"""A row whose magnitudes are all below it counts as zero: the inverse of its scale may overflow."""

AHEAD = 6144
"""Bytes before those in use that memory is asked for, as the next row group follows at once: more
than it brings while a request is under way."""

MAGNITUDE, INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
"""Of float32: all bits but the sign, and the bits of infinity."""


@kernel
def scale_of_row(x: Any) -> Any:
    """Return the int8 scale of activations and its inverse.

    Parameters
    ----------
    x : (N,) float32
        Contiguous.

    Returns
    -------
    scale : float32
        The largest magnitude over 127; 1 if all are below `SMALLEST`; NaN if x holds NaN or
        infinity, so that what is computed from it is NaN too.
    inverse : float32
        1 / scale; 0 in the last two cases, where every activation counts as zero.
    """
    # As integers, the bits of magnitudes are in order, and infinity and NaN are the largest.
    bits = x.view(np.int32)
    lots, whole = x.size - x.size % 128, x.size - x.size % 16
    found = np.int32(0)
    if whole > 0:
        top = load(bits, 0) & MAGNITUDE
        if lots > 0:
            eight = load_strided(bits, 0, 16) & MAGNITUDE
            for i in range(128, lots, 128):
                eight = maximum(eight, load_strided(bits, i, 16) & MAGNITUDE)
            top = largest(eight)
        for i in range(lots, whole, 16):
            top = maximum(top, load(bits, i) & MAGNITUDE)
        found = largest_lane(top)
    for i in range(whole, x.size):
        found = max(found, np.int32(bits[i] & MAGNITUDE))
    if found >= INFINITY:
        return np.float32(np.nan), np.float32(0)
    size = np.int32(found).view(np.float32)
    if size < SMALLEST:
        return np.float32(1), np.float32(0)
    scale = size / np.float32(127)
    return scale, np.float32(1) / scale


@kernel(inline=True)
def int8_scale(largest: Any) -> Any:
    """Return the scales of sixteen rows with these largest magnitudes, and their inverses."""
    scale = select(largest < SMALLEST, np.float32(1), largest * np.float32(1 / 127))
    return scale, np.float32(1) / scale


@kernel
def quantize_row(x: Any, values: Any) -> Any:
    """Round activations to int8 under one scale, their largest magnitude over 127.

    Parameters
    ----------
    x : (N,) float32
        Contiguous.
    values : (N,) int8, output

    Returns
    -------
    float32
        The scale, as `scale_of_row` says: x is about scale times the values.
    """
    scale, inverse = scale_of_row(x)
    if inverse == 0:
        values[:] = 0
        return scale
    whole = x.size - x.size % 16
    for i in range(0, whole, 16):
        store_bytes(values, i, to_int(rint(load(x, i) * inverse)))
    for i in range(whole, x.size):
        values[i] = np.int8(np.rint(x[i] * inverse))
    return scale


@kernel(parallel=True)
def multiply_int8_row(
    words: Any, row_scale: Any, coarse: Any, fine: Any, totals: Any, scales: Any, y: Any
) -> None:
    """Multiply one token by int8 weights, the token in two int8 parts: about 16 bits.

    Both parts meet a weight while it is in a register, and reading weights is what takes the time.

    Parameters
    ----------
    words : (groups, N / 4, 16) int32
        Four weights each, raised by 128.
    row_scale : (16 * groups,) float32
    coarse, fine : (N / 4,) int32
        Four activations each: the token rounded, and what rounding left of it.
    totals : (2,) int32
        The sum of each part's integers.
    scales : (2,) float32
    y : (16 * groups,) float32, output
        The sums of N products are exact in int32 for N up to 2**16.
    """
    for group in prange(len(words)):
        mine = words[group]
        scale = load(row_scale, 16 * group)
        lane = lane_index(scale)
        address = np.int64(mine.ctypes.data)
        high, low = filled(-OFFSET * totals[0], lane), filled(-OFFSET * totals[1], lane)
        for j in range(len(coarse)):
            prefetch_at(address + AHEAD)
            weights = load_ints_at(address)
            address += 64
            high = dot_wide_bytes(high, weights, broadcast(coarse[j], lane))
            low = dot_wide_bytes(low, weights, broadcast(fine[j], lane))
        value = to_float(high) * scales[0] + to_float(low) * scales[1]
        store(y, 16 * group, value * scale)


@kernel(parallel=True)
def multiply_rounded_token(plan: Any, q: int, tables: Any, x: Any, codes: Any, y: Any) -> None:
    """Rotate one token, round it to int8, and multiply it by several int8 matrices of one width.

    Parameters
    ----------
    plan : (matrices, 3) int64
        For each the addresses of its words, (groups, N / 4, 16) int32, raised by 128, and of its
        row scales, (16 * groups,) float32; and the number of groups of it and those before it.
    q, tables
        Not used: they make this a kernel like those of `latticeq.linear.cell_kernels`.
    x : (N,) float32
    codes : (m, m / 4) uint8, or None
        ``hadamard_codes(N)``; None if `x` is rotated already.
    y : (16 * groups of all,) float32, output
    """
    fours, total, scale = _rounded_token(x, codes)
    for group in prange(plan[-1, 2]):
        # A loop's index is unsigned, and unsigned and signed integers together make floats.
        matrix, mine = 0, np.int64(group)
        while plan[matrix, 2] <= group:
            matrix, mine = matrix + 1, np.int64(group) - plan[matrix, 2]
        words = plan[matrix, 0] + 64 * len(fours) * mine
        row_scale = load_floats_at(plan[matrix, 1] + 64 * mine)
        lane = lane_index(row_scale)
        dot = filled(-OFFSET * total, lane)
        for j in range(len(fours)):
            prefetch_at(words + AHEAD)
            dot = dot_wide_bytes(dot, load_ints_at(words), broadcast(fours[j], lane))
            words += 64
        store(y, 16 * group, to_float(dot) * row_scale * scale)


@kernel
def _rounded_token(x: Any, codes: Any) -> Any:
    """Return a token in int8, four to a word; the sum of its integers; and its scale."""
    values = np.empty(x.size, np.int8)
    rotated = x
    if codes is not None:
        rotated = np.empty_like(x)
        hadamard_row(x, rotated, codes)
    scale = quantize_row(rotated, values)
    total = np.int32(0)
    for value in values:
        total += np.int32(value)
    return values.view(np.int32), total, scale


@kernel(parallel=True)
def dequantize_int8_groups(words: Any, row_scale: Any, first: int, out: Any) -> None:
    """Turn some row groups into float32, transposed: column j of out is row 16 * first + j.

    Parameters
    ----------
    words, row_scale
        As in `multiply_int8_row`.
    first : int
        The first group.
    out : (N, 16 * n) float32, output
    """
    columns = out.shape[1]
    for step in prange(columns // 16):
        mine, scale = words[first + step], load(row_scale, 16 * (first + step))
        for j in range(len(mine)):
            word = load(mine, 16 * j)
            for i in range(4):
                value = to_float((shift_right(word, 8 * i) & 255) - OFFSET)
                store(out, (4 * j + i) * columns + 16 * step, value * scale)
