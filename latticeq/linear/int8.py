"""Int8 rows: token embeddings and the output head, straight from their bytes.

What comes to the head is not rotated, and its largest channels stand far out: rounded to int8 it
would cost more than the weights do. So a token is taken in two int8 parts,

    x = a u + a' u' + rest,      u = round(x / a),   u' = round((x - a u) / a'),

with a' about a / 254, and each is multiplied in integers, exact for N up to 65536.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.linear.int8_kernels import (
    SMALLEST,
    dequantize_int8_groups,
    multiply_int8_row,
    quantize_row,
)
from latticeq.linear.int8_tiles import MAX_COLUMNS, Int8Rows, multiply_tiles
from latticeq.linear.tiled import TiledLinear, padded_scale, read_only
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.int8 import PackedInt8

__all__ = ["Int8Linear"]


class Int8Linear(TiledLinear):
    """A matrix V x N of int8 rows: token embeddings and the output head.

    Parameters
    ----------
    packed : PackedInt8
    bias : (V,) float32, optional
    runtime : "packed" or "float32"

    Raises
    ------
    InputError
        If N is over 65536, or the bias does not fit.
    """

    dtype = "int8"

    def __init__(
        self, packed: PackedInt8, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
    ) -> None:
        super().__init__(packed, bias, runtime)
        if self.in_features > MAX_COLUMNS:
            raise InputError(
                f"the matrix has {self.in_features} columns; int8 rows are exact in 32 bits up to "
                f"{MAX_COLUMNS}"
            )
        self._row_scale = padded_scale(packed.row_scale)
        self._bytes = read_only(packed.arrays["int8"])
        self._words = read_only(packed.arrays["int8"].view("<i4")[..., 0])

    @classmethod
    def apply_group(
        cls, linears: Sequence[Self], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, rounding it once if they agree."""
        for linear in linears:
            linear._check(x)
        if any(linear._operand() != linears[0]._operand() for linear in linears):
            return [linear(x) for linear in linears]
        if linears[0]._is_exact:
            return [linear.multiply_rotated(x) for linear in linears]
        parts = _two_parts(np.ascontiguousarray(x))
        if len(x) == 1:
            return [linear.finished(linear._multiply_one(parts)) for linear in linears]
        rows = Int8Rows(parts)
        return [linear.multiply_int8(rows) for linear in linears]

    def multiply_int8(self, rows: Int8Rows) -> NDArray[np.float32]:
        """Multiply tokens in two parts, all first ones before all second: (2 T, N) -> (T, M)."""
        out = np.empty((rows.padded, ROWS * self._groups), np.float32)
        multiply_tiles(self._words, self._row_scale, *rows.operands, 0, out)
        count = len(rows) // 2
        y = out[:count, : self.out_features]
        y += out[count : 2 * count, : self.out_features]
        return self.finished(np.ascontiguousarray(y))

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows in float32: (T,) int64 -> (T, N)."""
        raised = self._bytes[ids // ROWS, :, ids % ROWS].reshape(len(ids), -1)
        values = raised.astype(np.float32) - np.float32(128)
        return values * self._row_scale[ids, None]

    def _multiply_one(self, parts: NDArray[np.float32]) -> NDArray[np.float32]:
        values = np.empty(parts.shape, np.int8)
        scales = np.array([quantize_row(x, v) for x, v in zip(parts, values, strict=True)], "f4")
        totals = values.sum(axis=1, dtype=np.int32)
        y = np.empty((1, ROWS * self._groups), np.float32)
        fours = values.view(np.int32)
        multiply_int8_row(self._words, self._row_scale, *fours, totals, scales, y[0])
        return y[:, : self.out_features]

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        dequantize_int8_groups(self._words, self._row_scale, first, out)


def _two_parts(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what int8 holds of each row, and under those rows what is left: (T, N) -> (2 T, N)."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity speak for themselves
        largest = np.maximum(np.abs(x).max(axis=1, keepdims=True), SMALLEST)
        scale = largest / np.float32(127)
        coarse = np.rint(x / scale) * scale
        return np.concatenate([coarse, x - coarse])
