"""The code E8/qZ^8 cut to a box, its codewords found one parity at a time.

Notation: n digits in 0..q-1, b the parity of their sum, x = n + b_i/2 - (2q - 1)/4 the point, with
b_i = b but b_0 = 1 - b. This is E8 moved by a constant: n with an even sum is a point of D8, and n
with an odd sum, moved by 1/2 everywhere but by -1/2 in coordinate 0, one of D8 + 1/2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.e8 import norm

Array = NDArray[np.floating]
Digits = NDArray[np.uint8]


def offset(b: int, q: int) -> NDArray[np.float64]:
    """Return x - n for digits of parity b."""
    halves = np.full(8, b / 2)
    halves[0] = (1 - b) / 2
    return halves - (2 * q - 1) / 4


def decode(digits: Digits, q: int) -> NDArray[np.float64]:
    """Return the point that carries the digits: every digit string has one."""
    b = digits.sum(axis=-1, dtype=np.int64) % 2
    return np.asarray(digits + np.where(b[..., None] == 1, offset(1, q), offset(0, q)))


def encode(point: Array, q: int) -> Digits:
    """Return the digits of points of the code."""
    digits: Digits = np.floor(point + (2 * q - 1) / 4).astype(np.uint8)
    return digits


def nearest_of_parity(y: Array, b: int, low: float, high: float) -> Array:
    """Return the integer vector in a box, with a sum of parity b, that is nearest to y.

    If the clipped coordinates have the other parity, one moves by one inside the box: moving n by
    a step of +-1 costs 1 - 2 (y - n) step.
    """
    n = np.clip(np.rint(y), low, high)
    error = y - n
    step = np.where(error >= 0, 1, -1).astype(y.dtype)
    step = np.where((n + step < low) | (n + step > high), -step, step)
    cheapest = np.argmax(step * error, axis=-1)[..., None]
    moved = n.copy()
    np.put_along_axis(
        moved,
        cheapest,
        np.take_along_axis(n, cheapest, -1) + np.take_along_axis(step, cheapest, -1),
        -1,
    )
    return np.where((n.sum(axis=-1, keepdims=True) % 2) != b, moved, n)


def nearest_within(y: Array, q: int, low: float, high: float) -> tuple[Array, Array]:
    """Return the nearest point with digits in low..high, and its squared distance."""
    points, costs = [], []
    for b in (0, 1):
        at = offset(b, q).astype(y.dtype)
        n = nearest_of_parity(y - at, b, low, high)
        points.append(n + at)
        costs.append(norm(y - at - n))
    is_odd = costs[1] < costs[0]
    return np.where(is_odd[..., None], points[1], points[0]), np.where(is_odd, costs[1], costs[0])


def nearest(y: Array, q: int, moves: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return the nearest codeword, and if no moves are allowed where points outside are nearer."""
    point, cost = nearest_within(y, q, 0, q - 1)
    if moves:
        return point, np.zeros(len(y), np.bool_)
    _, free = nearest_within(y, q, -(2.0**22), 2.0**22)
    return point, free < cost
