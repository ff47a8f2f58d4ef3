"""Second moments of a layer's inputs, gathered token by token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError, LatticeqError

__all__ = ["TOKENS", "Moment", "check_activations", "infinite_error"]

TOKENS = 2048
"""Whose products are added up in float32 before they join the sum in float64."""


class Moment:
    """The running mean of x yᵀ over tokens, for two inputs x and y of a layer.

    With y = x it is the Hessian of the layer, H = E[x xᵀ].

    Parameters
    ----------
    n : int
        Length of a token's activation.

    Notes
    -----
    Products of up to 2048 tokens are made in float32 by BLAS, half of them where y is x, and added
    in float64: memory is one n x n matrix of float64 and one of float32. The rounding, some 1e-6 of
    the diagonal, is far below any damping that is used.

    Examples
    --------
    >>> hessian = Moment(2)
    >>> hessian.update(np.array([[1.0, 2.0], [3.0, 0.0]], np.float32))
    >>> hessian.mean().tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """

    def __init__(self, n: int) -> None:
        self._sum = np.zeros((n, n))
        self.tokens = 0

    def update(self, x: NDArray[np.float32], y: NDArray[np.float32] | None = None) -> None:
        """Add tokens.

        Parameters
        ----------
        x : ndarray of float32, shape (T, n)
        y : ndarray of float32, shape (T, n), optional
            `x` by default.

        Raises
        ------
        InputError
            If a width is not n or the shapes differ.
        LatticeqError
            If an activation is NaN or infinite.
        """
        y = x if y is None else y
        check_activations(x, y, len(self._sum))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise infinite_error()
        for first in range(0, len(x), TOKENS):
            part = x[first : first + TOKENS]
            self._sum += part.T @ (part if y is x else y[first : first + TOKENS])
        self.tokens += len(x)

    def mean(self) -> NDArray[np.float64]:
        """Return E[x yᵀ], n x n.

        Raises
        ------
        LatticeqError
            If no token was added.
        """
        if not self.tokens:
            raise LatticeqError("no token was given to calibrate on")
        return self._sum / self.tokens


def check_activations(x: NDArray[np.float32], y: NDArray[np.float32], n: int) -> None:
    """Refuse tokens that have no moment of size n.

    Raises
    ------
    InputError
        If a width is not n or the shapes differ.
    """
    if x.ndim != 2 or x.shape[1] != n or y.shape != x.shape:
        raise InputError(f"activations are {x.shape} and {y.shape}; they must be (T, {n})")


def infinite_error() -> LatticeqError:
    """Return the error that says that activations are not finite."""
    return LatticeqError(
        "an activation is NaN or infinite; the float model itself fails on this text"
    )
