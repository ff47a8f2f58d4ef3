r"""The lattice D_n: integer vectors whose entries add up to an even number.

Closest point (Conway and Sloane, *Fast quantizing and decoding algorithms for lattice quantizers
and codes*, IEEE Trans. IT 28(2), 1982, section IV): round every coordinate; if the sum came out
odd, round the coordinate with the largest rounding error the other way.

Ties are defined. A half rounds to the even integer; of equal rounding errors the first coordinate
is re-rounded; a coordinate without error is re-rounded upwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.jit import kernel
from latticeq.simd import argmax, filled, magnitude, onehot, parity_bits, rint, select, to_int

__all__ = ["checked", "closest_point", "closest_point_lanes"]

LIMIT = {"float32": 2.0**20, "float64": 2.0**30}
"""The largest magnitude at which coordinates still tell halves apart and sums fit int32."""


def closest_point(x: Any) -> NDArray[Any]:
    """Return the closest point of D_n to each row.

    Parameters
    ----------
    x : array_like, shape (..., n)
        float32 or float64 (other dtypes become float64), magnitudes up to 2**20 or 2**30.

    Returns
    -------
    ndarray, shape (..., n)
        Points of D_n in the dtype of `x`.

    Raises
    ------
    InputError
        If `x` has no axis, or holds NaN, infinity or a value beyond the limit.

    References
    ----------
    Conway and Sloane, IEEE Trans. IT 28(2), 1982, section IV.

    Examples
    --------
    The sum of a closest point is even, and it moves with translations by lattice vectors:

    >>> import numpy as np
    >>> x = np.array([0.6, 0.2, -1.3])
    >>> closest_point(x)
    array([ 1.,  0., -1.])
    >>> bool(np.all(closest_point(x + [1, 1, 0]) == closest_point(x) + [1, 1, 0]))
    True
    """
    rows, shape = checked(x, None)
    out = np.empty_like(rows)
    _closest_points(rows, out)
    return out.reshape(shape)


@kernel
def _closest_points(x: Any, out: Any) -> None:
    for row in range(len(x)):
        worst, error, odd = 0, -1.0, np.int64(0)
        for i in range(x.shape[1]):
            out[row, i] = np.rint(x[row, i])
            odd ^= np.int64(out[row, i]) & 1
            if abs(x[row, i] - out[row, i]) > error:
                worst, error = i, abs(x[row, i] - out[row, i])
        if odd:
            out[row, worst] += 1 if x[row, worst] >= out[row, worst] else -1


@kernel(inline=True)
def closest_point_lanes(x: Any) -> Any:
    """Return the closest points of D_8 to sixteen blocks, one a lane."""
    point = rint(x)
    error = x - point
    odd = (parity_bits(to_int(point)) & 1) == 1
    step = select(error >= 0, filled(1, x), -1)
    flipped = select(onehot(argmax(magnitude(error))), point + step, point)
    return select(odd, flipped, point)


def checked(x: Any, n: int | None) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Return `x` as contiguous rows of floats, and its shape; refuse what has no closest point.

    Parameters
    ----------
    x : array_like, shape (..., n)
    n : int or None
        The length that the last axis must have; None for any.

    Raises
    ------
    InputError
        If the last axis is not `n`, or `x` holds NaN, infinity or a magnitude beyond the limit.
    """
    array = np.asarray(x)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim == 0 or (n is not None and array.shape[-1] != n):
        wanted = "(..., n)" if n is None else f"(..., {n})"
        raise InputError(f"x has shape {array.shape}; it must be {wanted}")
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1])
    limit = LIMIT[array.dtype.name]
    if array.size and not (array.max() <= limit and array.min() >= -limit):
        raise InputError(
            f"x holds NaN, infinity or a magnitude beyond {limit:.0f}; closest points of "
            f"{array.dtype.name} rows need finite values within it: check or rescale x"
        )
    return rows, array.shape
