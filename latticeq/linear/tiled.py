"""What packed linears share: the rotation of the input, many tokens by tiles, and the bias.

For many tokens tiles of rows are decoded. Then, as the *runtime* says, they are

- "packed": rounded to int8 under a scale a row and multiplied by tokens rounded to int8
  (`latticeq.linear.int8_tiles`); codewords need no rounding, see `latticeq.linear.nest`;
- "float32": multiplied by BLAS in float32, tokens too: slower, and exactly what the packed bytes
  say.

A tile is used by all tokens before the next is decoded, so that decoding costs little beside the
product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.jit import threads
from latticeq.linear.int8_tiles import MAX_COLUMNS, Int8Rows, multiply_tiles, round_tile
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.base import Packed
from latticeq.storage.mapped import release
from latticeq.transforms.rotation import Rotation

__all__ = ["TILED_RUNTIMES", "TiledLinear", "check_input", "padded_scale", "read_only"]

TILE_BYTES = 2**21
"""Of float32 at a time: decoded in one cache, multiplied from there."""

GROUPS_A_THREAD = 4
"""Row groups of a tile for each thread, at least: what one task of `multiply_panels` takes."""

TILED_RUNTIMES = ("packed", "float32")
"""How tiles are multiplied: see above."""


class TiledLinear(ABC):
    """A packed matrix M x N that is decoded tile by tile.

    Parameters
    ----------
    packed : Packed
    bias : (M,) float32, optional
    runtime : "packed" or "float32"

    Attributes
    ----------
    rotation : Rotation
        Of the input, which the matrix's columns are stored in.
    bias : (M,) float32, or None
    """

    dtype: str

    def __init__(
        self, packed: Packed, bias: NDArray[np.float32] | None, runtime: str = "packed"
    ) -> None:
        shape = packed.shape
        self.out_features, self.in_features = shape
        self.nbytes = self.run_nbytes = packed.nbytes
        self.rotation = packed.rotation
        self._stored = tuple(packed.arrays.values())
        self.runtime = runtime
        self._groups = -(-shape[0] // ROWS)
        if runtime not in TILED_RUNTIMES:
            raise InputError(f"runtime is {runtime!r}; it must be 'packed', 'int8' or 'float32'")
        if bias is not None and bias.shape != shape[:1]:
            raise InputError(f"bias has shape {bias.shape}; a matrix {shape} needs {shape[:1]}")
        self.bias = bias

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self.apply_group([self], x)[0]

    @classmethod
    def apply_group(
        cls, linears: Sequence[Self], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, rotating and rounding it once if they agree."""
        first = linears[0]
        for linear in linears:
            linear._check(x)
        if any(linear._operand() != first._operand() for linear in linears):
            return [linear(x) for linear in linears]
        x = np.ascontiguousarray(x)
        if first._is_exact:
            rotated = first.rotation.apply(x)
            return [linear.multiply_rotated(rotated) for linear in linears]
        rows = Int8Rows(x, first.rotation)
        return [linear.multiply_int8(rows) for linear in linears]

    def release(self) -> None:
        """Give back the file's pages: the matrix is kept in another form, or not at all."""
        for array in self._stored:
            release(array)

    def _operand(self) -> tuple[Rotation, bool]:
        """Return what decides the form of the input that is multiplied."""
        return self.rotation, self._is_exact

    @property
    def _is_exact(self) -> bool:
        """Whether many tokens are multiplied in float32.

        Int8 takes four columns at a time, and only so many that its sums fit 32 bits.
        """
        n = self.in_features
        return self.runtime == "float32" or n % 4 != 0 or n > MAX_COLUMNS

    def multiply_int8(self, rows: Int8Rows) -> NDArray[np.float32]:
        """Multiply rotated tokens that are rounded to int8 by tiles that are, too.

        Parameters
        ----------
        rows : Int8Rows
            Of T tokens of N numbers.

        Returns
        -------
        (T, M) float32
            The bias included. Beside `multiply_rotated`, an entry is off by rounding alone: with
            a and b the scales of the token and the row, at most
            (a/2)·||w||_1 + (b/2)·||x||_1 + N·ab/4.
        """
        out = np.empty((rows.padded, ROWS * self._groups), np.float32)
        for first, words, scale in self.rounded_tiles():
            multiply_tiles(words, scale, *rows.operands, ROWS * first, out)
        return self.finished(np.ascontiguousarray(out[: len(rows), : self.out_features]))

    def multiply_rotated(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply an input that is rotated already, in float32 against decoded tiles.

        Parameters
        ----------
        x : (T, N) float32
            ``rotation.apply`` of the input, or what a quantizer made of that.

        Returns
        -------
        (T, M) float32
            The bias included.

        Raises
        ------
        InputError
            If the shape or dtype is another.
        """
        self._check(x)
        out = np.empty((len(x), self.out_features), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity speak for themselves
            for first, tile in self.float_tiles():
                start = ROWS * first
                stop = min(start + tile.shape[1], self.out_features)
                np.matmul(x, tile[:, : stop - start], out=out[:, start:stop])
        return self.finished(out)

    @abstractmethod
    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        """Decode row groups from `first` on into (N, 16 n): column j is row 16 * first + j."""

    def _round(self, first: int, words: NDArray[np.int32], scale: NDArray[np.float32]) -> None:
        """Round row groups from `first` on to int8, as `round_tile` does."""
        tile = np.empty((self.in_features, ROWS * len(words)), np.float32)
        self._dequantize(first, tile)
        round_tile(tile, words, scale)

    def float_tiles(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row group of each tile and its float32 values, transposed."""
        for first, count in self.tiles():
            tile = np.empty((self.in_features, ROWS * count), np.float32)
            self._dequantize(first, tile)
            yield first, tile

    def rounded_tiles(self) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.float32]]]:
        """Yield the first row group of each tile, its int8 words and the scales of its rows."""
        for first, count in self.tiles():
            words = np.empty((count, self.in_features // 4, ROWS), np.int32)
            scale = np.empty(ROWS * count, np.float32)
            self._round(first, words, scale)
            yield first, words, scale

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield the first row group and the number of row groups of each tile."""
        # Of a wide matrix few groups fill the cache, but each thread is to have its own.
        step = max(1, GROUPS_A_THREAD * threads(), TILE_BYTES // (4 * ROWS * self.in_features))
        for first in range(0, self._groups, step):
            yield first, min(step, self._groups - first)

    def finished(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add the bias to products, in place."""
        if self.bias is not None:
            y += self.bias
        return y

    def _check(self, x: NDArray[np.float32]) -> None:
        check_input(x, self.in_features)


def check_input(x: NDArray[np.float32], columns: int) -> None:
    """Refuse an input that is not float32 of shape (T, columns)."""
    if x.ndim != 2 or x.shape[1] != columns or x.dtype != np.float32:
        raise InputError(
            f"input is {x.dtype} of shape {x.shape}; it must be float32 of shape (tokens, "
            f"{columns})"
        )


def padded_scale(row_scale: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return float32 row scales, zero for the rows that fill the last group."""
    scale = np.zeros(len(row_scale) + -len(row_scale) % ROWS, np.float32)
    scale[: len(row_scale)] = row_scale
    return scale


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view, so that kernels see one type whether or not it is mapped."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view
