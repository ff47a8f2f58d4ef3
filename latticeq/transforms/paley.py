"""Hadamard matrices of the orders that powers of two miss, built from finite fields.

A Hadamard matrix of order m has entries +1 and -1 and ``M @ M.T == m * I``. Let chi be the
quadratic character of the field GF(q), q = p^e odd: 0 for 0, +1 for the other squares, -1 for the
rest; and let ``Q[i, j] = chi(a_i - a_j)`` over the q elements a_0 .. a_(q-1). Paley's constructions
are::

    q = 3 mod 4, order q + 1:     S = [[0, 1], [-1, Q]],  M = S + I
    q = 1 mod 4, order 2(q + 1):  S = [[0, 1], [ 1, Q]],  M = S x [[1, 1], [1, -1]]
                                                            + I x [[1, -1], [-1, -1]]

with x the Kronecker product. The first kind is not symmetric, the second is.

Element a_i is the polynomial whose coefficients are the base-p digits of i, lowest first. The field
is GF(p)[t] modulo the first monic polynomial of degree e in which t generates all q - 1 nonzero
elements, where polynomials are ordered by their low coefficients read as a base-p number. Rotated
weights on disk depend on this numbering: it must not change.

References
----------
R. E. A. C. Paley, *On orthogonal matrices*, J. Math. Phys. 12 (1933), 311-320.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "field_order",
    "is_paley_order",
    "jacobsthal_matrix",
    "paley_matrix",
    "quadratic_character",
]


def field_order(q: int) -> tuple[int, int] | None:
    """Return ``(p, e)`` with ``q == p**e`` and p prime, or None if no field has q elements.

    Examples
    --------
    >>> field_order(343), field_order(12)
    ((7, 3), None)
    """
    if q < 2:
        return None
    prime = next((p for p in range(2, int(q**0.5) + 1) if q % p == 0), q)
    exponent = 0
    while q % prime == 0:
        q //= prime
        exponent += 1
    return (prime, exponent) if q == 1 else None


def quadratic_character(q: int) -> NDArray[np.int8]:
    """Return chi over the elements of GF(q), q an odd prime power: 0, +1 (squares) or -1.

    A generator g reaches every nonzero element as a power, and the squares are its even powers.

    Parameters
    ----------
    q : int
        An odd prime power.

    Returns
    -------
    ndarray of int8, shape (q,)
        ``chi[i]`` for the element numbered i.

    Examples
    --------
    >>> quadratic_character(7).tolist()
    [0, 1, 1, -1, 1, -1, -1]
    """
    order = field_order(q)
    assert order is not None and q % 2 == 1, "callers ask for odd prime powers only"
    p, e = order
    for low_coefficients in range(q):
        powers = _powers_of_t(p, e, low_coefficients)
        if len(powers) == q - 1:
            character = np.zeros(q, np.int8)
            character[powers[0::2]] = 1
            character[powers[1::2]] = -1
            return character
    raise AssertionError("every finite field has a generator")


def _powers_of_t(p: int, e: int, low_coefficients: int) -> list[int]:
    """Return 1, t, t^2 .. until 1 or 0 comes, modulo t^e + c_(e-1) t^(e-1) + .. + c_0."""
    modulus = [low_coefficients // p**i % p for i in range(e)]
    powers: list[int] = []
    element = [1] + [0] * (e - 1)
    while any(element):
        number = sum(digit * p**i for i, digit in enumerate(element))
        if (powers and number == 1) or len(powers) == p**e:
            return powers
        powers.append(number)
        top = element[-1]
        shifted = [0, *element[:-1]]
        element = [(digit - top * c) % p for digit, c in zip(shifted, modulus, strict=True)]
    return []


def jacobsthal_matrix(q: int) -> NDArray[np.int8]:
    """Return ``Q[i, j] = chi(a_i - a_j)`` over GF(q), q an odd prime power: shape (q, q).

    Examples
    --------
    >>> Q = jacobsthal_matrix(9).astype(int)
    >>> np.array_equal(Q @ Q.T, 9 * np.eye(9) - np.ones((9, 9)))
    True
    """
    character = quadratic_character(q)
    p, e = field_order(q) or (q, 1)
    elements = np.arange(q)
    difference = np.zeros((q, q), np.int64)
    for i in range(e):
        digit = elements // p**i % p
        difference += (digit[:, None] - digit[None, :]) % p * p**i
    return character[difference]


def _field_of_order(m: int) -> int | None:
    """Return the q of the construction that gives order m, the first kind before the second."""
    if m % 4 != 0:
        return None
    if field_order(m - 1) is not None:  # m - 1 = 3 mod 4
        return m - 1
    q = m // 2 - 1
    return q if q % 4 == 1 and field_order(q) is not None else None


@cache
def is_paley_order(m: int) -> bool:
    """Tell whether `paley_matrix` can build order m.

    Examples
    --------
    >>> [m for m in range(100) if is_paley_order(m)]
    [4, 8, 12, 20, 24, 28, 32, 36, 44, 48, 52, 60, 68, 72, 76, 80, 84]
    """
    return _field_of_order(m) is not None


@cache
def paley_matrix(m: int) -> NDArray[np.int8]:
    """Return Paley's Hadamard matrix of order m, entries +1 and -1, read-only.

    Parameters
    ----------
    m : int
        An order for which `is_paley_order` is true.

    Returns
    -------
    ndarray of int8, shape (m, m)

    Examples
    --------
    >>> M = paley_matrix(28).astype(int)
    >>> np.array_equal(M @ M.T, 28 * np.eye(28))
    True
    """
    q = _field_of_order(m)
    assert q is not None, "callers ask is_paley_order first"
    skew = np.ones((q + 1, q + 1), np.int8)
    skew[0, 0] = 0
    skew[1:, 1:] = jacobsthal_matrix(q)
    if q % 4 == 3:
        skew[1:, 0] = -1
        matrix = skew + np.eye(q + 1, dtype=np.int8)
    else:
        matrix = np.kron(skew, np.array([[1, 1], [1, -1]], np.int8))
        matrix += np.kron(np.eye(q + 1, dtype=np.int8), np.array([[1, -1], [-1, -1]], np.int8))
    matrix.flags.writeable = False
    return matrix
