"""Error feedback in float64 on the device: rotations, second moments, factors of Hessians.

The same numbers as `latticeq.quantizers.feedback` and `latticeq.quantizers.calibration` but for the
order of sums, which cuBLAS and cuSOLVER choose. What is returned lies on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.gpu.device import cupy, function
from latticeq.gpu.tables import upload
from latticeq.quantizers.calibration import TOKENS, Moment, check_activations, infinite_error
from latticeq.quantizers.feedback import raised_damping
from latticeq.transforms.hadamard import hadamard_factors, hadamard_matrix
from latticeq.transforms.paley import paley_matrix
from latticeq.transforms.rotation import Rotation, random_signs

__all__ = [
    "BLOCK",
    "GpuFactor",
    "GpuMoment",
    "damped",
    "factor",
    "rotate_double",
    "rotated_moment",
]

BLOCK = 8
"""Columns that are quantized together."""

THREADS = 128


class GpuMoment(Moment):
    """The running mean of x yᵀ over tokens, which lies on the device.

    Products of up to 2048 tokens are made in float32 by cuBLAS and added in float64.

    Parameters
    ----------
    n : int
        Length of a token's activation.
    """

    _sum: Any

    def __init__(self, n: int) -> None:
        self._sum = cupy().zeros((n, n), "float64")
        self.tokens = 0

    def update(self, x: NDArray[np.float32], y: NDArray[np.float32] | None = None) -> None:
        """Add tokens of the host, (T, n) float32; `y` is `x` by default.

        Raises
        ------
        InputError, LatticeqError
            As `Moment.update`.
        """
        check_activations(x, x if y is None else y, len(self._sum))
        for first in range(0, len(x), TOKENS):
            part = slice(first, first + TOKENS)
            mine = upload(x[part])
            other = mine if y is None or y is x else upload(y[part])
            if not (_is_finite(mine) and _is_finite(other)):
                raise infinite_error()
            self._sum += cupy().matmul(mine.T, other)
        self.tokens += len(x)


@dataclass(frozen=True)
class GpuFactor:
    """The block LDL factor of a damped Hessian.

    Attributes
    ----------
    lower : (N, N) float64
        L below its diagonal blocks; what stands in them and above is of no meaning.
    damping : float
        That was used.
    """

    lower: Any
    damping: float


def factor(hessian: Any, damping: float) -> GpuFactor:
    """Factor H + λ·mean(diag H)·I, (N, N) float64, as `latticeq.quantizers.feedback.factor` does.

    Raises
    ------
    InputError
        If an entry is not finite.
    LatticeqError
        If no damping up to the limit makes H positive definite.
    """
    import cupyx

    module, n = cupy(), len(hessian)
    if not _is_finite(hessian):
        raise InputError("the Hessian is not finite; look for NaN in the calibration activations")
    used = damping
    while True:
        try:
            with cupyx.errstate(linalg="raise"):
                lower = module.linalg.cholesky(damped(hessian, used))
            break
        except np.linalg.LinAlgError:
            used = raised_damping(used, n, partial(_rank, hessian))
    grid = (-(-n // THREADS), n // BLOCK)
    function("factor", "unit_lower")(grid, (THREADS,), (lower, n))
    return GpuFactor(lower, used)


def damped(hessian: Any, damping: float) -> Any:
    """Return H + λ·mean(diag H)·I, a new array."""
    result = hessian.copy()
    diagonal = result.reshape(-1)[:: len(result) + 1]  # a view
    mean = float(diagonal.mean()) or 1.0
    diagonal += damping * mean
    return result


def _is_finite(x: Any) -> bool:
    return bool(cupy().isfinite(x).all())


def _rank(hessian: Any) -> int:
    values = cupy().abs(cupy().linalg.eigvalsh(hessian))
    return int((values > float(values.max()) * len(hessian) * np.finfo(np.float64).eps).sum())


def rotated_moment(rotation: Rotation, moment: Any) -> Any:
    """Return R M Rᵀ, (N, N) float64."""
    module = cupy()
    half = rotate_double(rotation, moment)
    return module.ascontiguousarray(rotate_double(rotation, module.ascontiguousarray(half.T)).T)


def rotate_double(rotation: Rotation, x: Any) -> Any:
    """Return R x for each row of (M, N) float64, a new array unless R is the identity.

    A Hadamard matrix of size m·2^k is a Kronecker product; its factors, Paley's of order m and two
    of Sylvester's, are multiplied by one after the other.
    """
    if rotation.kind == "none":
        return x
    module, size = cupy(), rotation.block_size
    m, k = hadamard_factors(size) or (1, 0)
    outer, inner = 1 << (k - k // 2), 1 << k // 2
    if rotation.seed is not None:
        x = x * module.asarray(random_signs(rotation.n, rotation.seed), "float64")
    # Factors are orthonormal, but for Paley's, whose entries are plus and minus one.
    y = module.matmul(x.reshape(-1, inner), _sylvester(inner))
    y = module.matmul(_sylvester(outer), y.reshape(-1, outer, inner))
    if m > 1:
        paley = module.asarray(paley_matrix(m) / np.sqrt(m), "float64")
        y = module.matmul(paley, y.reshape(-1, m, outer * inner))
    return y.reshape(x.shape)


def _sylvester(n: int) -> Any:
    return cupy().asarray(hadamard_matrix(n))
