"""Quantization on a GPU: what `latticeq.model.engine.Engine` asks for, on one device.

Weights, moments and factors of one block at most are in device memory. Calibration text stays with
the host, which norms it, attends and codes keys and values as always; its products with matrices,
nearly all of the work, are the device's. Losses are reckoned in the rotated basis, where the codes
are: the same numbers, as rotations are orthonormal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError, LatticeqError
from latticeq.gpu.device import check_device, cupy
from latticeq.gpu.exact import decoded
from latticeq.gpu.feedback import GpuFactor, GpuMoment, damped, factor, rotated_moment
from latticeq.gpu.nestquant import GpuNestQuant, rotate_single, row_energies
from latticeq.gpu.tables import upload
from latticeq.model.engine import TIMED_FLOPS, QuantizedMatrix
from latticeq.model.options import Options
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.objective import Objective
from latticeq.quantizers.pvq import PVQ
from latticeq.quantizers.scalar import Scalar
from latticeq.storage.formats.base import Packed
from latticeq.transforms.rotation import Rotation

__all__ = ["DeviceLinear", "GpuEngine"]

ROUNDED_GROUP = 32
"""Of the int4 that losses are compared with: `latticeq.quantizers.scalar.round_to_nearest`."""


class GpuEngine:
    """Quantization with NestQuant on one device.

    Parameters
    ----------
    index : int
        As CUDA counts devices.

    Raises
    ------
    InputError
        If there is no such device.
    MissingDependencyError
        If CuPy or a GPU is missing.
    """

    def __init__(self, index: int = 0) -> None:
        self.index = check_device(index)
        self._prepared: WeakKeyDictionary[Objective, _Prepared] = WeakKeyDictionary()

    @property
    def settings(self) -> dict[str, str]:
        """A job goes on where it began: the sums of a CPU are rounded otherwise."""
        return {"device": "gpu"}

    @property
    def timed_flops(self) -> float:
        """A hundred times what suffices on a CPU: small products are all launches and copies."""
        return 100 * TIMED_FLOPS

    @property
    def software(self) -> dict[str, str]:
        """CuPy's version."""
        return {"cupy": str(cupy().__version__)}

    def check(self, options: Options) -> None:
        """Refuse methods that have no kernels here.

        Raises
        ------
        InputError
            Saying what is allowed.
        """
        if options.method != "nestquant":
            raise InputError(
                f"--method {options.method} cannot be quantized on a GPU; with --device gpu it "
                "must be nestquant, of any --shaping: leave out --device to quantize on the CPU"
            )

    def linear(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> DeviceLinear:
        """Return what multiplies by a float matrix (M, N) on the device."""
        with self._device():
            rotation = Rotation(weight.shape[1], kind="none")
            return DeviceLinear(self, upload(weight), bias, rotation, weight.nbytes)

    def packed_linear(self, packed: Packed, bias: NDArray[np.float32] | None) -> DeviceLinear:
        """Return what multiplies by packed bytes, decoded to float32 in device memory."""
        with self._device():
            return DeviceLinear(self, decoded(packed), bias, packed.rotation, packed.nbytes)

    def double_seconds(self, m: int, n: int) -> float:
        """Return how long a product of float64, (m, n) by (n, n), takes on the device."""
        with self._device():
            module = cupy()
            x, y = module.ones((m, n)), module.ones((n, n))
            x @ y
            module.cuda.get_current_stream().synchronize()
            start = time.perf_counter()
            x @ y
            module.cuda.get_current_stream().synchronize()
            return time.perf_counter() - start

    def moment(self, n: int) -> _Moment:
        """Return an empty moment of inputs of width n."""
        with self._device():
            return _Moment(self, GpuMoment(n))

    def quantize(
        self,
        quantizer: NestQuant | PVQ | Scalar,
        weights: NDArray[np.float32],
        objective: Objective | None,
        damping: float,
    ) -> QuantizedMatrix:
        """Quantize a matrix (M, N) towards an objective: see `Engine`."""
        if not isinstance(quantizer, NestQuant):
            raise InputError(f"a {type(quantizer).__name__} cannot be run on a GPU; NestQuant can")
        with self._device():
            rotation, matrix = quantizer.rotation(weights.shape[1]), upload(weights)
            coder = GpuNestQuant(quantizer)
            plain = coder.quantize(matrix)
            if objective is None:
                error = _relative_error(_rotated(rotation, matrix), plain.rotated())
                return QuantizedMatrix(plain.to_host(), error)
            prepared = self._prepare(objective, rotation, damping)
            target = matrix.astype("float64")
            if prepared.pull is not None:
                target += target @ prepared.pull
            coded = coder.quantize(target, prepared.factored)
            del target
            loss = _OutputLoss(_rotated(rotation, matrix), prepared.metric)
            values = coded.rotated()
            losses = {
                "proxy_loss": loss(values),
                "proxy_loss_plain": loss(plain.rotated()),
                "proxy_loss_rtn": loss(_rotated(rotation, _round_to_nearest(matrix))),
                "damping": coded.damping,
            }
            return QuantizedMatrix(coded.to_host(), _relative_error(loss.weights, values), losses)

    def _prepare(self, objective: Objective, rotation: Rotation, damping: float) -> _Prepared:
        """Return what the linears of one input share: it lives as long as their objective."""
        found = self._prepared.get(objective)
        if found is None:
            with objective.calibrated():
                found = self._prepared[objective] = _Prepared.of(objective, rotation, damping)
        return found

    @contextmanager
    def _device(self) -> Iterator[None]:
        """Make the device the current one, and say what to do where its memory is full."""
        module = cupy()
        try:
            with module.cuda.Device(self.index):
                yield
        except module.cuda.memory.OutOfMemoryError as error:
            raise LatticeqError(
                f"device {self.index} has no memory left ({error}); close other programs that use "
                "it, or leave out --device to quantize on the CPU"
            ) from error


class _Moment:
    """A moment on an engine's device."""

    def __init__(self, engine: GpuEngine, inner: GpuMoment) -> None:
        self._engine, self._inner = engine, inner

    def update(self, x: NDArray[np.float32], y: NDArray[np.float32] | None = None) -> None:
        with self._engine._device():
            self._inner.update(x, y)

    def mean(self) -> Any:
        with self._engine._device():
            return self._inner.mean()


class DeviceLinear:
    """A matrix M x N in device memory, in float32, that multiplies arrays of the host.

    Parameters
    ----------
    engine : GpuEngine
    weight : (M, N) float32 on the device
        In the rotated basis.
    bias : (M,) float32, optional
        On the host.
    rotation : Rotation
    nbytes : int
        Of the matrix where it is stored.
    """

    dtype = "float32 on a GPU"

    def __init__(
        self,
        engine: GpuEngine,
        weight: Any,
        bias: NDArray[np.float32] | None,
        rotation: Rotation,
        nbytes: int,
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.rotation, self.nbytes, self.run_nbytes = rotation, nbytes, weight.nbytes
        self._engine, self._weight = engine, weight
        self._bias = None if bias is None else upload(bias)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self.apply_group([self], x)[0]

    @staticmethod
    def apply_group(
        linears: Sequence[DeviceLinear], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, which is copied to the device once."""
        with linears[0]._engine._device():
            given = upload(x)
            rotated = {linear.rotation: _rotated(linear.rotation, given) for linear in linears}
            return [linear._multiply(rotated[linear.rotation]) for linear in linears]

    def multiply_rotated(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply an input that is rotated already: (T, N) float32 -> (T, M) float32."""
        with self._engine._device():
            return self._multiply(upload(x))

    def _multiply(self, x: Any) -> NDArray[np.float32]:
        out = cupy().matmul(x, self._weight.T)
        if self._bias is not None:
            out += self._bias
        result: NDArray[np.float32] = cupy().asnumpy(out)
        return result


@dataclass(frozen=True)
class _Prepared:
    """An objective as it is used on the device.

    Attributes
    ----------
    factored : GpuFactor
        Of the rotated metric.
    metric : (N, N) float32
        Rotated, undamped: of losses.
    pull : (N, N) float64 or None
        The target is W + W pull.
    """

    factored: GpuFactor
    metric: Any
    pull: Any

    @staticmethod
    def of(objective: Objective, rotation: Rotation, damping: float) -> _Prepared:
        """Factor the metric, and solve for the target's step where there is one."""
        metric = cupy().asarray(objective.metric)
        pull = None
        if objective.cross is not None and objective.strength:
            pull = _solved(objective, metric, damping)
        rotated = rotated_moment(rotation, metric)
        del metric
        return _Prepared(factor(rotated, damping), rotated.astype("float32"), pull)


def _solved(objective: Objective, metric: Any, damping: float) -> Any:
    """Return s (E[x x̂ᵀ] − M)(M + λ mean(diag M) I)⁻¹."""
    import cupyx
    from cupyx.scipy.linalg import solve_triangular

    module = cupy()
    try:
        with cupyx.errstate(linalg="raise"):
            lower = module.linalg.cholesky(damped(metric, damping))
    except np.linalg.LinAlgError as error:
        raise objective.singular_error(damping) from error
    step = (module.asarray(objective.cross) - metric).T
    step = solve_triangular(lower, step, lower=True, check_finite=False)
    step = solve_triangular(lower, step, lower=True, trans="T", check_finite=False)
    return objective.strength * module.ascontiguousarray(step.T)


class _OutputLoss:
    """`latticeq.quantizers.metrics.OutputLoss` in the rotated basis."""

    def __init__(self, weights: Any, metric: Any) -> None:
        self.weights, self._metric = weights, metric
        self._energy = self._form(weights)

    def _form(self, rows: Any) -> float:
        return float(((rows @ self._metric) * rows).sum(dtype="float64"))

    def __call__(self, quantized: Any) -> float:
        return self._form(self.weights - quantized) / self._energy if self._energy else 0.0


def _relative_error(weights: Any, quantized: Any) -> float:
    energy = float(row_energies(weights).sum())
    lost = float(row_energies(weights - quantized).sum())
    return lost / energy if energy else lost


def _rotated(rotation: Rotation, x: Any) -> Any:
    """Return R x for each row of (M, N) float32, in memory of its own."""
    turned = rotate_single(rotation, x)
    return turned if turned is x else turned.copy()


def _round_to_nearest(matrix: Any) -> Any:
    """Return what `round_to_nearest` does, (M, N) float32."""
    module, n = cupy(), matrix.shape[1]
    rows = matrix.reshape(-1, ROUNDED_GROUP if n % ROUNDED_GROUP == 0 else n).astype("float64")
    scale = module.abs(rows).max(axis=1, keepdims=True) / 7
    rounded = module.rint(rows / module.where(scale > 0, scale, 1)) * scale
    return rounded.reshape(matrix.shape).astype("float32")
