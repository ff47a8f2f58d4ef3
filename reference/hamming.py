"""The lattice of the [8, 4, 4] Hamming code, and its quotient by qD8.

Construction A: Conway and Sloane, *Sphere Packings, Lattices and Groups*, chapter 7. Notation: v
lattice point, d digits.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from reference.e8 import closest_dn
from reference.voronoi import SHIFT

Array = NDArray[np.floating]
Digits = NDArray[np.uint8]

# Row m: the parities of the word whose first four are the bits of m; the fifth to eighth are each
# the sum of three of them.
FREE = np.array([*product((0, 1), repeat=4)])
CODEWORDS = np.concatenate([FREE, (FREE + FREE.sum(axis=1, keepdims=True)) % 2], axis=1)

# The vertex of the cube that each coordinate stands for: codewords are its affine functions.
POINTS = np.array([0, 1, 2, 4, 7, 6, 5, 3])


def is_hamming(v: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell whether integer vectors have parities that form a codeword."""
    return np.asarray((v[..., None, :] % 2 == CODEWORDS).all(axis=-1).any(axis=-1))


def closest_by_codewords(y: Array) -> Array:
    """Return the closest lattice point, trying all sixteen codewords."""
    tried = 2 * np.rint((y[..., None, :] - CODEWORDS) / 2) + CODEWORDS
    best = np.square(y[..., None, :] - tried).sum(axis=-1).argmin(axis=-1)
    return np.asarray(np.take_along_axis(tried, best[..., None, None], -2)[..., 0, :])


def closest_hamming(y: Array) -> Array:
    """Return the closest lattice point, from the Hadamard sums of what odd coordinates cost.

    Sum j runs over the coordinates' vertices p with the signs (-1)^<j, p>, added in butterflies.
    The one of largest magnitude, the first of equals, names a codeword; it is complemented if
    negative.
    """
    even = 2 * np.rint(y / 2)
    error = y - even
    sums = np.empty_like(y)
    sums[..., POINTS] = 1 - 2 * np.abs(error)
    for bit in (1, 2, 4):
        low = np.flatnonzero(np.arange(8) & bit == 0)
        a, b = sums[..., low], sums[..., low + bit]
        sums[..., low], sums[..., low + bit] = a + b, a - b
    best = np.argmax(np.abs(sums), axis=-1)[..., None]
    is_complement = np.take_along_axis(sums, best, -1) < 0
    odd = (np.bitwise_count(best & POINTS) % 2 == 1) != is_complement
    step = np.where(error >= 0, 1, -1).astype(y.dtype)
    return even + np.where(odd, step, 0)


def representative(y: Array, q: int) -> NDArray[np.float64]:
    """Return the member of y + qD8 in the Voronoi cell of qD8."""
    wide = y.astype(np.float64)
    return np.asarray(wide - q * closest_dn((wide + SHIFT) / q))


def encode(point: Array, q: int) -> Digits:
    """Return v mod q, the first digit raised by q where the quotients have an odd sum."""
    v = np.rint(point).astype(np.int64)
    digits = v % q
    digits[..., 0] += q * ((v // q).sum(axis=-1) % 2)
    return digits.astype(np.uint8)


def decode(digits: Digits, q: int) -> NDArray[np.float64]:
    """Return the lattice point in the Voronoi cell of qD8 that carries the digits."""
    return representative(digits.astype(np.float64), q)


def overload(point: Array, q: int) -> Array:
    """Return for lattice points v the lambda of D8 with representative v - q lambda."""
    gap = (point - representative(point, q)).astype(point.dtype)
    return np.asarray(gap * point.dtype.type(1 / q))
