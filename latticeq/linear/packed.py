"""Which linear runs which format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.linear.grid import GridLinear
from latticeq.linear.int8 import Int8Linear
from latticeq.linear.nest import NestLinear
from latticeq.storage.formats.base import Packed
from latticeq.storage.formats.grid import PackedGrid
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.formats.nest import PackedNest

__all__ = ["GridLinear", "Int8Linear", "NestLinear", "make_packed_linear"]


def make_packed_linear(
    packed: Packed, bias: NDArray[np.float32] | None = None, runtime: str = "packed"
) -> NestLinear | GridLinear | Int8Linear:
    """Return the linear that multiplies by a packed matrix M x N.

    Parameters
    ----------
    packed : Packed
    bias : (M,) float32, optional
    runtime : "packed" or "float32"
        See `latticeq.linear.tiled`.

    Raises
    ------
    InputError
        If the bias does not fit, or the format or runtime is one that nothing runs.
    """
    if isinstance(packed, PackedNest):
        return NestLinear(packed, bias, runtime)
    if isinstance(packed, PackedGrid):
        return GridLinear(packed, bias, runtime)
    if isinstance(packed, PackedInt8):
        return Int8Linear(packed, bias, runtime)
    raise InputError(f"there is no linear for format {packed.format!r}")
