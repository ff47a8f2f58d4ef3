"""Packed matrices rounded to int8 when they are loaded: a byte a weight, and nothing to decode.

What costs time in one token's product is either reading the weights or decoding them. Where
decoding costs more than reading a whole byte would, this is the faster way, at twice the memory.
Rounding a row to int8 under its own scale adds about 2 % to the squared error of a code of four
bits (`latticeq.linear.int8_tiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.linear.int8_kernels import multiply_rounded_token
from latticeq.linear.int8_tiles import MAX_COLUMNS, Int8Rows, multiply_tiles
from latticeq.linear.tiled import TiledLinear, check_input
from latticeq.linear.token import TokenProduct, multiply_token
from latticeq.storage.bits import ROWS

__all__ = ["RoundedLinear"]


class RoundedLinear:
    """A matrix M x N in int8, made from a packed one.

    Parameters
    ----------
    inner : TiledLinear
        N a multiple of 4, up to 65536.

    Attributes
    ----------
    rotation : Rotation
        Of the input.
    nbytes, run_nbytes : int
        Of the packed matrix, what the file holds; and of memory, M · N and a scale a row.

    Raises
    ------
    InputError
        If N is another.
    """

    def __init__(self, inner: TiledLinear) -> None:
        self.in_features, self.out_features = inner.in_features, inner.out_features
        if self.in_features % 4:
            raise InputError(
                f"the matrix has {self.in_features} columns; int8 takes them four at a time"
            )
        if self.in_features > MAX_COLUMNS:
            raise InputError(
                f"the matrix has {self.in_features} columns; int8 rows are exact in 32 bits up to "
                f"{MAX_COLUMNS}"
            )
        self.nbytes, self.dtype = inner.nbytes, inner.dtype
        self.rotation = inner.rotation
        self.bias = inner.bias
        self.product: TokenProduct | None = None
        groups = -(-self.out_features // ROWS)
        self._words = np.empty((groups, self.in_features // 4, ROWS), np.int32)
        self._row_scale = np.empty(ROWS * groups, np.float32)
        self.run_nbytes = self._words.nbytes + self._row_scale.nbytes
        for first, words, scale in inner.rounded_tiles():
            self._words[first : first + len(words)] = words
            self._row_scale[ROWS * first : ROWS * first + len(scale)] = scale
        inner.release()

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self.apply_group([self], x)[0]

    @staticmethod
    def apply_group(
        linears: Sequence[RoundedLinear], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, rotating and rounding it once if they agree."""
        first = linears[0]
        for linear in linears:
            check_input(x, linear.in_features)
        if any(linear.rotation != first.rotation for linear in linears):
            return [linear(x) for linear in linears]
        x = np.ascontiguousarray(x)
        if len(x) == 1:
            return multiply_token(linears, x)
        rows = Int8Rows(x, first.rotation)
        return [linear.multiply_int8(rows) for linear in linears]

    def multiply_int8(self, rows: Int8Rows) -> NDArray[np.float32]:
        """Multiply rotated tokens that are rounded to int8: (T, N) -> (T, M) float32."""
        out = np.empty((rows.padded, len(self._row_scale)), np.float32)
        multiply_tiles(self._words, self._row_scale, *rows.operands, 0, out)
        return self.finished(out[: len(rows), : self.out_features])

    @property
    def groups(self) -> int:
        """Groups of sixteen rows, the last one filled up."""
        return len(self._words)

    @property
    def token_kind(self) -> tuple[Any, ...]:
        """What matrices that share a `TokenProduct` agree in."""
        return "rounded", self.rotation

    def token_kernel(self) -> tuple[Callable[..., None], int, None]:
        """Return the kernel; it takes neither q nor tables."""
        return multiply_rounded_token, 0, None

    def token_plan(self) -> list[int]:
        """Return the addresses of the words and the row scales."""
        return [self._words.ctypes.data, self._row_scale.ctypes.data]

    def finished(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return products, contiguous and with the bias added."""
        y = np.ascontiguousarray(y)
        if self.bias is not None:
            y += self.bias
        return y
