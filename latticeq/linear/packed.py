"""Linear layers that multiply straight from packed bytes.

One token is multiplied fused: activations are rotated, rounded to int8 under one scale and
multiplied by codewords as they are decoded, so that a layer's packed bytes are read once and
nothing else is. For many tokens tiles of rows are decoded once to float32 and multiplied by BLAS,
activations in float32.

The bytes are used where they are, memory-mapped; float32 tiles are the only copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.words import word_tables
from latticeq.errors import InputError
from latticeq.linear.int8_kernels import dequantize_int8_groups, multiply_int8_row, quantize_row
from latticeq.linear.nest_kernels import (
    dequantize_any_groups,
    dequantize_groups,
    multiply_row,
    prepare_row,
)
from latticeq.storage.bits import bit_width
from latticeq.storage.checkpoint import PackedInt8, PackedVoronoi
from latticeq.transforms.hadamard import hadamard_codes
from latticeq.transforms.rotation import Rotation

__all__ = ["Int8Linear", "VoronoiLinear"]

ROWS = 16
MAX_INT8_COLUMNS = 2**16
TILE_BYTES = 2**20
"""Of float32 at a time: decoded in one cache, multiplied from there."""


class _TiledLinear:
    """What packed linears share: many tokens by tiles, and the bias."""

    def __init__(self, shape: tuple[int, int], bias: NDArray[np.float32] | None) -> None:
        self.out_features, self.in_features = shape
        self._groups = -(-shape[0] // ROWS)
        if bias is not None and bias.shape != shape[:1]:
            raise InputError(f"bias has shape {bias.shape}; a matrix {shape} needs {shape[:1]}")
        self._bias = bias

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        raise TypeError("a subclass decodes its own bytes")

    def _tiles(self) -> Any:
        """Yield slices of rows and their float32 values, transposed: (N, rows)."""
        step = max(1, TILE_BYTES // (4 * ROWS * self.in_features))
        for first in range(0, self._groups, step):
            count = min(step, self._groups - first)
            tile = np.empty((self.in_features, ROWS * count), np.float32)
            self._dequantize(first, tile)
            rows = slice(ROWS * first, min(ROWS * (first + count), self.out_features))
            yield rows, tile[:, : rows.stop - rows.start]

    def _multiply_many(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.empty((len(x), self.out_features), np.float32)
        for rows, tile in self._tiles():
            np.matmul(x, tile, out=out[:, rows])
        return out

    def _finished(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._bias is not None:
            y += self._bias
        return y

    def _checked(self, x: NDArray[np.float32]) -> None:
        if x.ndim != 2 or x.shape[1] != self.in_features or x.dtype != np.float32:
            raise InputError(
                f"input is {x.dtype} of shape {x.shape}; it must be float32 of shape (tokens, "
                f"{self.in_features})"
            )


def _padded_scale(row_scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return float32 row scales, zero for the rows that fill the last group."""
    scale = np.zeros(len(row_scale) + -len(row_scale) % ROWS, np.float32)
    scale[: len(row_scale)] = row_scale
    return scale


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view, so that kernels see one type whether or not it is mapped."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


