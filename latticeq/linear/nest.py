"""Nested codewords of every cell, multiplied straight from their words.

One token is multiplied fused: activations are rotated, rounded to int8 under one scale and
multiplied by codewords as they are decoded, so that a layer's packed bytes are read once and
nothing else is. Many tokens, rounded likewise, meet tiles of points, each block under its own
scale: weights are exactly what is stored either way. Runtime "float32" rounds no activations.

Kernels read words of eight digits in four bits each, q from 9 to 16 as it is stored. Smaller q, and
mixed radix, are widened to such words when the matrix is loaded; q over 16 is decoded by tiles for
one token too. Codewords of cell Voronoi are laid out anew, since to decode them takes most of a
token's time otherwise (`latticeq.linear.unfolded`); the numbers that come out are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.d8_fields import split_d8
from latticeq.codes.words import word_tables
from latticeq.linear.cell_kernels import CELLS
from latticeq.linear.coded_kernels import block_starts, multiply_panels
from latticeq.linear.int8_tiles import Int8Rows
from latticeq.linear.nest_kernels import (
    float_points,
    repeated_scales,
    round_points,
    split_fields,
)
from latticeq.linear.tiled import TiledLinear, padded_scale, read_only
from latticeq.linear.token import TokenProduct, multiply_token
from latticeq.linear.unfolded import UNFOLDED, can_unfold, unfold
from latticeq.storage.bits import ROWS, bit_width, pack_digits, unpack_digits, unpack_scale_index
from latticeq.storage.formats.nest import PackedNest

__all__ = ["NestLinear"]

WORD_Q = 16
"""The largest q whose digits fit four bits."""


class NestLinear(TiledLinear):
    """A matrix M x N of packed codewords, of any cell.

    Parameters
    ----------
    packed : PackedNest
    bias : (M,) float32, optional
    runtime : "packed" or "float32"
    """

    dtype = "nestquant"

    def __init__(
        self, packed: PackedNest, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
    ) -> None:
        super().__init__(packed, bias, runtime)
        code = packed.code
        self._code = code
        self._is_d8 = code.cell == "d8"
        self._kernels = CELLS[code.cell]
        self.raised = self._kernels.raised(code.q) if code.q <= WORD_Q else 128
        self._betas = repeated_scales(packed.betas * np.float32(code.unit))
        self._row_scale = padded_scale(packed.row_scale)
        self._index_width = 0 if self._is_d8 else bit_width(len(packed.betas))
        indices = packed.arrays.get("scale_index", np.zeros((self._groups, 0), np.uint8))
        self._scale_index = read_only(indices.reshape(self._groups, -1))
        self._digits = read_only(packed.digit_bytes())
        self._words = self._tables = None
        if code.q <= WORD_Q:
            self._words = read_only(_widened(self._digits).view("<i4")[..., 0])
            self._tables = word_tables(code.q)
            if runtime == "packed" and code.cell == "voronoi":
                self._unfold()
        self.product: TokenProduct | None = None

    def _unfold(self) -> None:
        """Lay codewords out anew, where they can be."""
        assert self._words is not None
        assert self._tables is not None
        width = self._index_width
        if can_unfold(self.in_features, width):
            given = self._words, self._scale_index, width, self._code.q, self._tables
            self._words, self._scale_index = unfold(*given)
            self._kernels = UNFOLDED
            held = (self._words, self._scale_index, self._row_scale)
            self.run_nbytes = sum(array.nbytes for array in held)
            self.release()

    @classmethod
    def apply_group(
        cls, linears: Sequence[Self], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, rotating it once, in one parallel region."""
        if len(x) != 1 or (len(linears) == 1 and linears[0].token_kind is None):
            return super().apply_group(linears, x)
        if not TokenProduct.fits(linears):
            return [linear(x) for linear in linears]
        for linear in linears:
            linear._check(x)
        return multiply_token(linears, x)

    @property
    def groups(self) -> int:
        """Groups of sixteen rows, the last one filled up."""
        return self._groups

    @property
    def token_kind(self) -> tuple[Any, ...] | None:
        """What matrices that share a `TokenProduct` agree in."""
        if self._words is None or self._is_exact:
            return None
        return self._code.cell, self._code.q, self.rotation

    def token_kernel(self) -> tuple[Callable[..., None], int, NDArray[np.int32] | None]:
        """Return the kernel of this cell, q and its tables."""
        return self._kernels.multiply_token, self._code.q, self._tables

    def token_plan(self) -> list[int]:
        """Return the addresses of the arrays and the width of a scale index."""
        arrays = (self._words, self._scale_index, self._betas, self._row_scale)
        return [*(array.ctypes.data for array in arrays if array is not None), self._index_width]

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        float_points(*self.points(first, out.shape[1] // ROWS), self.raised, out)

    def _round(self, first: int, words: NDArray[np.int32], scale: NDArray[np.float32]) -> None:
        round_points(*self.points(first, len(words)), self.raised, words, scale)

    def multiply_int8(self, rows: Int8Rows) -> NDArray[np.float32]:
        """Multiply rotated tokens that are rounded to int8: (T, N) -> (T, M) float32."""
        words, _, scales = rows.operands
        starts = block_starts(words, self.raised)
        return self.multiply_panels(words, starts, None, scales)[: len(rows)]

    def multiply_panels(
        self,
        words: NDArray[np.int32],
        starts: NDArray[np.int32],
        block_scales: NDArray[np.float32] | None,
        row_scales: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """Multiply panels of integers by the points that the codewords stand for.

        Parameters
        ----------
        words, starts, block_scales, row_scales
            As `latticeq.linear.coded_kernels.multiply_panels` takes them, of P panels.

        Returns
        -------
        (8 P, M) float32
            The bias included. The dots of blocks are exact; a block is one float32 multiply-add.
        """
        rows = (words, starts, block_scales, row_scales)
        out = np.empty((8 * len(words), ROWS * self._groups), np.float32)
        for first, count in self.tiles():
            tile = self.points(first, count)
            multiply_panels(*rows, *tile, 2 * self.raised > 127, ROWS * first, out)
        return self.finished(np.ascontiguousarray(out[:, : self.out_features]))

    def points(self, first: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Decode some row groups.

        Parameters
        ----------
        first, count : int

        Returns
        -------
        points : (count, N / 8, 2, 16) int32
            Coordinates 0 to 3 and 4 to 7 of sixteen rows' blocks as bytes, raised by `raised`.
        scales : (count, N / 8, 16) float32
            What one unit is worth: scales of the row, the code and its points.
        """
        part, rows = slice(first, first + count), slice(ROWS * first, ROWS * (first + count))
        row_scale = self._row_scale[rows]
        points = np.empty((count, self.in_features // 8, 2, ROWS), np.int32)
        scales = np.empty((count, self.in_features // 8, ROWS), np.float32)
        if self._words is not None:
            side = (self._scale_index[part], self._index_width, self._betas)
            out = points, scales, row_scale
            self._kernels.decode_groups(self._words[part], *side, self._code.q, self._tables, out)
            return points, scales
        strings = self._digits[part]
        digits = np.empty((*strings.shape[:3], 8), np.uint8)
        split_fields(strings, digits)
        if self._is_d8:
            digits, index = split_d8(digits, self._code.q)
        else:
            index = self._index_of(part)
        found = self._code.points(digits.reshape(-1, 8)).view(np.uint8) + np.uint8(self.raised)
        found = found.reshape(count, -1, ROWS, 8).view("<i4")
        points[...] = found.swapaxes(2, 3)
        scales[...] = row_scale.reshape(-1, 1, ROWS) * self._betas[index]
        return points, scales

    def _index_of(self, part: slice) -> NDArray[np.uint8]:
        """Return the scale indices of row groups, (n, N / 8, 16)."""
        k, blocks = len(self._code.betas), self.in_features // 8
        strings = self._scale_index[part]
        strings = strings.reshape(len(strings), blocks, 2 * self._index_width)
        index = unpack_scale_index(strings, k, ROWS * len(strings))
        return np.ascontiguousarray(index.reshape(-1, ROWS, blocks).swapaxes(1, 2))


def _widened(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return digits of at most four bits as fields of four: (G, N / 8, 16, w) -> (..., 4)."""
    if digits.shape[3] == bit_width(WORD_Q):
        return digits
    q, rows = 2 ** digits.shape[3], ROWS * len(digits)
    return pack_digits(unpack_digits(digits, q, rows), WORD_Q)
