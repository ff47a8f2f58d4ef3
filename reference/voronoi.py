"""Nested Voronoi codes E8/qE8 and unions of them, as the papers write them.

Conway and Sloane, *A fast encoding method for lattice codes and quantizers*, IEEE Trans. IT 29(6),
1983; Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.

Notation: G generator matrix (columns are basis vectors), q nesting ratio, c digits in 0..q-1, Q
closest point, beta scale, t lattice point, r one of the 240 roots. Ties of the coarse lattice are
broken by shifting Q's argument with one fixed generic vector SHIFT: then the decoder's choice
depends on the coset alone.

Not in the papers: a block whose closest point is overloaded is drawn inside (`closest_inside`)
instead of given up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reference.e8 import GENERATOR, closest_e8, norm

Array = NDArray[np.floating]
Digits = NDArray[np.uint8]

# Generic: no signed sum of a subset vanishes, so no point of E8 + SHIFT lies on a boundary of q
# E8's cells; small: all entries together stay below the gap between unequal distances.
SHIFT = 2.0 ** -np.arange(4, 12)
INVERSE = np.linalg.inv(GENERATOR)
SHRINK = 0.98


def representative(y: Array, q: int) -> NDArray[np.float64]:
    """Return the member of y + qE8 in the Voronoi cell of qE8: y - q Q((y + SHIFT) / q)."""
    wide = y.astype(np.float64)
    return np.asarray(wide - q * closest_e8((wide + SHIFT) / q))


def encode(point: Array, q: int) -> Digits:
    """Return the digits G^-1 t mod q of lattice points t."""
    coefficients = np.rint(point.astype(np.float64) @ INVERSE.T).astype(np.int64)
    return (coefficients % q).astype(np.uint8)


def decode(digits: Digits, q: int) -> NDArray[np.float64]:
    """Return the lattice point in the Voronoi cell of qE8 that carries the digits."""
    return representative(digits.astype(np.float64) @ GENERATOR.T, q)


def gauge(y: Array) -> Array:
    """Return max y.r over the 240 roots r: y lies in q times the Voronoi cell iff gauge(y) <= q.

    Of the integer roots the best takes the two largest magnitudes; of the half-integer roots the
    one with y's own signs, or, when an odd number of them is negative, all but the smallest
    magnitude's.
    """
    a = np.sort(np.abs(y), axis=-1)
    total = np.abs(y[..., 0])
    for i in range(1, 8):
        total = total + np.abs(y[..., i])
    is_odd = (y < 0).sum(axis=-1) % 2 == 1
    half = y.dtype.type(0.5) * np.where(is_odd, total - 2 * a[..., 0], total)
    return np.asarray(np.maximum(a[..., 7] + a[..., 6], half))


def is_inside(point: Array, q: int) -> NDArray[np.bool_]:
    """Tell which lattice points decode to themselves: those that are not overloaded."""
    return np.asarray(gauge(point + SHIFT.astype(point.dtype)) < q)


def closest_inside(y: Array, q: int) -> Array:
    """Return a lattice point near y, shape (n, 8), that is not overloaded.

    It is Q(y) if that is inside. Else y is drawn back to the boundary of q times the cell, where
    its gauge is q, and from there towards the origin in steps of SHRINK, until Q of it is inside.
    """
    t = closest_e8(y)
    left = np.flatnonzero(~is_inside(t, q))
    factor = q / np.maximum(gauge(y[left]), q)
    while left.size:
        t[left] = closest_e8(y[left] * factor[:, None])
        still = ~is_inside(t[left], q)
        left, factor = left[still], factor[still] * y.dtype.type(SHRINK)
    return t


def encode_union(
    x: Array, q: int, betas: Sequence[float], selection: str = "opt"
) -> tuple[Digits, Digits, Array]:
    """Code blocks, shape (n, 8), with a union of scales: digits, scale indices, decoded values.

    Opt-beta keeps the scale with the least decoded squared error. First-beta keeps the smallest
    scale whose closest point is not overloaded, and if there is none, the largest, drawn inside.
    All arithmetic is in the dtype of x, 1 / beta included.
    """
    scales = np.asarray(betas, x.dtype)
    points = [closest_inside(x * (1 / beta), q) for beta in scales]
    if selection == "opt":
        costs = [norm(x - t * beta) for t, beta in zip(points, scales, strict=True)]
    else:
        costs = [1.0 - is_inside(closest_e8(x * (1 / beta)), q) for beta in scales]
        costs[-1] = 0.5 * costs[-1]
    index = np.argmin(costs, axis=0)  # the first of equals
    chosen = np.stack(points)[index, np.arange(len(x))]
    return encode(chosen, q), index.astype(np.uint8), chosen * scales[index][:, None]


def decode_union(digits: Digits, index: Digits, q: int, betas: Sequence[float]) -> Array:
    """Return the values that digits and scale indices stand for."""
    return np.asarray(decode(digits, q) * np.asarray(betas)[index][..., None])
