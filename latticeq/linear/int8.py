"""Int8 rows: token embeddings and the output head, straight from their bytes.

One token is rounded to int8 under one scale and multiplied in integers, exact for N up to 65536.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.linear.int8_kernels import dequantize_int8_groups, multiply_int8_row, quantize_row
from latticeq.linear.tiled import TiledLinear, padded_scale, read_only
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.int8 import PackedInt8

__all__ = ["Int8Linear"]

MAX_COLUMNS = 2**16


class Int8Linear(TiledLinear):
    """A matrix V x N of int8 rows: token embeddings and the output head.

    Parameters
    ----------
    packed : PackedInt8
    bias : (V,) float32, optional

    Raises
    ------
    InputError
        If N is over 65536, or the bias does not fit.
    """

    dtype = "int8"

    def __init__(self, packed: PackedInt8, bias: NDArray[np.float32] | None = None) -> None:
        super().__init__(packed, bias)
        if self.in_features > MAX_COLUMNS:
            raise InputError(
                f"the matrix has {self.in_features} columns; int8 rows are exact in 32 bits up to "
                f"{MAX_COLUMNS}"
            )
        self._row_scale = padded_scale(packed.row_scale)
        self._bytes = read_only(packed.arrays["int8"])
        self._words = read_only(packed.arrays["int8"].view("<i4")[..., 0])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, V) float32."""
        if len(x) != 1:
            return self.multiply_rotated(x)
        self._check(x)
        return self._finished(self._multiply_one(x))

    @classmethod
    def apply_group(
        cls, linears: Sequence[Self], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices; they have nothing to share."""
        return [linear(x) for linear in linears]

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
