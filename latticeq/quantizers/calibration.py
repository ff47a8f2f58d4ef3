"""Second moments of a layer's inputs, gathered token by token in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError, LatticeqError

__all__ = ["Hessian"]


class Hessian:
    """The running mean of x xᵀ over tokens x.

    Parameters
    ----------
    n : int
        Length of a token's activation.

    Notes
    -----
    Memory is one n x n matrix of float64; a batch of T tokens costs T n² products (BLAS syrk).

    Examples
    --------
    >>> hessian = Hessian(2)
    >>> hessian.update(np.array([[1.0, 2.0], [3.0, 0.0]], np.float32))
    >>> hessian.mean().tolist()
    [[5.0, 1.0], [1.0, 2.0]]
    """

    def __init__(self, n: int) -> None:
        self._sum = np.zeros((n, n), order="F")
        self.tokens = 0

    def update(self, x: NDArray[np.floating]) -> None:
        """Add tokens.

        Parameters
        ----------
        x : ndarray, shape (T, n)

        Raises
        ------
        InputError
            If the width is not n.
        LatticeqError
            If an activation is NaN or infinite.
        """
        from scipy.linalg.blas import dsyrk

        if x.ndim != 2 or x.shape[1] != len(self._sum):
            raise InputError(f"activations are {x.shape}; they must be (T, {len(self._sum)})")
        if not np.isfinite(x).all():
            raise LatticeqError(
                "an activation is NaN or infinite; the float model itself fails on this text"
            )
        columns = x.astype(np.float64).T  # (n, T), Fortran order as BLAS wants it
        self._sum = dsyrk(1.0, columns, beta=1.0, c=self._sum, overwrite_c=True)
        self.tokens += len(x)

    def mean(self) -> NDArray[np.float64]:
        """Return E[x xᵀ], n x n, symmetric.

        Raises
        ------
        LatticeqError
            If no token was added.
        """
        if not self.tokens:
            raise LatticeqError("no token was given to calibrate on")
        upper = np.triu(self._sum)
        return (upper + np.triu(upper, 1).T) / self.tokens
