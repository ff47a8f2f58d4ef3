"""A float matrix that multiplies without ever being converted as a whole.

    y[t, m] = sum_n W[m, n] x[t, n] + b[m]

The matrix stays as it is stored: float32, float16 or bfloat16, and memory-mapped if it was. For one
token, reading the matrix takes the time, so it is read once, in its own dtype, by rows in parallel;
BLAS is as fast only while it has every core, and a busy core costs it milliseconds a call. For many
tokens arithmetic takes the time, so tiles of rows are converted to float32 for BLAS.

Tests check each way against float64 products, and that they agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.jit import kernel, prange

__all__ = ["DenseLinear"]

_TILE_BYTES = 4 * 2**20  # of float32 rows at a time: they stay in cache between conversion and BLAS
_ROWS = 16  # a task of the parallel kernels: amortises its scratch, leaves enough tasks to share
_LANES = 64  # partial sums of a dot product: four vectors of 16 hide the latency of an addition
_CHUNK = 512  # entries of a row at a time: eight strips of _LANES, added as a tree


class DenseLinear:
    """A linear layer with float weights.

    Parameters
    ----------
    weight : (M, N) float32, float16, or uint16 holding bfloat16 bits
        Kept as given, so a memory map stays one; do not change it afterwards.
    bias : (M,) float32, optional

    Raises
    ------
    InputError
        If the shapes do not fit or the dtype is another one.

    Examples
    --------
    >>> linear = DenseLinear(np.float32([[1, 2], [3, 4], [5, 6]]))
    >>> linear(np.float32([[1, -1]]))
    array([[-1., -1., -1.]], dtype=float32)
    """

    def __init__(
        self,
        weight: NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16],
        bias: NDArray[np.float32] | None = None,
    ) -> None:
        names = {"float32": "float32", "float16": "float16", "uint16": "bfloat16"}
        if weight.ndim != 2 or weight.dtype.name not in names:
            raise InputError(
                f"weight is {weight.dtype} of shape {weight.shape}; it must be a matrix of "
                "float32, float16, or uint16 that holds bfloat16 bits"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise InputError(
                f"bias has shape {bias.shape}; for a weight of shape {weight.shape} it must be "
                f"{weight.shape[:1]}"
            )
        self.out_features, self.in_features = weight.shape
        self.nbytes = self.run_nbytes = weight.nbytes
        self.dtype = names[weight.dtype.name]
        # A read-only view of the base class: mapped or not, kernels see one type and compile once.
        stored = np.ascontiguousarray(np.asarray(weight))
        self._stored: NDArray[Any] = stored.view(np.uint16 if stored.itemsize == 2 else np.float32)
        self._stored.flags.writeable = False
        self._bias = bias

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        if x.ndim != 2 or x.shape[1] != self.in_features or x.dtype != np.float32:
            raise InputError(
                f"input is {x.dtype} of shape {x.shape}; it must be float32 of shape "
                f"(tokens, {self.in_features})"
            )
        out = np.empty((len(x), self.out_features), np.float32)  # (T, M)
        if len(x) == 1:
            self._multiply_one(np.ascontiguousarray(x[0]), out[0])
        else:
            self._multiply_many(x, out)
        if self._bias is not None:
            out += self._bias
        return out

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows of the weight in float32: (T,) int64 -> (T, N)."""
        return self._float32(self._stored[ids])

    def _multiply_one(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        if self.dtype == "float32":
            _gemv_float32(self._stored, x, out)
        else:
            _gemv_half(self._stored, self.dtype == "bfloat16", x, out)

    def _multiply_many(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        if self.dtype == "float32":
            np.matmul(x, self._stored.T, out=out)
            return
        step = max(1, _TILE_BYTES // (4 * self.in_features))
        for first in range(0, self.out_features, step):
            tile = self._float32(self._stored[first : first + step])  # (step, N)
            np.matmul(x, tile.T, out=out[:, first : first + step])

    def _float32(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if self.dtype == "float32":
            return stored
        wide = np.empty(stored.shape, np.float32)
        stored.flags.writeable = False  # the type that the kernel is compiled for
        _widen_rows(stored, self.dtype == "bfloat16", wide)
        return wide


@kernel(inline=True)
def _widen_bfloat16(bits):  # type: ignore[no-untyped-def]
    """Return the float32 that a bfloat16 is: the same bits, shifted."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@kernel(inline=True)
def _widen_float16(bits):  # type: ignore[no-untyped-def]
    """Return the float32 that a float16 is, exactly, without branches.

    With the exponent and mantissa moved to their float32 places, the value is too small by the
    difference of the exponent biases, 2**(127 - 15). One exact product mends that, for subnormals
    too. Infinities and NaN (exponent 31) then only need the exponent of all ones.
    """
    magnitude = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13))
    sign = np.uint32(np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))
    value = np.float32(magnitude.view(np.float32) * np.float32(2.0**112))
    special = np.uint32(0x7F800000) if magnitude >= np.uint32(0x7C00 << 13) else np.uint32(0)
    return np.uint32(value.view(np.uint32) | special | sign).view(np.float32)


@kernel(parallel=True)
def _widen_rows(stored, is_bfloat16, out):  # type: ignore[no-untyped-def]
    """Convert (M, N) uint16 bits to (M, N) float32."""
    for m in prange(stored.shape[0]):
        if is_bfloat16:
            for n in range(stored.shape[1]):
                out[m, n] = _widen_bfloat16(stored[m, n])
        else:
            for n in range(stored.shape[1]):
                out[m, n] = _widen_float16(stored[m, n])


@kernel(inline=True)
def _add_chunk(row, x, lanes):  # type: ignore[no-untyped-def]
    """Add eight strips of products, row[0:512] * x[0:512], to 64 partial sums.

    A dot product written as one sum could not use vectors without fast-math. Here every lane is a
    sum of its own, the order of additions is written down, and LLVM vectorises over the lanes.
    """
    for i in range(64):
        lanes[i] += (
            (row[i] * x[i] + row[i + 64] * x[i + 64])
            + (row[i + 128] * x[i + 128] + row[i + 192] * x[i + 192])
        ) + (
            (row[i + 256] * x[i + 256] + row[i + 320] * x[i + 320])
            + (row[i + 384] * x[i + 384] + row[i + 448] * x[i + 448])
        )


@kernel(inline=True)
def _add_rest(row, x, lanes):  # type: ignore[no-untyped-def]
    """Add fewer than 512 products to the 64 partial sums, and return the sum of all 64."""
    n = row.size
    whole = n - n % 64
    for first in range(0, whole, 64):
        strip = row[first : first + 64]
        part = x[first : first + 64]
        for i in range(64):
            lanes[i] += strip[i] * part[i]
    for i in range(n - whole):
        lanes[i] += row[whole + i] * x[whole + i]
    for i in range(32):
        lanes[i] += lanes[i + 32]
    for i in range(16):
        lanes[i] += lanes[i + 16]
    total = lanes[0]
    for i in range(1, 16):
        total += lanes[i]
    return total


@kernel(parallel=True)
def _gemv_float32(weight, x, out):  # type: ignore[no-untyped-def]
    """Multiply weight (M, N) float32 by x (N,) into out (M,)."""
    m_rows, n = weight.shape
    whole = n - n % _CHUNK
    for task in prange((m_rows + _ROWS - 1) // _ROWS):
        lanes = np.empty(_LANES, np.float32)
        for m in range(task * _ROWS, min(m_rows, (task + 1) * _ROWS)):
            lanes[:] = np.float32(0)
            for first in range(0, whole, _CHUNK):
                _add_chunk(weight[m, first : first + _CHUNK], x[first : first + _CHUNK], lanes)
            out[m] = _add_rest(weight[m, whole:], x[whole:], lanes)


@kernel(parallel=True)
def _gemv_half(weight, is_bfloat16, x, out):  # type: ignore[no-untyped-def]
    """Multiply weight (M, N), 16-bit floats as uint16, by x (N,) float32 into out (M,)."""
    m_rows, n = weight.shape
    for task in prange((m_rows + _ROWS - 1) // _ROWS):
        lanes = np.empty(_LANES, np.float32)
        wide = np.empty(_CHUNK, np.float32)  # a chunk of a row, converted: it stays in L1
        for m in range(task * _ROWS, min(m_rows, (task + 1) * _ROWS)):
            lanes[:] = np.float32(0)
            total = np.float32(0)
            for first in range(0, n, _CHUNK):
                size = min(_CHUNK, n - first)
                stored = weight[m, first : first + size]
                if is_bfloat16:
                    for i in range(size):
                        wide[i] = _widen_bfloat16(stored[i])
                else:
                    for i in range(size):
                        wide[i] = _widen_float16(stored[i])
                if size == _CHUNK:
                    _add_chunk(wide, x[first : first + size], lanes)
                else:
                    total = _add_rest(wide[:size], x[first : first + size], lanes)
            # A width of whole chunks has no rest; folding the lanes is still to do.
            out[m] = total if n % _CHUNK else _add_rest(wide[:0], x[:0], lanes)
