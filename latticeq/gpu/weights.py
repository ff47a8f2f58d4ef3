"""Packed matrices in device memory, laid out for the kernels that multiply by them.

Rows are taken sixteen at a time, columns 128 at a time, and a warp's share of both is contiguous:
see ``cuda/small.cu``. Codewords keep their bits but are named anew (``cuda/words.cuh``): those of
the cells "voronoi" and "nestquantm" take one bit a block more than in the file, 1/8 of a bit a
weight, which spares every product a search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from latticeq.gpu.device import cupy, function
from latticeq.gpu.tokens import STEP
from latticeq.storage.bits import ROWS, bit_width
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.formats.nest import PackedNest

__all__ = ["CELLS", "WORD_Q", "Weights", "lay_floats", "lay_int8", "lay_nest"]

CELLS = {"cubic": 0, "voronoi": 1, "nestquantm": 2, "d8": 3}
"""The numbers of cells in CUDA files."""

WORD_Q = 16
"""The largest q whose digits fit four bits."""

WORDS, BYTES, HALVES = 0, 1, 2
"""FORMAT of CUDA files: codewords, int8 and float16."""

THREADS = 128


@dataclass(frozen=True)
class Weights:
    """A matrix M x N on the device.

    Attributes
    ----------
    shape : tuple of int
        M and N.
    constants : dict of str to int
        What kernels are compiled with: FORMAT, CELL, Q, PAIRS, PLANES, FLIPS.
    arrays : tuple
        words, pairs, plane, flips and scales as kernels take them; 0 where there is none.
    row_scale : (16 tiles,) float32
        What a unit of a row's decoded float16 is worth.
    """

    shape: tuple[int, int]
    constants: dict[str, int]
    arrays: tuple[Any, ...]
    row_scale: Any

    @property
    def tiles(self) -> int:
        """Groups of sixteen rows."""
        return -(-self.shape[0] // ROWS)

    @property
    def steps(self) -> int:
        """Groups of 128 columns."""
        return -(-self.shape[1] // STEP)

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        return int(sum(getattr(a, "nbytes", 0) for a in self.arrays) + self.row_scale.nbytes)


def lay_nest(packed: PackedNest) -> Weights:
    """Upload codewords with q up to 16: packed bytes go to the device and are laid out there."""
    module = cupy()
    (m, n), q, k = packed.shape, packed.q, len(packed.betas)
    tiles, steps, cell = -(-m // ROWS), -(-n // STEP), packed.format
    pairs, plane = (0, 0) if cell == "d8" else (bit_width(k) // 2, bit_width(k) % 2)
    has_flips = cell in {"voronoi", "nestquantm"}
    shape = (tiles, steps, 32)
    words = module.empty((*shape, 8), "uint32")
    arrays = (
        module.empty((pairs, *shape), "uint16") if pairs else 0,
        module.empty(shape, "uint8") if plane else 0,
        module.empty(shape, "uint8") if has_flips else 0,
    )
    digits = module.asarray(packed.digit_bytes())
    width = int(digits.shape[3])
    index = packed.arrays.get("scale_index")
    stored = 0 if index is None or index.size == 0 else module.asarray(index)
    index_width = 0 if cell == "d8" else bit_width(k)
    relay = function("relay", "relay", CELL=CELLS[cell])
    relay(
        (-(-tiles * steps * 32 // THREADS),),
        (THREADS,),
        (digits, stored, width, index_width, n // 8, q, pairs, plane, tiles, steps, words, *arrays),
    )
    largest = packed.betas[-1]
    constants = {
        "FORMAT": WORDS,
        "CELL": CELLS[cell],
        "Q": q,
        "PAIRS": pairs,
        "PLANES": plane,
        "FLIPS": int(has_flips),
    }
    scale = packed.row_scale.astype(np.float32) * (largest / np.float32(16))
    scales = module.asarray(_twice_halves(packed.betas / largest))
    return Weights((m, n), constants, (words, *arrays, scales), _padded_scale(scale))


def lay_int8(packed: PackedInt8) -> Weights:
    """Upload int8 rows."""
    module = cupy()
    (m, n) = packed.shape
    tiles, steps = -(-m // ROWS), -(-n // STEP)
    words = module.empty((tiles, steps, 4, 32, 4), "uint32")
    stored = module.asarray(packed.arrays["int8"])
    relay = function("relay_rows", "relay_bytes")
    relay((tiles * steps,), (THREADS,), (stored, n // 4, tiles, steps, words))
    scale = _padded_scale(packed.row_scale.astype(np.float32))
    return Weights((m, n), _plain(BYTES), (words, 0, 0, 0, 0), scale)


def lay_floats(shape: tuple[int, int], tiles_of_rows: Any) -> Weights:
    """Upload a matrix in float16, each row under what makes its largest entry 256.

    Parameters
    ----------
    shape : tuple of int
        M and N.
    tiles_of_rows : iterable of (int, (16 n, N) float32)
        First rows, multiples of sixteen, and the rows from there on, on the device or not; rows
        beyond M are left out of account.
    """
    module = cupy()
    m, n = shape
    tiles, steps = -(-m // ROWS), -(-n // STEP)
    words = module.empty((tiles, steps, 8, 32, 8), "uint16")
    scale = module.zeros(ROWS * tiles, "float32")
    relay = function("relay_rows", "relay_floats")
    for first, rows in tiles_of_rows:
        part = module.ascontiguousarray(module.asarray(rows, "float32"))
        count = -(-len(part) // ROWS)
        scale[first : first + len(part)] = abs(part).max(axis=1) / module.float32(256)
        last = min(first + len(part), m)
        relay((count, steps), (256,), (part, scale, last, n, first // ROWS, steps, words))
    return Weights((m, n), _plain(HALVES), (words, 0, 0, 0, 0), scale)


def _plain(number: int) -> dict[str, int]:
    return {"FORMAT": number, "PAIRS": 0, "PLANES": 0, "FLIPS": 0}


def _twice_halves(scales: Any) -> Any:
    """Return sixteen scales as float16 in both halves of 32 bits; zeros where no index leads."""
    table = np.zeros(16, np.float16)
    table[: len(scales)] = scales
    return np.repeat(table, 2).view(np.uint32)


def _padded_scale(scale: Any) -> Any:
    padded = np.zeros(len(scale) + -len(scale) % ROWS, np.float32)
    padded[: len(scale)] = scale
    return cupy().asarray(padded)
