"""NestQuant on the device: the digits of `latticeq.quantizers.nestquant`, block by block.

Without feedback all that is computed is rounded as on the CPU, operation by operation, and the
digits are the CPU's bit for bit. Under feedback targets are sums in float64, in the order of
cuBLAS; they are rounded to float32 before a block is coded, so the digits differ from the CPU's
only where two sums, some 1e-13 apart, round to different float32 and that tips a codeword. The
blocks of that row which are coded later then get another target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.gpu.device import cupy, function
from latticeq.gpu.feedback import BLOCK, GpuFactor, rotate_double
from latticeq.gpu.tokens import GpuRotation
from latticeq.gpu.weights import CELLS
from latticeq.quantizers.base import as_rows
from latticeq.quantizers.feedback import PANEL
from latticeq.quantizers.nestquant import NestQuant, NestTensor
from latticeq.quantizers.unit_rows import rounded_scales
from latticeq.transforms.rotation import Rotation

__all__ = ["GpuNestQuant", "GpuNestTensor", "rotate_single", "row_energies"]

ROWS, LANES = 16, 8
"""Rows that a block of threads has under feedback, and threads that a row has."""

THREADS = 128


def rotate_single(rotation: Rotation, x: Any) -> Any:
    """Return R x for each row of (M, N) float32, rounded as on the CPU: a buffer, or x itself."""
    return x if rotation.kind == "none" else GpuRotation(rotation).rotate(x)


@dataclass(frozen=True)
class GpuNestTensor:
    """What `NestTensor` is, on the device.

    Attributes
    ----------
    quantizer : NestQuant
    digits : (M, N / 8, 8) uint8
    scale_index : (M, N / 8) uint8
    row_scale : (M,) float16 on the host
    damping : float or None
    """

    quantizer: NestQuant
    digits: Any
    scale_index: Any
    row_scale: NDArray[np.float16]
    damping: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """M and N."""
        rows, blocks = self.scale_index.shape
        return int(rows), BLOCK * int(blocks)

    def rotated(self) -> Any:
        """Return what `NestTensor.rotated` does: (M, N) float32 on the device."""
        module, code = cupy(), self.quantizer.code
        out = module.empty(self.shape, "float32")
        count, blocks = self.scale_index.size, self.scale_index.shape[1]
        units = module.asarray(np.asarray(code.betas, np.float32) * np.float32(code.unit))
        scale = module.asarray(self.row_scale.astype(np.float32))
        arguments = (self.digits, self.scale_index, count, blocks, code.q, units, scale, out)
        _kernel("decode_blocks", code.cell)((-(-count // THREADS),), (THREADS,), arguments)
        return out

    def to_host(self) -> NestTensor:
        """Return the same tensor in the host's memory."""
        module, quantizer = cupy(), self.quantizer
        return NestTensor(
            self.shape,
            quantizer.code,
            quantizer.rotation(self.shape[1]),
            module.asnumpy(self.digits),
            module.asnumpy(self.scale_index),
            self.row_scale,
            self.damping,
            quantizer.packing,
        )


class GpuNestQuant:
    """A NestQuant quantizer on the current device.

    Parameters
    ----------
    quantizer : NestQuant
    """

    def __init__(self, quantizer: NestQuant) -> None:
        self.quantizer = quantizer
        code = quantizer.code
        betas = np.asarray(code.betas, np.float32)
        module = cupy()
        self._code = (
            module.asarray(betas),
            module.asarray(1 / betas),
            len(betas),
            code.q,
            int(code.selection == "first"),
            np.float32(code.limit),
        )

    def quantize(self, x: Any, factored: GpuFactor | None = None) -> GpuNestTensor:
        """Quantize the rows of a matrix of the device.

        Parameters
        ----------
        x : (M, N)
            float32; float64 with a factor.
        factored : GpuFactor, optional
            Of the Hessian of rotated inputs: turns error feedback on.

        Raises
        ------
        InputError
            As `NestQuant.quantize`.
        """
        module, (m, n) = cupy(), x.shape
        if not module.isfinite(x).all():
            as_rows(module.asnumpy(x), BLOCK)  # names the entry
        row_scale = rounded_scales(np.sqrt(module.asnumpy(row_energies(x)) / n))
        divisor = np.where(row_scale > 0, row_scale, 1).astype(x.dtype.name)[:, None]
        rotation = self.quantizer.rotation(n)
        rotated = (rotate_single if factored is None else rotate_double)(rotation, x)
        values = rotated / module.asarray(divisor)
        digits = module.empty((m, n // BLOCK, BLOCK), "uint8")
        index = module.empty((m, n // BLOCK), "uint8")
        bad = module.zeros(1, "int32")
        if factored is None:
            self._encode(values, digits, index, bad)
        else:
            self._feed(values, factored.lower, digits, index, bad)
        if int(bad[0]):
            raise self.quantizer.code.range_error()
        damping = None if factored is None else factored.damping
        return GpuNestTensor(self.quantizer, digits, index, row_scale, damping)

    def _encode(self, values: Any, digits: Any, index: Any, bad: Any) -> None:
        count = int(index.size)
        arguments = (values, count, *self._code, digits, index, bad)
        _kernel("encode_blocks", self.quantizer.cell)(
            (-(-count // THREADS),), (THREADS,), arguments
        )

    def _feed(self, values: Any, lower: Any, digits: Any, index: Any, bad: Any) -> None:
        """Code blocks last to first; errors reach a panel's own columns first, then all before."""
        module, (m, n) = cupy(), values.shape
        target, error = values.copy(), module.empty((m, PANEL), "float64")
        feed_panel = _kernel("feed_panel", self.quantizer.cell)
        for stop in range(n, 0, -PANEL):
            start = max(0, stop - PANEL)
            feed_panel(
                (-(-m // ROWS),),
                (ROWS * LANES,),
                (values, target, lower, m, n, start, stop - start, *self._code, digits, index,
                 error, bad),
            )  # fmt: skip
            if start:
                _add_product(target, error, lower, start, stop)


def _kernel(name: str, cell: str) -> Any:
    return function("quantize", name, CELL=CELLS[cell], ROWS=ROWS, LANES=LANES, PANEL=PANEL)


def row_energies(x: Any) -> Any:
    """Return the sum of squares of each row of (M, N) float32 or float64: (M,) float64."""
    m, n = x.shape
    energies = cupy().empty(m, "float64")
    is_single = int(x.dtype.name == "float32")
    function("factor", "row_energy")((m,), (256,), (x, is_single, n, energies))
    return energies


def _add_product(target: Any, error: Any, lower: Any, start: int, stop: int) -> None:
    """Add error[:, : stop - start] @ lower[start:stop, :start] to target[:, :start], in place.

    cuBLAS counts columns first: it is told of the transposes.
    """
    from cupy.cuda import cublas

    (m, n), one = target.shape, np.ones(1)
    cublas.dgemm(
        cupy().cuda.device.get_cublas_handle(),
        cublas.CUBLAS_OP_N,
        cublas.CUBLAS_OP_N,
        start,
        m,
        stop - start,
        one.ctypes.data,
        lower.data.ptr + lower.itemsize * n * start,
        n,
        error.data.ptr,
        PANEL,
        one.ctypes.data,
        target.data.ptr,
        n,
    )
