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
from latticeq.simd import argmax, magnitude, onehot, parity_bits, rint, select, sign, to_int

__all__ = ["LIMIT", "checked", "closest_point", "closest_point_lanes", "float_rows", "range_error"]

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
    # The sign of an error of zero is plus: x - rint(x) is +0 then, also for x = -0.
    return select(onehot(argmax(magnitude(error))) & odd, point + sign(error), point)


def float_rows(x: Any, n: int | None) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Return `x` as contiguous rows of float32 or float64, and its shape.

    Parameters
    ----------
    x : array_like, shape (..., n)
    n : int or None
        The length that the last axis must have; None for any.

    Raises
    ------
    InputError
        If there is no axis or the last one is not `n`.
    """
    array = np.asarray(x)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim == 0 or (n is not None and array.shape[-1] != n):
        wanted = "(..., n)" if n is None else f"(..., {n})"
        raise InputError(f"x has shape {array.shape}; it must be {wanted}")
    return np.ascontiguousarray(array).reshape(-1, array.shape[-1]), array.shape


def range_error(rows: NDArray[Any]) -> InputError:
    """Return the error that says why rows have no closest points."""
    return InputError(
        f"x holds NaN, infinity or a magnitude beyond {LIMIT[rows.dtype.name]:.0f}; closest points "
        f"of {rows.dtype.name} rows need finite values within it: check or rescale x"
    )


def checked(x: Any, n: int | None) -> tuple[NDArray[Any], tuple[int, ...]]:
    """Return what `float_rows` returns, refusing also what has no closest point.

    Raises
    ------
    InputError
        As `float_rows`, or if `x` holds NaN, infinity or a magnitude beyond the limit.
    """
    rows, shape = float_rows(x, n)
    limit = LIMIT[rows.dtype.name]
    if rows.size and not (rows.max() <= limit and rows.min() >= -limit):
        raise range_error(rows)
    return rows, shape
