"""Orthonormal Hadamard transforms: spread a vector's energy evenly over its coordinates.

H is n x n with all entries +-1/sqrt(n) and H H^T = I. For n = m 2^k it is the Kronecker product::

    H = (P x S) / sqrt(n),    P = Paley's matrix of order m,    S = Sylvester's of order 2^k

with the smallest m that works (`hadamard_factors`), so that most of the work is butterflies. A row
is an m x 2^k matrix X in C order and its transform is P X S:

- *P from the left*: rows of X are taken four at a time. Their 16 signed sums +-a +-b +-c +-d are
  tabulated once, and each of the m outputs adds one of them: m/4 additions an entry instead of m
  multiplications. `hadamard_codes` holds which one.
- *S from the right*: k butterfly stages in place, from the highest bit of the column's index to the
  lowest. Vectors are sixteen neighbouring columns, so all stages but the last four add and subtract
  whole vectors.

The kernels are in `latticeq.transforms.hadamard_kernels`, and so is the order of additions, which
fixes every bit of a result.

One row takes the same steps alone and in a batch: results do not depend on batch size or threads.

Error: with u = 2^-24 (float32) or 2^-53 (float64), each output is within::

    (m/16 + k + 10) u ||x||_1 / sqrt(n)

of the exact product, to first order in u and barring underflow: at most that many roundings lie
between an input and an output.

References
----------
J. J. Sylvester, Phil. Mag. 34 (1867); R. E. A. C. Paley, J. Math. Phys. 12 (1933), 311-320; the
tables of partial sums are those of Arlazarov, Dinic, Kronrod and Faradzev (1970).
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.jit import kernel, prange
from latticeq.transforms.hadamard_kernels import (
    hadamard_row,
    hadamard_row_in,
    row_memory,
)
from latticeq.transforms.paley import is_paley_order, paley_matrix

__all__ = [
    "hadamard",
    "hadamard_codes",
    "hadamard_factors",
    "hadamard_inverse",
    "hadamard_matrix",
    "largest_block",
]

Float = TypeVar("Float", np.float32, np.float64)

LARGEST_SMALL_ORDER = 1024
"""The largest Paley factor m that is built: beyond it a transform is no longer fast."""

PARALLEL_ENTRIES = 1 << 15
"""Smaller inputs run on one thread: starting the others costs about as much as the work."""


@cache
def hadamard_factors(n: int) -> tuple[int, int] | None:
    """Return ``(m, k)`` with ``n == m * 2**k``, m the smallest order that can be built, or None.

    Examples
    --------
    >>> [hadamard_factors(n) for n in (4096, 576, 1536, 11008, 92)]
    [(1, 12), (36, 4), (12, 7), (344, 5), None]
    """
    if n < 1:
        return None
    odd = n // (n & -n)
    m = odd
    while n % m == 0 and m <= LARGEST_SMALL_ORDER:
        if m == 1 or is_paley_order(m):
            return m, (n // m).bit_length() - 1
        m *= 2
    return None


@cache
def largest_block(n: int) -> int:
    """Return the largest divisor of n for which `hadamard` works: n itself, if it does.

    Examples
    --------
    >>> largest_block(576), largest_block(92), largest_block(15)
    (576, 4, 1)
    """
    return next(b for b in range(n, 0, -1) if n % b == 0 and hadamard_factors(b) is not None)


def hadamard_matrix(n: int) -> NDArray[np.float64]:
    """Return the dense matrix H that `hadamard` applies, for tests and for learning.

    Parameters
    ----------
    n : int
        A size for which `hadamard_factors` is not None.

    Returns
    -------
    ndarray of float64, shape (n, n)

    Raises
    ------
    InputError
        If there is no such matrix here.

    Examples
    --------
    >>> H = hadamard_matrix(12)
    >>> np.allclose(H @ H.T, np.eye(12))
    True
    """
    m, k = _factors_or_error(n)
    matrix = np.ones((1, 1)) if m == 1 else paley_matrix(m).astype(np.float64)
    for _ in range(k):
        matrix = np.kron(matrix, np.array([[1.0, 1.0], [1.0, -1.0]]))
    return np.asarray(matrix / np.sqrt(n))


def hadamard(x: NDArray[Float], out: NDArray[Float] | None = None) -> NDArray[Float]:
    """Apply H along the last axis: ``x @ hadamard_matrix(n).T`` in O(n (m/4 + log n)) a row.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (..., n)
        Any layout; contiguous arrays are read in place.
    out : ndarray, optional
        C-contiguous array of x's shape and type for the result; may be x itself.

    Returns
    -------
    ndarray
        `out`, or a new array of x's shape and type.

    Raises
    ------
    InputError
        If n has no Hadamard matrix here, or x or `out` has another type, shape or layout.

    Examples
    --------
    >>> x = np.arange(24.0).reshape(2, 12)
    >>> np.allclose(hadamard(x), x @ hadamard_matrix(12).T)
    True
    """
    return _transform(x, out, False)


def hadamard_inverse(x: NDArray[Float], out: NDArray[Float] | None = None) -> NDArray[Float]:
    """Apply the transpose of H, which is its inverse, along the last axis.

    H is symmetric only when its Paley factor is: always use this function to go back.
    Parameters, result and errors are those of `hadamard`.

    Examples
    --------
    >>> x = np.arange(12.0)
    >>> np.allclose(hadamard_inverse(hadamard(x)), x), np.allclose(hadamard(hadamard(x)), x)
    (True, False)
    """
    return _transform(x, out, True)


def hadamard_codes(n: int, transpose: bool = False) -> NDArray[np.uint8]:
    """Return the Paley factor of size n in the form that `hadamard_row` reads.

    Parameters
    ----------
    n : int
        A size for which `hadamard_factors` is not None.
    transpose : bool
        True for the inverse transform.

    Returns
    -------
    ndarray of uint8, shape (m, m / 4); (1, 0) for a power of two
        Entry (r, g) has the signs of row r, columns 4g .. 4g + 3 as bits 3 .. 0, set for minus.

    Raises
    ------
    InputError
        If n has no Hadamard matrix here.
    """
    return _codes(_factors_or_error(n)[0], transpose)


@cache
def _codes(m: int, transpose: bool) -> NDArray[np.uint8]:
    if m == 1:
        return np.zeros((1, 0), np.uint8)
    matrix = paley_matrix(m).T if transpose else paley_matrix(m)
    minus = (matrix < 0).reshape(m, m // 4, 4)
    return np.ascontiguousarray(minus @ np.array([8, 4, 2, 1]), dtype=np.uint8)


def _factors_or_error(n: int) -> tuple[int, int]:
    factors = hadamard_factors(n)
    if factors is None:
        raise InputError(
            f"no Hadamard matrix of size {n} is built here: sizes are m * 2^k with m = 1 or a "
            f"Paley order up to {LARGEST_SMALL_ORDER}; use Rotation({n}), which rotates blocks of "
            f"{largest_block(n) if n > 0 else 1}"
        )
    return factors


def _transform(x: NDArray[Float], out: NDArray[Float] | None, transpose: bool) -> NDArray[Float]:
    if x.dtype not in (np.float32, np.float64):
        raise InputError(f"x has type {x.dtype}: convert it to float32 or float64 first")
    n = x.shape[-1] if x.ndim else 0
    codes = hadamard_codes(n, transpose)
    x = np.ascontiguousarray(x)
    if out is None:
        out = np.empty_like(x)
    elif out.shape != x.shape or out.dtype != x.dtype or not out.flags.c_contiguous:
        raise InputError(
            f"out is {out.dtype} {out.shape}: it must be a C-contiguous {x.dtype} array {x.shape}"
        )
    elif out is not x and np.may_share_memory(x, out):
        x = x.copy()
    if x.ndim == 1 and out is not x:
        hadamard_row(x, out, codes)
    elif x.size:
        rows = _rows_parallel if x.size >= PARALLEL_ENTRIES else _rows
        rows(x.reshape(-1, n), out.reshape(-1, n), codes, out is x)
    return out


@kernel
def _rows(x, out, codes, in_place):  # type: ignore[no-untyped-def]
    memory = row_memory(x, codes)
    copied = in_place and len(codes) > 1  # powers of two are transformed in place
    copy = np.empty(x.shape[1] if copied else 0, x.dtype)
    for i in range(x.shape[0]):
        if copied:
            copy[:] = x[i]
            hadamard_row_in(copy, out[i], codes, memory)
        else:
            hadamard_row_in(x[i], out[i], codes, memory)


@kernel(parallel=True)
def _rows_parallel(x, out, codes, in_place):  # type: ignore[no-untyped-def]
    step = max(1, PARALLEL_ENTRIES // 2 // x.shape[1])
    for i in prange(-(-x.shape[0] // step)):
        some = slice(step * i, step * (i + 1))
        _rows(x[some], out[some], codes, in_place)
