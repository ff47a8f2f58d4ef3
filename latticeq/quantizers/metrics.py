"""How far a quantized matrix is from the original, plainly and in the layer's own metric."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["proxy_loss", "relative_error"]


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


def proxy_loss(
    weights: NDArray[np.floating], quantized: NDArray[np.floating], hessian: NDArray[np.float64]
) -> float:
    """Return tr(E H Eᵀ) / tr(W H Wᵀ) with E = W − Ŵ: the share of the layer's output that is lost.

    Parameters
    ----------
    weights, quantized : ndarray, shape (M, N)
    hessian : ndarray of float64, shape (N, N)
        E[x xᵀ] of the layer's input, undamped.

    Returns
    -------
    float
        0 if the layer's output is zero.

    References
    ----------
    Chee et al., *QuIP*, arXiv 2307.13304, equation 1.

    Examples
    --------
    With H = I it is the plain relative error:

    >>> w = np.random.default_rng(0).normal(size=(4, 8))
    >>> bool(np.isclose(proxy_loss(w, np.round(w), np.eye(8)), relative_error(w, np.round(w))))
    True
    """
    whole = np.asarray(weights, np.float64)
    error = whole - quantized
    energy = float(np.vdot(whole @ hessian, whole))
    return float(np.vdot(error @ hessian, error)) / energy if energy else 0.0
