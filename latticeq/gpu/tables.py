"""Matrices that are no codewords: token embeddings, whose rows are looked up, and floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.gpu.device import cupy, function
from latticeq.gpu.launch import launch_early

__all__ = ["FloatTable", "Int8Table", "upload"]

THREADS = 256


def upload(array: NDArray[Any]) -> Any:
    """Copy an array to the current device from where it lies, mapped or not.

    CuPy's own way goes through a copy of the whole array in pinned memory.
    """
    source = np.ascontiguousarray(array)
    target, stream = cupy().empty(source.shape, source.dtype), cupy().cuda.get_current_stream()
    if source.nbytes:
        target.data.copy_from_host_async(source.ctypes.data, source.nbytes, stream)
        stream.synchronize()  # the source may be gone when the caller goes on
    return target


class FloatTable:
    """A matrix M x N of floats: a linear, and a table of embeddings.

    It is held and multiplied in float32: many tokens by cuBLAS, which a graph cannot capture, and
    one by a kernel.

    Parameters
    ----------
    weight : (M, N) float32
        On the host, or on the device already.
    bias : (M,) float32, optional
    """

    dtype = "float32"

    def __init__(
        self, weight: NDArray[np.float32] | Any, bias: NDArray[np.float32] | None = None
    ) -> None:
        self.out_features, self.in_features = weight.shape
        self.nbytes = self.run_nbytes = weight.nbytes
        self._weight = upload(weight) if isinstance(weight, np.ndarray) else weight
        self._bias = None if bias is None else upload(bias)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        cp = cupy()
        out = cp.empty((len(x), self.out_features), cp.float32) if out is None else out
        if len(x) == 1:
            self._multiply_one(x, out)
            return out
        cp.matmul(x, self._weight.T, out=out)
        if self._bias is not None:
            out += self._bias
        return out

    def _multiply_one(self, x: Any, out: Any) -> None:
        bias = 0 if self._bias is None else self._bias
        blocks = -(-self.out_features * 32 // THREADS)
        arguments = (self._weight, x, bias, self.out_features, self.in_features, out)
        launch_early(function("forward", "multiply_floats"), (blocks,), (THREADS,), arguments)

    def rows(self, ids: Any, out: Any) -> None:
        """Look up rows: ids (T,) int32 into out (T, N) float32."""
        arguments = (ids, self._weight, self.in_features, out)
        launch_early(function("forward", "embed_float32"), (len(ids),), (THREADS,), arguments)


class Int8Table:
    """A matrix of int8 rows whose rows are looked up, and that is a head where it is tied.

    Parameters
    ----------
    linear : linear of `latticeq.gpu.linear`
        Of the packed matrix: it multiplies.
    packed, row_scale : arrays on the device
        Its bytes as `latticeq.storage.bits.pack_int8` lays them out, and (M,) float32.
    """

    def __init__(self, linear: Any, packed: Any, row_scale: Any) -> None:
        self._linear = linear
        self._packed, self._row_scale = packed, row_scale
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.nbytes, self.run_nbytes = linear.nbytes, linear.run_nbytes
        self.dtype = linear.dtype

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self._linear(x, out)

    def rows(self, ids: Any, out: Any) -> None:
        """Look up rows: ids (T,) int32 into out (T, N) float32."""
        arguments = (ids, self._packed, self._row_scale, self.in_features, out)
        launch_early(function("forward", "embed_int8"), (len(ids),), (THREADS,), arguments)
