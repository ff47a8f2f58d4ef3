"""Scalar grids: int4, NF4, MXFP4 and NVFP4, by their definitions.

Dettmers et al., *QLoRA*, arXiv 2305.14314 (NF4); OCP *Microscaling Formats (MX) Specification* 1.0
(E2M1, E8M0); OCP *8-bit Floating Point Specification* 1.0 (E4M3); Cook et al., *Four Over Six*,
arXiv 2512.02010.

Notation: x a number, s its scale, z a zero point, l a level; x reads back as l s + z.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Codes = NDArray[np.uint8]


def float_value(code: int, exponent_bits: int, mantissa_bits: int, bias: int) -> float:
    """Return the number of a small float with a sign bit on top and no infinities.

    With exponent field E and mantissa field M: (1 + M / 2^m) 2^(E - bias), and M / 2^m 2^(1 - bias)
    where E is zero.
    """
    mantissa = code % 2**mantissa_bits
    exponent = code // 2**mantissa_bits % 2**exponent_bits
    sign = -1 if code // 2 ** (mantissa_bits + exponent_bits) else 1
    fraction = mantissa / 2**mantissa_bits
    if exponent == 0:
        return float(sign * fraction * 2.0 ** (1 - bias))
    return float(sign * (1 + fraction) * 2.0 ** (exponent - bias))


def nf4_levels() -> NDArray[np.float64]:
    """Return quantiles of a Gaussian: seven below zero, zero, eight above, divided by the largest.

    Both tails are cut where the code of QLoRA cuts them: at 1 - (1/32 + 1/30) / 2.
    """
    cut = 1 - (1 / 32 + 1 / 30) / 2
    quantile = np.vectorize(NormalDist().inv_cdf)
    above, below = quantile(np.linspace(cut, 0.5, 9)[:-1]), quantile(np.linspace(cut, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], -below]))
    return np.asarray(levels / levels.max())


INT4 = np.arange(-8.0, 8.0)
UINT4 = np.arange(16.0)
E2M1 = np.array([float_value(code, 2, 1, 1) for code in range(16)])
E4M3 = np.array([float_value(code, 4, 3, 7) for code in range(127)])
"""Of E4M3 the numbers from 0 to 448; code 127 would be NaN."""


def nearest(levels: NDArray[np.float64], y: NDArray[np.floating]) -> Codes:
    """Return the codes of the nearest levels: of two at the same distance, the even code.

    Codes of negative zero are not used.
    """
    distance = np.abs(np.asarray(y, np.float64)[..., None] - levels)
    distance[..., np.signbit(levels) & (levels == 0)] = np.inf
    is_nearest = distance == distance.min(axis=-1, keepdims=True)
    even_first = np.where(is_nearest, np.arange(len(levels)) % 2, 2)
    return np.asarray(even_first.argmin(axis=-1), np.uint8)


def floor_e8m0(x: float) -> int:
    """Return the E8M0 code of the largest power of two that is at most x, from 2^-127 on."""
    return max(exponent for exponent in range(255) if exponent == 0 or 2.0 ** (exponent - 127) <= x)


class Stored(NamedTuple):
    """A scale as its bits, the number that they stand for, and the bytes that they take."""

    bits: int
    value: np.float32
    n_bytes: int = 1


def as_half(scale: np.float32) -> Stored:
    """Round a scale to float16."""
    half = np.float16(scale)
    return Stored(int(half.view(np.uint16)), np.float32(half), 2)


def as_power_of_two(scale: np.float32) -> Stored:
    """Round a scale down to a power of two."""
    code = floor_e8m0(float(scale))
    return Stored(code, np.float32(2.0 ** (code - 127)))


def as_e4m3(scale: np.float32, tensor_scale: np.float32) -> Stored:
    """Round a scale to E4M3, relative to the scale of its tensor."""
    code = int(nearest(E4M3, np.array(scale / tensor_scale))) if tensor_scale > 0 else 0
    return Stored(code, np.float32(E4M3[code]) * tensor_scale)


def inverse_step(step: np.float32) -> np.float32:
    """Return 1 / step, or 0 where the step is zero, or too small to have an inverse."""
    return np.float32(1) / step if step >= np.float32(2.0**-126) else np.float32(0)


def choose_scale(
    x: Float32,
    levels: NDArray[np.float64],
    factors: Sequence[np.float32],
    store: Callable[[np.float32], Stored],
    asymmetric: bool = False,
) -> tuple[Stored, Stored]:
    """Return the scale and the zero point of a group: the first of those that err least.

    All arithmetic is float32, errors are added from the first number to the last.
    """
    tried = []
    for factor in factors:
        zero = Stored(0, np.float32(0))
        wanted = np.abs(x).max() * factor
        if asymmetric:
            half = np.float32(0.5)
            middle = half * x.min() + half * x.max()
            reach = (half * x.max() - half * x.min()) * factor
            zero = as_half(middle - reach)
            wanted = (middle + reach - zero.value) / np.float32(15)
        scale = store(wanted)
        inverse = inverse_step(scale.value)
        above = x - zero.value
        error = above - scale.value * levels.astype(np.float32)[nearest(levels, above * inverse)]
        lost = np.float32(0)
        for e in error:
            lost += e * e
        tried.append((lost, scale, zero))
    _, scale, zero = min(tried, key=lambda candidate: candidate[0])
    return scale, zero
