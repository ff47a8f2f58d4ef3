"""Nested Voronoi codes E8/qE8 and unions of them, as the papers write them.

Conway and Sloane, *A fast encoding method for lattice codes and quantizers*, IEEE Trans. IT 29(6),
1983; Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.

Notation: G generator matrix (columns are basis vectors), q nesting ratio, c digits in 0..q-1, Q
closest point, beta scale. Ties of the coarse lattice are broken by shifting Q's argument with one
fixed generic vector SHIFT: then the decoder's choice depends on the coset alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.e8 import GENERATOR, closest_e8, norm

Array = NDArray[np.floating]

# Generic: no signed sum of a subset vanishes, so no point of E8 + SHIFT lies on a boundary of q E8's
# cells; small: all entries together stay below the gap between unequal distances.
SHIFT = 2.0 ** -np.arange(4, 12)
INVERSE = np.linalg.inv(GENERATOR)
SHRINK = 0.97


def representative(y: Array, q: int) -> Array:
    """Return the member of y + qE8 in the Voronoi cell of qE8: y - q Q((y + SHIFT) / q)."""
    wide = y.astype(np.float64)
    return (wide - q * closest_e8((wide + SHIFT) / q)).astype(y.dtype)


def encode(point: Array, q: int) -> NDArray[np.uint8]:
    """Return the digits G^-1 t mod q of lattice points t."""
    coefficients = np.rint(point.astype(np.float64) @ INVERSE.T).astype(np.int64)
    return (coefficients % q).astype(np.uint8)


def decode(digits: NDArray[np.uint8], q: int) -> NDArray[np.float64]:
    """Return the lattice point in the Voronoi cell of qE8 that carries the digits."""
    return representative(digits.astype(np.float64) @ GENERATOR.T, q)


def gauge(y: Array) -> Array:
    """Return max y.r over the 240 roots r: y lies in q times the Voronoi cell iff gauge(y) <= q.

    Of the integer roots the best takes the two largest magnitudes; of the half-integer roots the one
    with y's own signs, or, when an odd number of them is negative, all but the smallest magnitude's.
    """
    a = np.sort(np.abs(y), axis=-1)
    total = np.abs(y[..., 0])
    for i in range(1, 8):
        total = total + np.abs(y[..., i])
    is_odd = (y < 0).sum(axis=-1) % 2 == 1
    half = y.dtype.type(0.5) * np.where(is_odd, total - 2 * a[..., 0], total)
    return np.maximum(a[..., 7] + a[..., 6], half)


def is_inside(point: Array, q: int) -> NDArray[np.bool_]:
    """Tell which lattice points decode to themselves: those that are not overloaded."""
    return gauge(point + SHIFT.astype(point.dtype)) < q
