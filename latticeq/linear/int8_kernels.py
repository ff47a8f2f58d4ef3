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
    load,
    shift_right,
    store,
    to_float,
)

__all__ = ["dequantize_int8_groups", "multiply_int8_row", "quantize_row"]

OFFSET = 128
"""Weights are stored as unsigned bytes, raised by this."""

SMALLEST = np.float32(1e-30)
"""A row whose magnitudes are all below it counts as zero: the inverse of its scale may overflow."""


@kernel
def quantize_row(x: Any, values: Any) -> Any:
    """Round activations to int8 under one scale, their largest magnitude over 127.

    Parameters
    ----------
    x : (N,) float32
    values : (N,) int8, output

    Returns
    -------
    float32
        The scale: x is about scale times the values. NaN if x holds NaN or infinity, so that what
        is computed from it is NaN too.
    """
    largest, is_finite = np.float32(0), True
    for i in range(x.size):
        is_finite &= bool(np.isfinite(x[i]))
        largest = max(largest, abs(x[i]))
    if not is_finite or largest < SMALLEST:
        for i in range(x.size):
            values[i] = 0
        return np.float32(1) if is_finite else np.float32(np.nan)
    scale = largest / np.float32(127)
    inverse = np.float32(1) / scale
    for i in range(x.size):
        values[i] = np.int8(np.rint(x[i] * inverse))
    return scale


@kernel(parallel=True)
def multiply_int8_row(words: Any, row_scale: Any, fours: Any, total: int, y: Any) -> None:
    """Multiply one row of int8 activations by int8 weights; y is short of the activations' scale.

    Parameters
    ----------
    words : (groups, N / 4, 16) int32
        Four weights each, raised by 128.
    row_scale : (16 * groups,) float32
    fours : (N / 4,) int32
        Four activations each.
    total : int
        Their sum.
    y : (16 * groups,) float32, output
        The sums of N products are exact in int32 for N up to 2**16.
    """
    for group in prange(len(words)):
        mine = words[group]
        scale = load(row_scale, 16 * group)
        lane = lane_index(scale)
        dot = filled(-OFFSET * total, lane)
        for j in range(len(fours)):
            dot = dot_wide_bytes(dot, load(mine, 16 * j), broadcast(fours[j], lane))
        store(y, 16 * group, to_float(dot) * scale)


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
