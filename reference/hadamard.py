"""Hadamard matrices by the definition: dense, slow, and written to be read.

A Hadamard matrix of order n has entries +1 and -1 and orthogonal rows, M M^T = n I. Two sources:

Sylvester (1867): M_1 = [1], M_2n = [[M_n, M_n], [M_n, -M_n]].

Paley (1933), from the squares of a finite field GF(q), q an odd prime power. With chi(a) = 0, 1, -1
for zero, a nonzero square, anything else, and Q[i, j] = chi(a_i - a_j):

- first kind, q = 3 mod 4, order q + 1:   M = I + [[0, 1], [-1, Q]]
- second kind, q = 1 mod 4, order 2(q + 1): in S = [[0, 1], [1, Q]] every 0 becomes [[1, -1], [-1,
  -1]] and every +-1 becomes +-[[1, 1], [1, -1]].

The Kronecker product of two Hadamard matrices is one again: that gives every order m 2^k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GaloisField",
    "hadamard_matrix",
    "hadamard_transform",
    "paley_matrix",
    "sylvester_matrix",
]


class GaloisField:
    """GF(p^e): elements 0 .. p^e - 1, whose base-p digit i is the coefficient of t^i.

    The modulus is the first monic polynomial of degree e (ordered by its other coefficients, read
    as a base-p number) that makes t a generator: t, t^2, .. run through all nonzero elements. For e
    = 1 that is t - g with g a primitive root mod p.
    """

    def __init__(self, p: int, e: int) -> None:
        self.p, self.e = p, e
        self.q: int = p**e
        for low in range(self.q):
            self.modulus = [*self.digits(low), 1]
            if self._t_generates():
                return
        raise ValueError(f"GF({p}^{e}): {p} is not a prime")

    def digits(self, a: int) -> list[int]:
        """Return the e coefficients of element a, lowest first."""
        return [a // self.p**i % self.p for i in range(self.e)]

    def number(self, digits: list[int]) -> int:
        """Return the element with these coefficients."""
        return sum(digit * self.p**i for i, digit in enumerate(digits))

    def subtract(self, a: int, b: int) -> int:
        """Return a - b, coefficient by coefficient mod p."""
        pairs = zip(self.digits(a), self.digits(b), strict=True)
        return self.number([(x - y) % self.p for x, y in pairs])

    def multiply(self, a: int, b: int) -> int:
        """Return a b: the product of polynomials, reduced by the modulus from the top down."""
        product = [0] * (2 * self.e - 1)
        for i, x in enumerate(self.digits(a)):
            for j, y in enumerate(self.digits(b)):
                product[i + j] += x * y
        for top in range(len(product) - 1, self.e - 1, -1):
            quotient = product[top]
            for i, c in enumerate(self.modulus):
                product[top - self.e + i] -= quotient * c
        return self.number([x % self.p for x in product[: self.e]])

    def squares(self) -> set[int]:
        """Return the nonzero squares, by squaring every nonzero element."""
        return {self.multiply(a, a) for a in range(1, self.q)}

    def _t_generates(self) -> bool:
        # For e = 1 the polynomial t is the number that t - modulus leaves behind.
        t = self.p if self.e > 1 else -self.modulus[0] % self.p
        seen: set[int] = set()
        power = 1
        while power != 0 and power not in seen:
            seen.add(power)
            power = self.multiply(power, t)
        return len(seen) == self.q - 1


def sylvester_matrix(n: int) -> NDArray[np.int64]:
    """Return Sylvester's matrix of order n, a power of two."""
    matrix = np.ones((1, 1), np.int64)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def paley_matrix(p: int, e: int) -> NDArray[np.int64]:
    """Return Paley's matrix over GF(p^e): order q + 1 if q = 3 mod 4, 2(q + 1) if q = 1 mod 4."""
    field = GaloisField(p, e)
    q, squares = field.q, field.squares()
    chi = np.array([0 if a == 0 else 1 if a in squares else -1 for a in range(q)])
    s = np.ones((q + 1, q + 1), np.int64)
    s[0, 0] = 0
    s[1:, 1:] = [[chi[field.subtract(a, b)] for b in range(q)] for a in range(q)]
    if q % 4 == 3:
        s[1:, 0] = -1
        return s + np.eye(q + 1, dtype=np.int64)
    pieces = {0: [[1, -1], [-1, -1]], 1: [[1, 1], [1, -1]], -1: [[-1, -1], [-1, 1]]}
    return np.block([[np.array(pieces[int(entry)]) for entry in row] for row in s])


def hadamard_matrix(n: int) -> NDArray[np.int64]:
    """Return the Hadamard matrix of order n with the smallest Paley factor, to the left.

    At one order the first kind goes before the second.

    Raises
    ------
    ValueError
        If no such matrix exists.
    """
    powers_of_two = [2**k for k in range(n.bit_length()) if n % 2**k == 0]
    for power in reversed(powers_of_two):
        m = n // power
        if m == 1:
            return sylvester_matrix(n)
        for q in (m - 1, m // 2 - 1):
            field = _prime_power(q)
            if m % 4 == 0 and field is not None and (q % 4 == 3) == (q == m - 1):
                return np.kron(paley_matrix(*field), sylvester_matrix(power))
    raise ValueError(f"neither Sylvester nor Paley gives a Hadamard matrix of order {n}")


def _prime_power(q: int) -> tuple[int, int] | None:
    """Return (p, e) with q = p^e and p prime, or None, by trying every p."""
    for p in range(2, q + 1):
        if all(p % d for d in range(2, p)):
            for e in range(1, q.bit_length() + 1):
                if p**e == q:
                    return p, e
    return None


def hadamard_transform(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return H x along the last axis, H the Hadamard matrix over sqrt(n): orthonormal."""
    n = x.shape[-1]
    return np.asarray(x @ hadamard_matrix(n).T / np.sqrt(n))
