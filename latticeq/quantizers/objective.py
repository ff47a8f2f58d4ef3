r"""What a layer's weights are quantized towards, and under which metric.

A layer that is given x̂ in place of x, because its input is coded or because the layers before it
are quantized, loses least when its weights U minimise E‖W x − U x̂‖². Up to a constant that is

    tr((U − W̃) M (U − W̃)ᵀ),      M = E[x̂ x̂ᵀ],      W̃ = W E[x x̂ᵀ] M⁻¹,

so LDLQ is run on the *target* W̃ under the *metric* M. Three ways to know the two moments:

- `general`: both are measured. Nothing is assumed of the error;
- `with_noise`: x̂ = x + z with z of zero mean, independent of x and of covariance J. Then
  E[x x̂ᵀ] = H and M = H + J: the QA-LDLQ of NestQuant, where J = ε² I (`isotropic_noise`), or a
  measured diagonal or matrix;
- `plain`: x̂ = x, and W̃ = W: LDLQ.

M is damped as in `latticeq.quantizers.feedback`, and the target with it, so that x̂ = x gives W̃ = W
whatever the damping: W̃ = W + s W (E[x x̂ᵀ] − M)(M + λ mean(diag M) I)⁻¹. The strength s is 1 in
theory. The full step also learns to shrink what earlier errors made less predictable, in every
layer again, and a few tokens of huge norm weigh most in it; half of it predicts unseen text better.

Source: Savkin et al., *NestQuant*, arXiv 2502.09720, section 4.5 (QA-LDLQ).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError, LatticeqError, context
from latticeq.quantizers.feedback import Factor

__all__ = ["Objective", "general", "isotropic_noise", "plain", "with_noise"]


@dataclass(frozen=True, eq=False)
class Objective:
    """A metric, and the moment that gives the target under it.

    Parameters
    ----------
    metric : ndarray of float64, shape (N, N)
        M = E[x̂ x̂ᵀ].
    cross : ndarray of float64, shape (N, N), optional
        E[x x̂ᵀ]; the metric itself, so that the target is W, if omitted.
    strength : float
        s, from 0 to 1.
    tokens : int, optional
        Whose moments these are, for errors.

    Raises
    ------
    InputError
        If the shapes differ or the strength is out of range.
    """

    metric: NDArray[np.float64]
    cross: NDArray[np.float64] | None = None
    strength: float = 1.0
    tokens: int | None = None
    _kept: tuple[float, NDArray[np.float64]] | None = field(default=None, init=False, repr=False)
    _factor: Factor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.cross is not None and self.cross.shape != self.metric.shape:
            raise InputError(
                f"the moments have shapes {self.metric.shape} and {self.cross.shape}; they must be "
                "of one layer"
            )
        if not 0 <= self.strength <= 1:
            raise InputError(f"strength is {self.strength}; it must be from 0 to 1")

    def target(self, weights: NDArray[np.floating], damping: float) -> NDArray[np.float64]:
        """Return W̃.

        Parameters
        ----------
        weights : ndarray, shape (M, N)
            W.
        damping : float
            λ, relative to the mean of the metric's diagonal.

        Returns
        -------
        ndarray of float64, shape (M, N)

        Raises
        ------
        LatticeqError
            If the damped metric is singular.

        Examples
        --------
        Of an input that is half as large as it should be, weights twice as large make up for it:

        >>> clean = np.diag([4.0, 9.0])
        >>> objective = general(metric=clean / 4, cross=clean / 2)
        >>> objective.target(np.ones((1, 2)), damping=0.0).tolist()
        [[2.0, 2.0]]
        """
        whole = np.asarray(weights, np.float64)
        if self.cross is None or self.strength == 0:
            return whole
        return np.asarray(whole + self.strength * (whole @ self._pull(damping)))

    def factored(
        self, factor: Callable[[NDArray[np.float64], float], Factor], damping: float
    ) -> Factor:
        """Return ``factor(metric, damping)``, kept for the linears of one input.

        They have one rotation and one block length, and so does every call.
        """
        if self._factor is None:
            with self.calibrated():
                object.__setattr__(self, "_factor", factor(self.metric, damping))
        assert self._factor is not None
        return self._factor

    def _pull(self, damping: float) -> NDArray[np.float64]:
        """Return (E[x x̂ᵀ] − M)(M + λ mean(diag M) I)⁻¹, kept for the linears of one input."""
        if self._kept is None or self._kept[0] != damping:
            with self.calibrated():
                object.__setattr__(self, "_kept", (damping, self._solved(damping)))
        assert self._kept is not None
        return self._kept[1]

    def calibrated(self) -> AbstractContextManager[None]:
        """Let errors name the number of tokens."""
        if self.tokens is None:
            return nullcontext()
        return context(f"calibrated on {self.tokens} tokens")

    def _solved(self, damping: float) -> NDArray[np.float64]:
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        assert self.cross is not None
        damped = self.metric.copy()
        damped[np.diag_indices(len(damped))] += damping * np.mean(np.diag(self.metric))
        try:
            pull = cho_solve(cho_factor(damped, lower=True), (self.cross - self.metric).T)
        except LinAlgError as error:
            raise self.singular_error(damping) from error
        return np.asarray(pull.T)

    def singular_error(self, damping: float) -> LatticeqError:
        """Return the error that says that the damped metric cannot be factored."""
        return LatticeqError(
            f"the metric of size {len(self.metric)} is singular with damping {damping:g}; "
            "calibrate on more tokens or raise the damping"
        )


def plain(hessian: NDArray[np.float64]) -> Objective:
    """Return the objective of LDLQ: the input is what it should be."""
    return Objective(hessian)


def general(
    metric: NDArray[np.float64], cross: NDArray[np.float64], strength: float = 1.0
) -> Objective:
    """Return the objective for a measured metric E[x̂ x̂ᵀ] and cross moment E[x x̂ᵀ]."""
    return Objective(metric, cross, strength)


def with_noise(
    hessian: NDArray[np.float64], noise: NDArray[np.float64], strength: float = 1.0
) -> Objective:
    """Return the objective for an input x + z, z independent of x.

    Parameters
    ----------
    hessian : ndarray of float64, shape (N, N)
        H = E[x xᵀ].
    noise : ndarray of float64, shape (N, N)
        J = E[z zᵀ].
    strength : float
    """
    return Objective(hessian + noise, hessian, strength)


def isotropic_noise(hessian: NDArray[np.float64], mean_squared_error: float) -> NDArray[np.float64]:
    """Return ε² I with ε² = E[x²] times the error of the input's code at unit variance.

    Examples
    --------
    >>> isotropic_noise(np.diag([1.0, 3.0]), 0.25).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    return np.eye(len(hessian)) * float(np.mean(np.diag(hessian))) * mean_squared_error
