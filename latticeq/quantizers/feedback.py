r"""LDLQ: error feedback that minds the Hessian, for any quantizer of column blocks.

A layer y = W x loses tr((W − Ŵ) H (W − Ŵ)ᵀ) on average when its weights become Ŵ, with H = E[x xᵀ].
Factor H = L D Lᵀ with L unit block lower triangular, and quantize from the last block of columns to
the first, each time correcting the target for the errors already made:

    T_c = W_c + (W_{>c} − Ŵ_{>c}) L[>c, c],     Ŵ_c = quantize(T_c).

Then the loss is Σ_c tr(E_c D_c E_cᵀ) with E_c = T_c − Ŵ_c the bare quantization errors: what
correlation allows to cancel is cancelled. With H = I nothing is corrected and Ŵ is plain
quantization.

Sources: Chee et al., *QuIP*, arXiv 2307.13304, section 3; the block form is that of Tseng et al.,
*QuIP#*, arXiv 2402.04396, section 4, and of NestQuant, arXiv 2502.09720, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError, LatticeqError
from latticeq.transforms.rotation import Rotation

__all__ = [
    "DAMPING",
    "DAMPING_GROWTH",
    "DAMPING_LIMIT",
    "PANEL",
    "Factor",
    "factor",
    "ldlq",
    "raised_damping",
    "rotated_factor",
]

DAMPING = 1e-2
DAMPING_GROWTH = 10.0
DAMPING_LIMIT = 1.0
PANEL = 128
"""Columns whose errors are gathered before they are multiplied into all the columns before."""


@dataclass(frozen=True)
class Factor:
    """The block LDL factor of a damped Hessian.

    Parameters
    ----------
    lower : ndarray of float64, shape (N, N)
        L, unit block lower triangular.
    block : int
        Size of its blocks.
    damping : float
        The damping that was used: λ in H + λ·mean(diag H)·I.
    """

    lower: NDArray[np.float64]
    block: int
    damping: float


def factor(hessian: NDArray[np.float64], block: int = 8, damping: float = DAMPING) -> Factor:
    """Factor H + λ·mean(diag H)·I.

    If the Cholesky factorisation fails, λ is raised tenfold, up to 1; the λ used is recorded.

    Parameters
    ----------
    hessian : ndarray of float64, shape (N, N)
        Symmetric, positive semidefinite.
    block : int
        Columns that are quantized together.
    damping : float
        λ, at least 0.

    Raises
    ------
    InputError
        If the shapes do not fit, λ is negative or not finite, or an entry is not finite.
    LatticeqError
        If no damping up to the limit makes H positive definite.

    Examples
    --------
    >>> factor(np.eye(16)).lower.tolist() == np.eye(16).tolist()
    True
    """
    n = len(hessian)
    if hessian.shape != (n, n) or n % block:
        raise InputError(
            f"the Hessian has shape {hessian.shape}; it must be square and its size a multiple of "
            f"{block}"
        )
    if not 0 <= damping < np.inf:
        raise InputError(f"damping is {damping}; it must be a number of at least 0")
    if not np.isfinite(hessian).all():
        raise InputError("the Hessian is not finite; look for NaN in the calibration activations")
    mean = float(np.mean(np.diag(hessian))) or 1.0
    used = damping
    while True:
        damped = hessian.copy()
        damped[np.diag_indices(n)] += used * mean
        try:
            cholesky = np.linalg.cholesky(damped).astype(np.float64, copy=False)
            return Factor(_unit_lower(cholesky, block), block, used)
        except np.linalg.LinAlgError:
            rank = partial(np.linalg.matrix_rank, hessian, hermitian=True)
            used = raised_damping(used, n, rank)


def raised_damping(used: float, n: int, rank: Callable[[], Any]) -> float:
    """Return the damping to try where a Hessian of size n has no factor with the one that was used.

    Parameters
    ----------
    used : float
    n : int
    rank : callable
        Returns the Hessian's rank, for the error.

    Raises
    ------
    LatticeqError
        If the limit was used.

    Examples
    --------
    >>> raised_damping(0.0, 8, int), raised_damping(0.01, 8, int)
    (0.0001, 0.1)
    """
    if used >= DAMPING_LIMIT:
        raise LatticeqError(
            f"the Hessian of size {n} and rank {int(rank())} has no Cholesky factor even with "
            f"damping {used:g}; calibrate on more tokens or use --feedback none"
        ) from None
    return min(max(used * DAMPING_GROWTH, 1e-4), DAMPING_LIMIT)


def rotated_factor(
    hessian: NDArray[np.float64] | Factor,
    rotation_of: Callable[[int], Rotation],
    block: int,
    damping: float,
) -> Factor:
    """Return the factor of R H Rᵀ, or what is given if that is a factor of this kind already.

    Parameters
    ----------
    hessian : ndarray of float64, shape (N, N), or Factor
    rotation_of : callable
        Returns the rotation R of rows of a length.
    block, damping
        Of `factor`, whose errors these are.

    Raises
    ------
    InputError
        If the factor that is given is of other blocks.
    """
    if not isinstance(hessian, Factor):
        return factor(rotation_of(len(hessian)).apply_both_sides(hessian), block, damping)
    if hessian.block != block:
        raise InputError(
            f"the factor is of blocks of {hessian.block}; this quantizer needs blocks of {block}"
        )
    return hessian


def _unit_lower(cholesky: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return L with L[:, c] = C[:, c] C_cc^-1 for each block column c of a Cholesky factor C."""
    lower = np.zeros_like(cholesky)
    for at in range(0, len(cholesky), block):
        columns = slice(at, at + block)
        corner = cholesky[columns, columns]
        lower[at + block :, columns] = np.linalg.solve(
            corner.T, cholesky[at + block :, columns].T
        ).T
        lower[columns, columns] = np.eye(block)
    return lower


def ldlq(
    weights: NDArray[np.float64],
    factor: Factor,
    quantize_columns: Callable[[slice, NDArray[np.float64]], NDArray[np.floating]],
) -> NDArray[np.float64]:
    """Quantize a matrix block by block, feeding errors back.

    Parameters
    ----------
    weights : ndarray of float64, shape (M, N)
    factor : Factor
        Of the Hessian of the layer's input, N x N.
    quantize_columns : callable
        Called with a slice of columns and their targets (M, block), last block first; returns the
        values that stand for them.

    Returns
    -------
    ndarray of float64, shape (M, N)
        The quantized weights.

    Raises
    ------
    InputError
        If the factor is of another size.
    """
    n, block, lower = weights.shape[1], factor.block, factor.lower
    if len(lower) != n:
        raise InputError(f"the Hessian is of size {len(lower)}; a matrix {weights.shape} needs {n}")
    target, quantized = weights.copy(), np.empty_like(weights)
    error = np.zeros_like(weights)  # of the weights themselves, not of the corrected targets
    panel = max(block, PANEL - PANEL % block)
    for stop in range(n, 0, -panel):
        start = max(0, stop - panel)
        for end in range(stop, start, -block):
            columns, later = slice(end - block, end), slice(end, stop)
            target[:, columns] += error[:, later] @ lower[later, columns]
            quantized[:, columns] = quantize_columns(columns, target[:, columns])
            error[:, columns] = weights[:, columns] - quantized[:, columns]
        target[:, :start] += error[:, start:stop] @ lower[start:stop, :start]
    return quantized
