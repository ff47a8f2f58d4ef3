"""E8 and D_n by Conway and Sloane's 1982 algorithms, one block at a time.

Conway and Sloane, *Fast quantizing and decoding algorithms for lattice quantizers and codes*, IEEE
Trans. IT 28(2), 1982. Notation: f(x) is the vector of rounded coordinates, g(x) the same with the
worst coordinate rounded the other way. Everything here works on arrays of shape (..., n).
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

# Columns are the basis vectors (Savkin et al., arXiv 2502.09720): 2 e0, e_j - e_{j-1}, (1/2, ...).
GENERATOR = np.array(
    [
        [2, -1, 0, 0, 0, 0, 0, 0.5],
        [0, 1, -1, 0, 0, 0, 0, 0.5],
        [0, 0, 1, -1, 0, 0, 0, 0.5],
        [0, 0, 0, 1, -1, 0, 0, 0.5],
        [0, 0, 0, 0, 1, -1, 0, 0.5],
        [0, 0, 0, 0, 0, 1, -1, 0.5],
        [0, 0, 0, 0, 0, 0, 1, 0.5],
        [0, 0, 0, 0, 0, 0, 0, 0.5],
    ]
)


def closest_dn(x: Array) -> Array:
    """Return the closest point of D_n: f(x) if its sum is even, else g(x)."""
    f = np.rint(x)
    error = x - f
    worst = np.expand_dims(np.argmax(np.abs(error), axis=-1), -1)
    direction = np.where(np.take_along_axis(error, worst, -1) >= 0, 1, -1).astype(x.dtype)
    g = f.copy()
    np.put_along_axis(g, worst, np.take_along_axis(f, worst, -1) + direction, -1)
    is_odd = f.sum(axis=-1, keepdims=True) % 2 == 1
    return np.where(is_odd, g, f)


def norm(x: Array) -> Array:
    """Return the squared length along the last axis, added first to last."""
    out = x[..., 0] * x[..., 0]
    for i in range(1, x.shape[-1]):
        out = out + x[..., i] * x[..., i]
    return out


def closest_e8(x: Array) -> Array:
    """Return the closest point of E8 = D8 ∪ (D8 + ½), the integer one of two equally near."""
    half = x.dtype.type(0.5)
    integer = closest_dn(x)
    shifted = closest_dn(x - half) + half
    nearer = norm(x - shifted) < norm(x - integer)
    return np.where(nearer[..., None], shifted, integer)


def is_e8(doubled: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell whether integer vectors are points of E8 in doubled coordinates."""
    same_parity = (doubled % 2 == doubled[..., :1] % 2).all(axis=-1)
    inside: NDArray[np.bool_] = same_parity & (doubled.sum(axis=-1) % 4 == 0)
    return inside


def short_vectors(largest: int) -> NDArray[np.float64]:
    """Return all points of E8 with entries in [-largest, largest], by enumeration."""
    whole = np.array(list(product(range(-largest, largest + 1), repeat=8)), dtype=np.int8)
    doubled = np.concatenate([2 * whole, 2 * whole + 1])
    inside = doubled[(np.abs(doubled) <= 2 * largest).all(axis=1)]
    points: NDArray[np.float64] = inside[is_e8(inside.astype(np.int64))] / 2
    return points
