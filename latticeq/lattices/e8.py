r"""The Gosset lattice E8 = D8 ∪ (D8 + ½·1), the densest packing in eight dimensions.

It is even and unimodular: every norm is an even integer and the determinant is 1. In doubled
coordinates every point is an integer vector whose entries are all even or all odd and whose sum is
divisible by 4. Its 240 shortest vectors, the roots, have norm 2 and are also its Voronoi-relevant
vectors, so p is a closest point of x if and only if (x − p)·r ≤ 1 for every root r: a complete
certificate in 240 products.

Closest point (Conway and Sloane, IEEE Trans. IT 28(2), 1982, section V): the closest point of D8,
and that of D8 + ½·1; the nearer of the two. Of equally near ones the integer point is taken.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel
from latticeq.lattices.dn import LIMIT, closest_point_lanes, float_rows, range_error
from latticeq.simd import any_lane, load_blocks, magnitude, select, store_blocks, to_int, total

__all__ = [
    "COVERING_RADIUS",
    "NORMALIZED_SECOND_MOMENT",
    "PACKING_RADIUS",
    "closest_point",
    "generator_matrix",
    "roots",
]

PACKING_RADIUS = 0.5**0.5
COVERING_RADIUS = 1.0
NORMALIZED_SECOND_MOMENT = 929 / 12960
GROUP = 128
"""Numbers in one step of the kernel: sixteen blocks of eight."""


def generator_matrix() -> NDArray[np.float64]:
    """Return the generator matrix of E8 whose *columns* are the basis vectors.

    Column 0 is 2·e_0, column j is e_j − e_{j−1} for j = 1..6, column 7 is ½·1.

    References
    ----------
    Savkin et al., *NestQuant*, arXiv 2502.09720, section 4.

    Examples
    --------
    The lattice is unimodular:

    >>> round(float(np.linalg.det(generator_matrix())), 12)
    1.0
    """
    basis = np.zeros((8, 8))
    basis[0, 0] = 2.0
    for j in range(1, 7):
        basis[j, j], basis[j - 1, j] = 1.0, -1.0
    basis[:, 7] = 0.5
    return basis


@cache
def roots() -> NDArray[np.float64]:
    """Return the 240 roots of E8, shape (240, 8): the vectors of norm 2.

    112 are (±1, ±1, 0⁶) in any order, 128 are (±½)⁸ with an even number of minus signs.

    Examples
    --------
    >>> roots().shape, set((roots() ** 2).sum(1).tolist())
    ((240, 8), {2.0})
    """
    integer = np.zeros((112, 8))
    places = product(combinations(range(8), 2), product((1.0, -1.0), repeat=2))
    for row, ((i, j), (a, b)) in zip(integer, places, strict=True):
        row[i], row[j] = a, b
    signs = np.array(list(product((0.5, -0.5), repeat=8)))
    half = signs[(signs < 0).sum(1) % 2 == 0]
    both = np.concatenate([integer, half])
    both.flags.writeable = False
    return both


def closest_point(x: Any) -> NDArray[Any]:
    """Return the closest point of E8 to each block of eight.

    Parameters
    ----------
    x : array_like, shape (..., 8)
        float32 or float64 (other dtypes become float64), magnitudes up to 2**20 or 2**30.

    Returns
    -------
    ndarray, shape (..., 8)
        Points of E8 in the dtype of `x`, exact: multiples of a half.

    Raises
    ------
    InputError
        If the last axis is not 8, or `x` holds NaN, infinity or a value beyond the limit.

    Notes
    -----
    The ties of `latticeq.lattices.dn` hold in each half; between halves the integer point wins.

    References
    ----------
    Conway and Sloane, IEEE Trans. IT 28(2), 1982, section V.

    Examples
    --------
    No root comes nearer to what is left than the origin does:

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1000, 8))
    >>> left = x - closest_point(x)
    >>> bool((left @ roots().T <= 1 + 1e-12).all())
    True
    """
    rows, shape = float_rows(x, 8)
    short = -len(rows) % 16
    padded = np.concatenate([rows, np.zeros((short, 8), rows.dtype)]) if short else rows
    out = np.empty_like(padded)
    if not _closest_points(padded, out, LIMIT[rows.dtype.name]):
        raise range_error(rows)
    return out[: len(rows)].reshape(shape)


@kernel
def _closest_points(x: Any, out: Any, limit: float) -> bool:
    """Fill `out`; give up and tell so at a number beyond the limit, which NaN is too."""
    for first in range(0, x.size, GROUP):
        blocks = load_blocks(x, first)
        within = total(to_int(magnitude(blocks) <= limit))
        if any_lane(within < 8):
            return False
        store_blocks(out, first, closest_point_e8_lanes(blocks))
    return True


@kernel(inline=True)
def closest_point_e8_lanes(x: Any) -> Any:
    """Return the closest points of E8 to sixteen blocks, one a lane."""
    integer = closest_point_lanes(x)
    half = closest_point_lanes(x - 0.5) + 0.5
    to_integer, to_half = x - integer, x - half
    nearer = total(to_half * to_half) < total(to_integer * to_integer)
    return select(nearer, half, integer)
