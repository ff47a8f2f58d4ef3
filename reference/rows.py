"""Rows coded one at a time, as bytes: activations as they arrive, keys and values in the cache.

Notation: x a row of n numbers, r its root mean square, q values of a digit, k scales, v bits of a
scale index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from reference.bits import bit_width, joined, pack_d8, pack_digits
from reference.grids import Codes, Float32, Stored, as_half, choose_scale, inverse_step, nearest


def scalar_row(
    x: Float32,
    levels: NDArray[np.float64],
    group: int,
    factors: Sequence[np.float32],
    store: Callable[[np.float32], Stored],
    asymmetric: bool = False,
) -> bytes:
    """Return a row's codes, two a byte, its scales and its zero points; float32 arithmetic."""
    codes, scales, zeros = [], b"", b""
    for first in range(0, len(x), group):
        part = x[first : first + group]
        scale, zero = choose_scale(part, levels, factors, store, asymmetric)
        inverse = inverse_step(scale.value)
        codes += nearest(levels, (part - zero.value) * inverse).tolist()
        scales += scale.bits.to_bytes(scale.n_bytes, "little")
        zeros += zero.bits.to_bytes(2, "little") if asymmetric else b""
    codes += [0] * (len(codes) % 2)
    pairs = bytes(low + 16 * high for low, high in zip(codes[::2], codes[1::2], strict=True))
    return pairs + scales + zeros


def unit_row(x: Float32) -> tuple[Float32, Stored]:
    """Return x / r and r in float16: what a nested code sees of a row, and its norm."""
    energy = sum(float(number) ** 2 for number in x)
    norm = as_half(np.float32(np.sqrt(energy / len(x))))
    if not norm.value > 0:
        return np.zeros_like(x), norm
    return x * (np.float32(1) / norm.value), norm


def nest_row(digits: Codes, scale_index: Codes, norm: Stored, q: int, k: int, cell: str) -> bytes:
    """Return the words of a row's digits (n/8, 8), its scale indices (n/8,) and its norm.

    They are those of the first of sixteen rows in a file; in cell "d8" they hold the scale indices.
    """
    if cell == "d8":
        words = pack_d8(digits[None], scale_index[None], q)[0, :, 0]
        return words.tobytes() + norm.bits.to_bytes(2, "little")
    v = bit_width(k)
    words = pack_digits(digits[None], q)[0, :, 0]
    indices = joined([int(index) for index in scale_index], v)
    n_bytes = -(-v * len(scale_index) // 8)
    return words.tobytes() + indices.to_bytes(n_bytes, "little") + norm.bits.to_bytes(2, "little")
