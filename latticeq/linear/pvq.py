"""Pyramid codes: indices become words, words become tiles, sixteen rows at a time.

To find the word of an index takes a walk over all its coordinates, each step of which waits for the
one before; a byte a weight is read in far less. So there is no kernel for one token: where tokens
come one at a time, the runtime "int8" decodes the matrix once, when it is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.bit_fields import read_field
from latticeq.codes.pyramid_index import unrank_into
from latticeq.jit import kernel, prange
from latticeq.linear.tiled import TiledLinear, padded_scale, read_only
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.pvq import PackedPVQ

__all__ = ["PVQLinear"]


class PVQLinear(TiledLinear):
    """A matrix M x N of words of a pyramid code.

    Parameters
    ----------
    packed : PackedPVQ
        Whose indices were checked.
    bias : (M,) float32, optional
    runtime : "packed" or "float32"
    """

    def __init__(
        self, packed: PackedPVQ, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
    ) -> None:
        super().__init__(packed, bias, runtime)
        self.dtype = packed.format
        self._code = packed.code
        self._gain_bits = int(packed.entry["gain_bits"])
        self._index = read_only(packed.arrays["index"])
        nothing = np.zeros((*self._index.shape[:2], 0), np.uint8)
        self._gain_index = read_only(packed.arrays.get("gain_index", nothing))
        self._levels = read_only(packed.levels)
        self._row_scale = padded_scale(packed.row_scale)

    def _dequantize(self, first: int, out: NDArray[np.float32]) -> None:
        code = self._code
        with np.errstate(over="ignore"):  # limbs wrap, and carry
            _dequantize_groups(
                self._index,
                code.index_bits,
                code.size_limbs,
                code.table,
                self._gain_index,
                self._gain_bits,
                self._levels,
                self._row_scale,
                first,
                out,
            )


@kernel(parallel=True)
def _dequantize_groups(
    index: Any,
    bits: int,
    size: Any,
    table: Any,
    gain_index: Any,
    gain_bits: int,
    levels: Any,
    row_scale: Any,
    first: int,
    out: Any,
) -> None:
    """Decode some row groups to float32, transposed.

    Parameters
    ----------
    index : (groups, N / g, 2 * bits) uint8
    bits : int
        Of an index.
    size, table
        Of the code: see `latticeq.codes.pyramid_index`.
    gain_index : (groups, N / g, 2 * gain_bits) uint8
    gain_bits : int
    levels : (2^gain_bits,) float32
    row_scale : (16 * groups,) float32
    first : int
        The first row group to decode.
    out : (N, 16 * n) float32, output
    """
    n = len(table)
    for step in prange(out.shape[1] // ROWS):
        group = first + np.int64(step)
        left, chosen = np.empty_like(size), np.zeros(1, np.uint64)
        word = np.empty(n, np.int16)
        for block in range(index.shape[1]):
            for row in range(ROWS):
                read_field(index[group, block], bits * row, bits, left)
                unrank_into(left, size, table, word)
                if gain_bits > 0:
                    read_field(gain_index[group, block], gain_bits * row, gain_bits, chosen)
                norm = np.float32(0)
                for i in range(n):
                    norm += np.float32(word[i]) * np.float32(word[i])
                length = row_scale[ROWS * group + row] * levels[np.int64(chosen[0])]
                scale = length / np.sqrt(norm)
                for i in range(n):
                    out[n * block + i, ROWS * step + row] = np.float32(word[i]) * scale