class VoronoiLinear(_TiledLinear):
    """A matrix M x N of packed Voronoi codewords.

    Parameters
    ----------
    packed : PackedVoronoi
    bias : (M,) float32, optional
    """

    dtype = "nestquant"

    def __init__(self, packed: PackedVoronoi, bias: NDArray[np.float32] | None = None) -> None:
        super().__init__(packed.shape, bias)
        self.nbytes = packed.nbytes
        self.rotation = packed.rotation
        self._q = packed.q
        self._index_width = bit_width(len(packed.betas))
        self._betas = np.zeros(16, np.float32)
        self._betas[: len(packed.betas)] = packed.betas / 2  # decoded points are doubled
        self._row_scale = _padded_scale(packed.row_scale)
        self._digits = _read_only(packed.digits)
        self._scale_index = _read_only(packed.scale_index.reshape(self._groups, -1))
        self._kind = (packed.rotation, packed.q)
        self._plan: tuple[list[VoronoiLinear], NDArray[np.int64], tuple[int, ...]] | None = None
        self._words = None
        if packed.digits.shape[3] == 4:  # digits of four bits: one 32-bit word a block
            self._words = _read_only(packed.digits.view("<i4")[..., 0])
            self._tables = word_tables(packed.q)
        self._sign_codes = None
        if self.rotation == Rotation(self.in_features) and self.rotation.blocks == 1:
            self._sign_codes = hadamard_codes(self.in_features)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self.apply_group([self], x)[0]

    @staticmethod
    def apply_group(
        linears: Sequence[VoronoiLinear], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, rotating it once, in one parallel region."""
        first = linears[0]
        for linear in linears:
            linear._checked(x)
        if any(linear._kind != first._kind for linear in linears):
            return [linear(x) for linear in linears]
        if len(x) == 1 and first._words is not None:
            ys = first._multiply_one(linears, x[0])
        else:
            rotated = first.rotation.apply(np.ascontiguousarray(x))
            ys = [linear._multiply_many(rotated) for linear in linears]
        return [linear._finished(y) for linear, y in zip(linears, ys, strict=True)]

    def _multiply_one(
        self, linears: Sequence[VoronoiLinear], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one token by matrices of this one's kind."""
        if self._sign_codes is None:  # not one plain Hadamard matrix: rotated outside the kernel
            x = self.rotation.apply(x)
        pairs = np.empty((self.in_features // 8, 3), np.int32)
        scale = prepare_row(np.ascontiguousarray(x), self._sign_codes, pairs)
        plan, starts = self._plan_of(linears)
        y = np.empty(ROWS * plan[-1, -1], np.float32)
        multiply_row(plan, self._q, self._tables, pairs, np.float32(scale), y)
        return [
            y[None, start : start + linear.out_features]
            for start, linear in zip(starts, linears, strict=True)
        ]

    def _plan_of(
        self, linears: Sequence[VoronoiLinear]
    ) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """Return what `multiply_row` needs to know of matrices, and where their outputs start."""
        # Keeping the linears keeps the arrays alive whose addresses are in the plan.
        if self._plan is None or self._plan[0] != list(linears):
            ends = np.cumsum([linear._groups for linear in linears])
            rows = [[*linear._addresses(), end] for linear, end in zip(linears, ends, strict=True)]
            starts = tuple(int(ROWS * (e - f._groups)) for e, f in zip(ends, linears, strict=True))
            self._plan = list(linears), np.array(rows, np.int64), starts
        return self._plan[1:]

    def _addresses(self) -> list[int]:
        arrays = (self._words, self._scale_index, self._betas, self._row_scale)
        return [*(array.ctypes.data for array in arrays if array is not None), self._index_width]

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        scales = (self._scale_index, self._index_width, self._betas, self._row_scale)
        if self._words is None:
            dequantize_any_groups(self._digits, *scales, self._q, first, out)
        else:
            dequantize_groups(self._words, *scales, self._q, self._tables, first, out)


class Int8Linear(_TiledLinear):
    """A matrix V x N of int8 rows: token embeddings and the output head.

    Parameters
    ----------
    packed : PackedInt8
    bias : (V,) float32, optional
    """

    dtype = "int8"

    def __init__(self, packed: PackedInt8, bias: NDArray[np.float32] | None = None) -> None:
        super().__init__(packed.shape, bias)
        if self.in_features > MAX_INT8_COLUMNS:
            raise InputError(
                f"the matrix has {self.in_features} columns; int8 rows are exact in 32 bits up to "
                f"{MAX_INT8_COLUMNS}"
            )
        self.nbytes = packed.nbytes
        self._row_scale = _padded_scale(packed.row_scale)
        self._bytes = _read_only(packed.int8)
        self._words = _read_only(packed.int8.view("<i4")[..., 0])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, V) float32."""
        self._checked(x)
        return self._finished(self._multiply_one(x) if len(x) == 1 else self._multiply_many(x))

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows in float32: (T,) int64 -> (T, N)."""
        raised = self._bytes[ids // ROWS, :, ids % ROWS].reshape(len(ids), -1)
        values = raised.astype(np.float32) - np.float32(128)
        return values * self._row_scale[ids, None]

    def _multiply_one(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.empty(self.in_features, np.int8)
        scale = quantize_row(np.ascontiguousarray(x[0]), values)
        y = np.empty((1, ROWS * self._groups), np.float32)
        total = int(values.sum(dtype=np.int64))
        multiply_int8_row(self._words, self._row_scale, values.view(np.int32), total, y[0])
        y *= np.float32(scale)
        return y[:, : self.out_features]

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        dequantize_int8_groups(self._words, self._row_scale, first, out)
