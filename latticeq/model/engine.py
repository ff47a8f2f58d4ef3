"""Where the heavy work of a quantization is done: products, moments, error feedback.

The job, its order and its files are those of `latticeq.model.quantize`; an `Engine` makes linears
that multiply the calibration text, gathers second moments, and quantizes matrices. `HostEngine`
does all of it on the CPU; `latticeq.gpu.engine` has one for a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latticeq.linear.base import Linear
from latticeq.linear.dense import DenseLinear
from latticeq.linear.packed import make_tiled_linear
from latticeq.model.options import Options
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.calibration import Moment
from latticeq.quantizers.metrics import OutputLoss, relative_error
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.objective import Objective
from latticeq.quantizers.pvq import PVQ
from latticeq.quantizers.scalar import Scalar, round_to_nearest
from latticeq.storage.formats.base import Packed

__all__ = ["TIMED_FLOPS", "Engine", "Gathered", "HostEngine", "QuantizedMatrix"]


TIMED_FLOPS = 4e9
"""Floating-point operations that a CPU's products are timed by."""


class Gathered(Protocol):
    """A moment that is being gathered: see `Moment`."""

    def update(self, x: NDArray[np.float32], y: NDArray[np.float32] | None = None) -> None:
        """Add tokens of the host, (T, n) float32."""
        ...

    def mean(self) -> Any:
        """Return E[x yᵀ], an (n, n) array of float64 where the engine works."""
        ...


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A matrix that was quantized, and what that lost.

    Attributes
    ----------
    tensor : QuantizedTensor
    relative_error : float
    losses : dict
        Fields of `LayerReport` about output losses and damping; empty without an objective.
    """

    tensor: QuantizedTensor
    relative_error: float
    losses: dict[str, float | None] = field(default_factory=dict)


class Engine(Protocol):
    """What quantizes blocks; arrays that it takes and linears that it makes are the host's."""

    @property
    def settings(self) -> Mapping[str, str]:
        """What a resumed job must have in common with its beginning, beside the options."""
        ...

    @property
    def timed_flops(self) -> float:
        """Floating-point operations that are enough to time a product by."""
        ...

    @property
    def software(self) -> Mapping[str, str]:
        """Versions of libraries that only this engine uses."""
        ...

    def check(self, options: Options) -> None:
        """Refuse what this engine cannot do, before anything is read.

        Raises
        ------
        InputError
            Saying what is allowed.
        """
        ...

    def linear(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Linear:
        """Return what multiplies by a float matrix (M, N)."""
        ...

    def packed_linear(self, packed: Packed, bias: NDArray[np.float32] | None) -> Any:
        """Return what multiplies by packed bytes, in float32: as runtime "float32" does.

        It has `rotation` and `multiply_rotated`, as `latticeq.linear.tiled.TiledLinear`.
        """
        ...

    def double_seconds(self, m: int, n: int) -> float:
        """Return how long a product of float64, (m, n) by (n, n), takes: for estimates."""
        ...

    def moment(self, n: int) -> Gathered:
        """Return an empty moment of inputs of width n."""
        ...

    def quantize(
        self,
        quantizer: NestQuant | PVQ | Scalar,
        weights: NDArray[np.float32],
        objective: Objective | None,
        damping: float,
    ) -> QuantizedMatrix:
        """Quantize a matrix (M, N) towards an objective, whose arrays are this engine's own.

        Raises
        ------
        InputError, LatticeqError
            As the quantizer's ``quantize``, and `Objective.target`.
        """
        ...


class HostEngine:
    """All on the CPU, by Numba and BLAS."""

    settings: Mapping[str, str] = {}
    software: Mapping[str, str] = {}
    timed_flops = TIMED_FLOPS

    def check(self, options: Options) -> None:
        """Refuse nothing."""

    def linear(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Linear:
        """Return what multiplies by a float matrix (M, N)."""
        return DenseLinear(weight, bias)

    def packed_linear(self, packed: Packed, bias: NDArray[np.float32] | None) -> Any:
        """Return what decodes packed bytes tile by tile and multiplies in float32."""
        return make_tiled_linear(packed, bias, "float32")

    def double_seconds(self, m: int, n: int) -> float:
        """Return how long a product of float64, (m, n) by (n, n), takes."""
        x, y = np.ones((m, n)), np.ones((n, n))
        x[:64] @ y  # starts threads
        start = time.perf_counter()
        x @ y
        return time.perf_counter() - start

    def moment(self, n: int) -> Moment:
        """Return an empty moment of inputs of width n."""
        return Moment(n)

    def quantize(
        self,
        quantizer: NestQuant | PVQ | Scalar,
        weights: NDArray[np.float32],
        objective: Objective | None,
        damping: float,
    ) -> QuantizedMatrix:
        """Quantize a matrix (M, N) towards an objective: see `Engine`."""
        if objective is None:
            plain = quantizer.quantize(weights)
            return QuantizedMatrix(plain, relative_error(weights, plain.dequantize()))
        target = objective.target(weights, damping)
        coded = quantizer.quantize(target, objective.factored(quantizer.factor, damping))
        values = coded.dequantize()
        loss = OutputLoss(weights, objective.metric)
        losses = {
            "proxy_loss": loss(values),
            "proxy_loss_plain": loss(quantizer.quantize(weights).dequantize()),
            "proxy_loss_rtn": loss(round_to_nearest(weights)),
            "damping": coded.damping,
        }
        return QuantizedMatrix(coded, relative_error(weights, values), losses)
