"""Rows in int8 under one scale each, and the product of int8 activations with them.

Round to nearest (no paper). Notation: W the weights (M x N), s the scale of a row in float16, a the
scale of the activations, v and u the integers: W' = s v, x' = a u. Rows that are rounded only to be
multiplied have float32 scales b.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SMALLEST = np.float32(1e-30)
"""What is smaller throughout counts as zero."""


def quantize_rows(weights: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return v and s: the largest magnitude of a row over 127 is its scale."""
    scale = (np.abs(weights).max(axis=1) / 127).astype(np.float16)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    values = np.clip(np.rint(weights / divisor[:, None]), -127, 127)
    return values.astype(np.int8), scale


def quantize_activations(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Return u and a for one token, in float32 arithmetic.

    a is 1 for a token of zeros, and NaN for one that is not finite throughout; u is zero for both.
    """
    if not np.isfinite(x).all():
        return np.zeros(x.shape, np.int8), np.float32(np.nan)
    largest = np.abs(x).max()
    if largest < SMALLEST:
        return np.zeros(x.shape, np.int8), np.float32(1)
    scale = largest / np.float32(127)
    return np.rint(x * (np.float32(1) / scale)).astype(np.int8), np.float32(scale)


def round_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return v and b of decoded rows (M, N), in float32 arithmetic; b is 1 for a row of zeros."""
    largest = np.abs(rows).max(axis=1)
    scale = np.where(largest < SMALLEST, np.float32(1), largest * np.float32(1 / 127))
    return np.rint(rows * (np.float32(1) / scale)[:, None]).astype(np.int8), scale


def integer_products(v: NDArray[np.int8], u: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return v u exactly: (M, N) by (N,), or (M, N) by (N, T)."""
    return v.astype(np.int64) @ u.astype(np.int64)


def rounded_products(rows: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what rows (M, N) and tokens (T, N) give once both are rounded: (T, M).

    The integer product is exact; it is rounded to float32, then by b, then by a.
    """
    v, b = round_rows(rows)
    y = np.empty((len(x), len(rows)), np.float32)
    for t, token in enumerate(x):
        u, a = quantize_activations(token)
        y[t] = integer_products(v, u).astype(np.float32) * b * a
    return y
