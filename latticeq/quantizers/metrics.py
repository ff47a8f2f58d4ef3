"""How far a quantized matrix is from the original, plainly and in the layer's own metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["OutputLoss", "relative_error"]


def relative_error(weights: NDArray[np.floating], quantized: NDArray[np.floating]) -> float:
    """Return ‖W − Ŵ‖² / ‖W‖²; 0 if both are zero.

    Examples
    --------
    >>> relative_error(np.ones((2, 8)), np.zeros((2, 8)))
    1.0
    """
    energy = float(np.sum(np.square(weights, dtype=np.float64)))
    lost = float(np.sum(np.square(weights - quantized, dtype=np.float64)))
    return lost / energy if energy else lost


class OutputLoss:
    """The share of a layer's output that a quantized matrix loses: the proxy loss.

    Called with Ŵ it returns tr(E H Eᵀ) / tr(W H Wᵀ), E = W − Ŵ; 0 if the layer's output is zero.

    Parameters
    ----------
    weights : ndarray, shape (M, N)
        W.
    hessian : ndarray of float64, shape (N, N)
        H = E[x xᵀ] of the layer's input, undamped.

    Notes
    -----
    Products are made in float32 and added in float64: four digits of the loss are right.

    References
    ----------
    Chee et al., *QuIP*, arXiv 2307.13304, equation 1.

    Examples
    --------
    With H = I it is the plain relative error:

    >>> w = np.random.default_rng(0).normal(size=(4, 8))
    >>> bool(np.isclose(OutputLoss(w, np.eye(8))(np.round(w)), relative_error(w, np.round(w))))
    True
    """

    def __init__(self, weights: NDArray[np.floating], hessian: NDArray[np.float64]) -> None:
        self._weights = np.asarray(weights, np.float32)
        self._hessian = hessian.astype(np.float32)
        self._energy = self._form(self._weights)

    def _form(self, rows: NDArray[np.float32]) -> float:
        return float(np.sum((rows @ self._hessian) * rows, dtype=np.float64))

    def __call__(self, quantized: NDArray[np.floating]) -> float:
        """Return the loss of Ŵ, shape (M, N)."""
        error = self._weights - np.asarray(quantized, np.float32)
        return self._form(error) / self._energy if self._energy else 0.0
