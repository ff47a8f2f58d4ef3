"""Scalar grids of four bits: tiles decoded through a table of sixteen levels, sixteen rows at once.

The same way serves one token and many.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.linear.tiled import TiledLinear, read_only
from latticeq.simd import load, lookup, shift_right, store
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.grid import PackedGrid

__all__ = ["GridLinear"]


class GridLinear(TiledLinear):
    """A matrix M x N of four-bit codes: int4, nf4, mxfp4 or nvfp4.

    Parameters
    ----------
    packed : PackedGrid
    bias : (M,) float32, optional
    runtime : "packed" or "float32"
    """

    def __init__(
        self, packed: PackedGrid, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
    ) -> None:
        super().__init__(packed, bias, runtime)
        self.dtype = packed.format
        self._packed = packed
        self._levels = packed.scales_of(slice(0)).grid.by_code
        self._words = read_only(packed.arrays["codes"].view("<i4")[..., 0])

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        rows = slice(ROWS * first, ROWS * first + out.shape[1])
        scales = self._packed.scales_of(rows)
        steps = _by_groups(scales.steps(), out.shape[1])
        zero = None if scales.zero is None else _by_groups(scales.zero, out.shape[1])
        _dequantize_groups(self._words, self._levels, steps, zero, self._packed.group, first, out)


def _by_groups(scales: NDArray[np.floating], rows: int) -> NDArray[np.float32]:
    """Lay scales of rows out for lanes: (rows, S) -> (rows / 16, S, 16), padded with zeros."""
    padded = np.zeros((rows, scales.shape[1]), np.float32)
    padded[: len(scales)] = scales
    return np.ascontiguousarray(padded.reshape(-1, ROWS, scales.shape[1]).swapaxes(1, 2))


@kernel(parallel=True)
def _dequantize_groups(
    words: Any, levels: Any, steps: Any, zero: Any, size: int, first: int, out: Any
) -> None:
    """Decode some row groups to float32, transposed.

    Parameters
    ----------
    words : (groups, ceil(N / 8), 16) int32
        Eight codes each, four bits a code.
    levels : (16,) float32
    steps : (n, ceil(N / size), 16) float32
        What a unit of the levels is worth, for each group of columns.
    zero : the same, or None
        What level zero stands for.
    size : int
        Columns in a group.
    first : int
        The first row group to decode.
    out : (N, 16 * n) float32, output
    """
    columns, wide = out.shape
    for step in prange(wide // 16):
        mine, my_steps, table = words[first + step], steps[step], load(levels, 0)
        for part in range(len(my_steps)):
            scale = load(my_steps, 16 * part)
            for column in range(part * size, min(part * size + size, columns)):
                codes = shift_right(load(mine, 16 * (column >> 3)), 4 * (column & 7))
                value = lookup(table, codes & 15) * scale
                if zero is not None:
                    value = value + load(zero[step], 16 * part)
                store(out, column * wide + 16 * step, value)
