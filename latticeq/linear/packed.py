"""Which linear runs which format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.linear.grid import GridLinear
from latticeq.linear.int8 import Int8Linear
from latticeq.linear.int8_tiles import MAX_COLUMNS
from latticeq.linear.nest import NestLinear
from latticeq.linear.pvq import PVQLinear
from latticeq.linear.rounded import RoundedLinear
from latticeq.linear.tiled import TiledLinear
from latticeq.storage.formats.base import Packed
from latticeq.storage.formats.grid import PackedGrid
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.formats.nest import PackedNest
from latticeq.storage.formats.pvq import PackedPVQ

__all__ = [
    "RUNTIMES",
    "GridLinear",
    "Int8Linear",
    "NestLinear",
    "PVQLinear",
    "PackedLinear",
    "RoundedLinear",
    "make_packed_linear",
    "make_tiled_linear",
]

RUNTIMES = ("packed", "int8", "float32")
"""How a packed matrix is run.

- "packed": exactly what is stored; activations are rounded to int8;
- "int8": rounded to a byte a weight when it is loaded (`RoundedLinear`);
- "float32": decoded tile by tile and multiplied by BLAS, activations in float32.
"""

PackedLinear = TiledLinear | RoundedLinear


def make_packed_linear(
    packed: Packed, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
) -> PackedLinear:
    """Return the linear that multiplies by a packed matrix M x N.

    Parameters
    ----------
    packed : Packed
    bias : (M,) float32, optional
    runtime : str
        One of `RUNTIMES`. Matrices of int8 rows are the same for "packed" and "int8", and so are
        those whose width is no multiple of four, or over 65536.

    Raises
    ------
    InputError
        If the bias does not fit, or the format or runtime is one that nothing runs.
    """
    if runtime != "int8":
        return make_tiled_linear(packed, bias, runtime)
    n = packed.shape[1]
    if isinstance(packed, PackedInt8) or n % 4 != 0 or n > MAX_COLUMNS:
        return make_tiled_linear(packed, bias)
    return RoundedLinear(make_tiled_linear(packed, bias, "float32"))


def make_tiled_linear(
    packed: Packed, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
) -> NestLinear | PVQLinear | GridLinear | Int8Linear:
    """Do what `make_packed_linear` does for the runtimes that keep a matrix as it is stored."""
    if isinstance(packed, PackedNest):
        return NestLinear(packed, bias, runtime)
    if isinstance(packed, PackedPVQ):
        return PVQLinear(packed, bias, runtime)
    if isinstance(packed, PackedGrid):
        return GridLinear(packed, bias, runtime)
    if isinstance(packed, PackedInt8):
        return Int8Linear(packed, bias, runtime)
    raise InputError(f"there is no linear for format {packed.format!r}")
