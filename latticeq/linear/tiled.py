"""What packed linears share: the rotation of the input, many tokens by tiles, and the bias.

For many tokens tiles of rows are decoded to float32, transposed, and multiplied by BLAS. A tile is
used by all tokens before the next is decoded, so that decoding costs little beside the product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.base import Packed

__all__ = ["TiledLinear", "padded_scale", "read_only"]

TILE_BYTES = 2**20
"""Of float32 at a time: decoded in one cache, multiplied from there."""


class TiledLinear(ABC):
    """A packed matrix M x N that is decoded tile by tile.

    Parameters
    ----------
    packed : Packed
    bias : (M,) float32, optional

    Attributes
    ----------
    rotation : Rotation
        Of the input, which the matrix's columns are stored in.
    """

    dtype: str

    def __init__(self, packed: Packed, bias: NDArray[np.float32] | None) -> None:
        shape = packed.shape
        self.out_features, self.in_features = shape
        self.nbytes = packed.nbytes
        self.rotation = packed.rotation
        self._groups = -(-shape[0] // ROWS)
        if bias is not None and bias.shape != shape[:1]:
            raise InputError(f"bias has shape {bias.shape}; a matrix {shape} needs {shape[:1]}")
        self._bias = bias

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self.apply_group([self], x)[0]

    @classmethod
    def apply_group(
        cls, linears: Sequence[Self], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, rotating it once where they agree."""
        first = linears[0]
        for linear in linears:
            linear._check(x)
        if any(linear.rotation != first.rotation for linear in linears):
            return [linear(x) for linear in linears]
        rotated = first.rotation.apply(np.ascontiguousarray(x))
        return [linear.multiply_rotated(rotated) for linear in linears]

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
            for rows, tile in self._tiles():
                np.matmul(x, tile, out=out[:, rows])
        return self._finished(out)

    @abstractmethod
    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        """Decode row groups from `first` on into (N, 16 n): column j is row 16 * first + j."""

    def _tiles(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield slices of rows and their float32 values, transposed: (N, rows)."""
        step = max(1, TILE_BYTES // (4 * ROWS * self.in_features))
        for first in range(0, self._groups, step):
            count = min(step, self._groups - first)
            tile = np.empty((self.in_features, ROWS * count), np.float32)
            self._dequantize(first, tile)
            rows = slice(ROWS * first, min(ROWS * (first + count), self.out_features))
            yield rows, tile[:, : rows.stop - rows.start]

    def _finished(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._bias is not None:
            y += self._bias
        return y

    def _check(self, x: NDArray[np.float32]) -> None:
        if x.ndim != 2 or x.shape[1] != self.in_features or x.dtype != np.float32:
            raise InputError(
                f"input is {x.dtype} of shape {x.shape}; it must be float32 of shape (tokens, "
                f"{self.in_features})"
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
