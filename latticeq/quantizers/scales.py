r"""How the scales of scalar grids are chosen: one rule for every kind of grid.

A scale is \|x\|_max · f, with \|x\|_max the largest magnitude of its group, rounded as the format
stores it (`HALF`, `E8M0`, `E4M3`). The factor f is 1 over the grid's largest level, times a
clipping ratio; for NVFP4's *four over six* (arXiv 2512.02010) it is 1/6 or 1/4. Of several factors
the one with the least squared error of the group is taken, the first of equals.

With an offset (asymmetric int4) f is a ratio that shrinks the range from min to max about its
middle; the zero point is the lower end in float16, and the scale a fifteenth of what is above it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.grids import (
    e4m3_code,
    e8m0_code,
    e8m0_value,
    half_bits,
    half_value,
    level_lanes,
    small_float_value,
)
from latticeq.jit import kernel, prange
from latticeq.simd import load, store

__all__ = [
    "E4M3",
    "E8M0",
    "HALF",
    "LANES",
    "Rule",
    "chosen_scale",
    "inverse_step",
    "matrix_scales",
    "scale_value",
    "scratch",
]

HALF, E8M0, E4M3 = 0, 1, 2
"""How a scale is stored: in float16, as a power of two, in E4M3 under the scale of its tensor."""

LANES = 16

SMALLEST = np.float32(2.0**-126)
"""The smallest normal float32."""


class Rule(NamedTuple):
    """What kernels need to know of a grid and its scales.

    Parameters
    ----------
    group : int
        Neighbours in a row that share a scale; the last group of a row may be shorter.
    kind : int
        How a scale is stored: `HALF`, `E8M0` or `E4M3`.
    offset : bool
        Whether there are zero points.
    factors : ndarray of float32, shape (R,)
        The f to choose from.
    thresholds : ndarray of float32, shape (15,)
        Of the grid.
    levels : ndarray of float32, shape (16,)
        Of the grid, in order.
    codes : ndarray of int32, shape (16,)
        Of the grid, in the order of its levels.
    peak : float32
        The largest magnitude of a tensor over its scale (`E4M3` only).
    """

    group: int
    kind: int
    offset: bool
    factors: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    levels: NDArray[np.float32]
    codes: NDArray[np.int32]
    peak: np.float32


@kernel
def scale_value(bits: int, kind: int, top: Any) -> Any:
    """Return the float32 of a stored scale; `top` is the tensor's, for `E4M3`."""
    if kind == HALF:
        return half_value(bits)
    if kind == E8M0:
        return e8m0_value(bits)
    return small_float_value(bits, 3, -6) * top


@kernel(inline=True)
def inverse_step(step: Any) -> Any:
    """Return 1/step; 0, which codes all as zero, for NaN and where there is no finite inverse."""
    return np.float32(1) / step if step >= SMALLEST else np.float32(0)


@kernel
def _stored(scale: Any, kind: int, top: Any) -> Any:
    if kind == HALF:
        return half_bits(scale)
    if kind == E8M0:
        return e8m0_code(scale)
    return e4m3_code(scale / top) if top > 0 else 0


@kernel
def chosen_scale(x: Any, first: int, last: int, rule: Any, top: Any, room: Any) -> Any:
    """Choose the scale of the group ``x[first:last]``.

    Where squares of its numbers leave the range of float32, the first factor is taken.

    Parameters
    ----------
    x : ndarray of float32, shape (N,)
        Finite.
    rule : Rule
    top : float32
        The scale of the tensor (`E4M3` only).
    room : pair of ndarrays, int64 of shape (2, 16) and float32 of shape (4, 16)
        Scratch.

    Returns
    -------
    scale, zero : int
        As they are stored; zero is 0 without an offset.
    """
    stored, tried = room
    low, high = x[first], x[first]
    for i in range(first + 1, last):
        low, high = min(low, x[i]), max(high, x[i])
    n_factors = len(rule.factors)
    least = np.float32(np.inf)
    scale, zero = 0, 0
    for at in range(0, n_factors, LANES):
        count = min(LANES, n_factors - at)
        for lane in range(count):
            _try(low, high, rule.factors[at + lane], rule, top, room, lane)
        if at == 0:
            scale, zero = stored[0, 0], stored[1, 0]
        if n_factors > 1:
            _errors(x, first, last, rule, tried)
            for lane in range(count):
                if tried[3, lane] < least:
                    least = tried[3, lane]
                    scale, zero = stored[0, lane], stored[1, lane]
    return scale, zero


@kernel
def _try(low: Any, high: Any, factor: Any, rule: Any, top: Any, room: Any, lane: int) -> None:
    """Write what a factor gives to a lane: scale and zero as stored; step, its inverse, bottom."""
    stored, tried = room
    wanted = max(high, -low) * factor
    if rule.offset:
        # Halved first: the sum and the difference of two float32 may be infinite.
        middle = np.float32(0.5) * low + np.float32(0.5) * high
        reach = (np.float32(0.5) * high - np.float32(0.5) * low) * factor
        stored[1, lane] = half_bits(middle - reach)
        tried[2, lane] = half_value(stored[1, lane])
        wanted = (middle + reach - tried[2, lane]) / np.float32(15)
    stored[0, lane] = _stored(wanted, rule.kind, top)
    step = scale_value(stored[0, lane], rule.kind, top)
    tried[0, lane] = step
    tried[1, lane] = inverse_step(step)


@kernel
def _errors(x: Any, first: int, last: int, rule: Any, tried: Any) -> None:
    """Write the squared error of the group under each lane's scale; a lane is a candidate."""
    step, inverse = load(tried, 0), load(tried, LANES)
    bottom = load(tried, 2 * LANES)
    lost = 0 * step
    for i in range(first, last):
        above = x[i] - bottom
        error = above - step * level_lanes(above * inverse, rule.thresholds, rule.levels)
        lost = lost + error * error
    store(tried, 3 * LANES, lost)


@kernel(inline=True)
def scratch() -> Any:
    """Return the room that `chosen_scale` works in."""
    return np.zeros((2, LANES), np.int64), np.zeros((4, LANES), np.float32)


@kernel(parallel=True)
def matrix_scales(x: Any, rule: Any, top: Any, scales: Any, zeros: Any) -> None:
    """Choose the scales of every group of every row: `chosen_scale`.

    Parameters
    ----------
    x : ndarray of float32, shape (M, N)
        Finite.
    rule : Rule
    top : float32
    scales, zeros : ndarray of uint16, shape (M, ceil(N / group))
        What is written.
    """
    for row in prange(len(x)):
        room = scratch()
        for g in range(scales.shape[1]):
            first = g * rule.group
            last = min(first + rule.group, x.shape[1])
            scales[row, g], zeros[row, g] = chosen_scale(x[row], first, last, rule, top, room)
