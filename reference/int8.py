"""Rows in int8 under one scale each, and the product of int8 activations with them.

Round to nearest (no paper). Notation: W the weights (M x N), s the scale of a row in float16, a the
scale of the activations, v and u the integers: W' = s v, x' = a u.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantize_rows(weights: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return v and s: the largest magnitude of a row over 127 is its scale."""
    scale = (np.abs(weights).max(axis=1) / 127).astype(np.float16)
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    values = np.clip(np.rint(weights / divisor[:, None]), -127, 127)
    return values.astype(np.int8), scale


def quantize_activations(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Return u and a for one token, in float32 arithmetic; a is 1 if x is zero."""
    largest = np.abs(x).max()
    scale = largest / np.float32(127) if largest > 0 else np.float32(1)
    return np.rint(x * (np.float32(1) / scale)).astype(np.int8), np.float32(scale)


def integer_products(v: NDArray[np.int8], u: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return v u exactly: (M, N) by (N,)."""
    return v.astype(np.int64) @ u.astype(np.int64)
