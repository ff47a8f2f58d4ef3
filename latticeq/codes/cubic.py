r"""The code E8/qZ⁸, q even, cut to a box: the cheapest cell to decode, and exact to encode.

Digits n_i in 0..q−1 name one point of E8, moved by a constant so that the code is centred. With b
the parity of Σ n_i, b_i = b for i >= 1 and b_0 = 1 − b, it is

    x_i = n_i + b_i/2 − (2q − 1)/4:

n with an even sum is a point of D8, and with an odd sum n + ½·1 − e_0 is one of D8 + ½·1. Every
coordinate lies in ±(2q − 1)/4; quadrupled coordinates are odd integers.

**Encoding** is exact. For either b, round and clip each coordinate; if the parity of the sum is not
b, move by one the coordinate where that costs least, within the box. Of the two b take the nearer.

**Ties**: halves round to the even digit, the first coordinate of equal costs moves, one without
error moves upwards, and of equally near points that with b = 0 is taken.

No point of E8 is overloaded as long as it lies in the box; First-β asks whether a point outside it
would be nearer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.codes.union import GROUP, closest_codeword_lanes, store_codewords
from latticeq.jit import kernel, prange
from latticeq.simd import (
    argmax,
    filled,
    load_blocks,
    load_byte_blocks,
    maximum,
    minimum,
    onehot,
    parity_bits,
    places,
    rint,
    select,
    sign,
    store_byte_blocks,
    to_int,
    total,
)

__all__ = ["UNIT", "codeword_lanes", "decode_blocks", "digits_lanes", "encode_blocks"]

UNIT = 0.25
"""Points are given in quadrupled coordinates: odd integers up to 2q − 1."""

FAR = 2.0**22
"""A bound that no digit meets."""


@kernel(parallel=True)
def encode_blocks(
    x: Any, betas: Any, inverse: Any, q: int, first_fit: bool, digits: Any, index: Any, values: Any
) -> None:
    """Fill the digits, scale indices and values of blocks; see `latticeq.codes.nested`."""
    for group in prange(x.size // GROUP):
        blocks = load_blocks(x, group * GROUP)
        point, which = codeword_lanes(blocks, betas, inverse, q, first_fit)
        found = digits_lanes(point, q)
        store_codewords(group, point, which, betas, found, digits, index, values)


@kernel(inline=True)
def codeword_lanes(x: Any, betas: Any, inverse: Any, q: int, first_fit: bool) -> Any:
    """Return the points chosen for sixteen blocks, unscaled, and the indices of their scales."""
    return closest_codeword_lanes(x, betas, inverse, q, first_fit, _nearest)


@kernel(inline=True)
def digits_lanes(point: Any, q: int) -> Any:
    """Return the digits of points: floor(x + (2q - 1)/4)."""
    return (to_int(point * 4) + (2 * q - 1)) >> 2


@kernel(inline=True)
def _nearest(y: Any, q: int, moves: int) -> Any:
    """Return the nearest codewords, and if there are no moves where points outside are nearer."""
    point, cost = _nearest_within(y, q, filled(0, y), filled(q - 1, y))
    is_overloaded = cost < 0
    if moves == 0:
        _, free = _nearest_within(y, q, filled(-FAR, y), filled(FAR, y))
        is_overloaded = free < cost
    return point, is_overloaded


@kernel(inline=True)
def _nearest_within(y: Any, q: int, low: Any, high: Any) -> Any:
    """Return the nearest points with digits in a range, and their squared distances."""
    quarter = np.float32(0.25)
    whole = filled(-quarter * (2 * q - 1), y) + select(places(y) == 0, filled(0.5, y), 0)
    half = filled(-quarter * (2 * q - 3), y) - select(places(y) == 0, filled(0.5, y), 0)
    even = _nearest_of_parity(y - whole, 0, low, high)
    odd = _nearest_of_parity(y - half, 1, low, high)
    to_even, to_odd = y - whole - even, y - half - odd
    even_cost, odd_cost = total(to_even * to_even), total(to_odd * to_odd)
    is_odd = odd_cost < even_cost
    return select(is_odd, odd + half, even + whole), select(is_odd, odd_cost, even_cost)


@kernel(inline=True)
def _nearest_of_parity(y: Any, parity: int, low: Any, high: Any) -> Any:
    """Return the nearest integer vectors in a box whose sums have a parity."""
    n = minimum(maximum(rint(y), low), high)
    error = y - n
    step = sign(error)
    beyond = (n + step > high) | (n + step < low)
    step = select(beyond, 0 - step, step)
    # A step costs 1 - 2 step error more: the cheapest has the largest step error.
    wrong = (parity_bits(to_int(n)) & 1) != parity
    return n + select(onehot(argmax(step * error)) & wrong, step, 0)


@kernel
def decode_blocks(digits: Any, q: int, points: Any) -> None:
    """Fill the points of digits, both (16 n, 8)."""
    for first in range(0, digits.size, GROUP):
        n = load_byte_blocks(digits, first)
        parity = parity_bits(n) & 1
        halves = parity ^ to_int(places(n) == 0)  # 1 - b for coordinate 0
        store_byte_blocks(points, first, 4 * n + 2 * halves - (2 * q - 1))
