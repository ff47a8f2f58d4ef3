"""The nested Voronoi code E8/qE8, and the same code under NestQuantM's decoder.

Conway and Sloane, *A fast encoding method for lattice codes and quantizers*, IEEE Trans. IT 29(6),
1983; Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.

Notation: G generator matrix (columns are basis vectors), q nesting ratio, c digits in 0..q-1, Q
closest point, t lattice point. Ties of the coarse lattice are broken by shifting Q's argument with
one fixed generic vector SHIFT: then the decoder's choice depends on the coset alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.e8 import GENERATOR, closest_e8, norm

Array = NDArray[np.floating]
Digits = NDArray[np.uint8]

# Generic: no signed sum of a subset vanishes, so no point of E8 + SHIFT lies on a boundary of q
# E8's cells; small: all entries together stay below the gap between unequal distances.
SHIFT = 2.0 ** -np.arange(4, 12)
INVERSE = np.linalg.inv(GENERATOR)


def encode(point: Array, q: int) -> Digits:
    """Return the digits G^-1 t mod q of lattice points t."""
    coefficients = np.rint(point.astype(np.float64) @ INVERSE.T).astype(np.int64)
    return (coefficients % q).astype(np.uint8)


def representative(y: Array, q: int) -> NDArray[np.float64]:
    """Return the member of y + qE8 in the Voronoi cell of qE8: y - q Q((y + SHIFT) / q)."""
    wide = y.astype(np.float64)
    return np.asarray(wide - q * closest_e8((wide + SHIFT) / q))


def decode(digits: Digits, q: int) -> NDArray[np.float64]:
    """Return the lattice point in the Voronoi cell of qE8 that carries the digits."""
    return representative(digits.astype(np.float64) @ GENERATOR.T, q)


def overload(point: Array, q: int) -> Array:
    """Return for lattice points t the lambda of E8 with representative t - q lambda."""
    gap = (point - representative(point, q)).astype(point.dtype)
    return np.asarray((2 * gap) * point.dtype.type(0.5 / q))


def closest_fixed_dn(x: Array) -> Array:
    """Return rounded coordinates, the first one rounded the other way if their sum is odd."""
    f = np.rint(x)
    is_odd = f.sum(axis=-1) % 2 == 1
    direction = np.where(x[..., 0] >= f[..., 0], 1, -1)
    f[..., 0] += np.where(is_odd, direction, 0)
    return f


def closest_fixed_e8(x: Array) -> Array:
    """Return a point of E8 near x: the nearer of the two that `closest_fixed_dn` finds."""
    integer, shifted = closest_fixed_dn(x), closest_fixed_dn(x - 0.5) + 0.5
    nearer = norm(x - shifted) < norm(x - integer)
    return np.where(nearer[..., None], shifted, integer)


def fixed_representative(y: Array, q: int) -> NDArray[np.float64]:
    """Return the member of y + qE8 that NestQuantM's decoder takes."""
    wide = y.astype(np.float64)
    return np.asarray(wide - q * closest_fixed_e8((wide + SHIFT) / q))


def fixed_decode(digits: Digits, q: int) -> NDArray[np.float64]:
    """Return the lattice point that carries the digits for NestQuantM's decoder."""
    return fixed_representative(digits.astype(np.float64) @ GENERATOR.T, q)


def fixed_overload(point: Array, q: int) -> Array:
    """Return what `overload` does for NestQuantM."""
    gap = (point - fixed_representative(point, q)).astype(point.dtype)
    return np.asarray((2 * gap) * point.dtype.type(0.5 / q))


def box_faces(point: Array, q: int) -> tuple[Array, Array]:
    """Return the half widths of the box that holds NestQuantM's cell, and where t is beyond it.

    The box is -q <= t_0 < q, -q/2 <= t_i < q/2; beyond it is 1 or -1, else 0.
    """
    half = np.full(8, q / 2, point.dtype)
    half[0] = q
    return half, ((point >= half) * 1 - (point < -half) * 1).astype(point.dtype)
