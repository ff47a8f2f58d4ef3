"""Formats "int4", "nf4", "mxfp4" and "nvfp4": codes of four bits under the scale of a group.

Codes are laid out as the digits of q = 16 are: sixteen rows interleaved, eight columns a word.
Scales, one for each row and group of columns, are an array of their own, in the format's dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.grid_tensor import GridTensor
from latticeq.storage.bits import pack_digits, unpack_digits
from latticeq.storage.formats.base import (
    Entry,
    Packed,
    Shapes,
    check_choice,
    check_integer,
    check_rotation,
    check_scales,
    check_shape,
    describe_rotation,
)

__all__ = ["PackedGrid"]

FIXED_GROUPS = {"mxfp4": 32, "nvfp4": 16}
"""Columns that share a scale, where the format says how many; rows are whole groups there."""

LARGEST_CODES = {"mxfp4": 252, "nvfp4": 126}
"""Of scales stored as small floats: 2^125, six times which is finite, and 448."""

LARGEST_TENSOR_SCALE = 2.0**115
"""So that 6 · 448 times it is finite."""


class PackedGrid(Packed):
    """A matrix of four-bit codes of a scalar grid.

    Arrays
    ------
    codes : uint8, shape (ceil(M / 16), ceil(N / 8), 16, 4)
    scales : shape (M, ceil(N / group))
        float16 (int4, nf4), or uint8 that holds E8M0 (mxfp4) or E4M3 (nvfp4).
    zero : float16, shape (M, ceil(N / group))
        Asymmetric int4 only.
    tensor_scale : float32, shape (1,)
        nvfp4 only.
    """

    names = ("int4", "nf4", "mxfp4", "nvfp4")

    @classmethod
    def takes(cls, tensor: QuantizedTensor) -> bool:
        """Tell whether a tensor is one of grid codes."""
        return isinstance(tensor, GridTensor)

    @classmethod
    def describe(cls, tensor: GridTensor) -> dict[str, Any]:
        """Return the entry of a tensor."""
        entry = {
            "format": tensor.kind,
            "shape": list(tensor.shape),
            "group": tensor.group,
            **describe_rotation(tensor.rotation),
        }
        return entry | ({"symmetric": tensor.symmetric} if tensor.kind == "int4" else {})

    @classmethod
    def pack(cls, tensor: GridTensor) -> dict[str, NDArray[Any]]:
        """Return a tensor's arrays."""
        m, n = tensor.codes.shape
        codes = np.zeros((m, n + -n % 8), np.uint8)
        codes[:, :n] = tensor.codes
        arrays: dict[str, NDArray[Any]] = {
            "codes": pack_digits(codes.reshape(m, -1, 8), 16),
            "scales": tensor.scales,
        }
        if tensor.zero is not None:
            arrays["zero"] = tensor.zero
        if tensor.tensor_scale is not None:
            arrays["tensor_scale"] = np.array([tensor.tensor_scale], np.float32)
        return arrays

    @classmethod
    def check_entry(cls, entry: Entry) -> None:
        """Refuse an entry with fields out of range."""
        kind = entry["format"]
        fixed = FIXED_GROUPS.get(kind)
        check_shape(entry, fixed or 1)
        if fixed:
            check_choice(entry, "group", fixed)
        else:
            check_integer(entry, "group", 1, entry["shape"][1])
        check_rotation(entry)
        if kind == "int4":
            check_choice(entry, "symmetric", True, False)

    @classmethod
    def stored_shapes(cls, entry: Entry) -> Shapes:
        """Return dtype and shape of each array of a checked entry."""
        m, n = entry["shape"]
        groups = (m, -(-n // entry["group"]))
        shapes: Shapes = {
            "codes": ("U8", (-(-m // 16), -(-n // 8), 16, 4)),
            "scales": ("U8" if entry["format"] in FIXED_GROUPS else "F16", groups),
        }
        if not entry.get("symmetric", True):
            shapes["zero"] = ("F16", groups)
        if entry["format"] == "nvfp4":
            shapes["tensor_scale"] = ("F32", (1,))
        return shapes

    @property
    def group(self) -> int:
        """Columns that share a scale; the last group of a row may be shorter."""
        return int(self.entry["group"])

    def check(self) -> None:
        """Refuse scales out of range; every code is a level."""
        scales = self.arrays["scales"]
        if (largest := LARGEST_CODES.get(self.format)) is None:
            check_scales("scales", scales)
        elif scales.max() > largest:
            raise FormatError(f"a scale has code {scales.max()}; it must be at most {largest}")
        if "zero" in self.arrays and not np.isfinite(self.arrays["zero"]).all():
            raise FormatError("zero holds an infinite or NaN number")
        if "tensor_scale" in self.arrays:
            scale = float(self.arrays["tensor_scale"][0])
            if not 0 <= scale <= LARGEST_TENSOR_SCALE:
                raise FormatError(f"tensor_scale is {scale}; it must be from 0 to 2**115")

    def scales_of(self, rows: slice, codes: NDArray[np.uint8] | None = None) -> GridTensor:
        """Return some rows, with the codes given or with none: then only scales are of use."""
        arrays = self.arrays
        zero, scale = arrays.get("zero"), arrays.get("tensor_scale")
        codes = np.empty((0, self.shape[1]), np.uint8) if codes is None else codes
        return GridTensor(
            codes.shape,
            self.format,
            self.group,
            self.rotation,
            codes,
            arrays["scales"][rows],
            None if zero is None else zero[rows],
            None if scale is None else scale[0],
        )

    def unpack(self) -> GridTensor:
        """Return the codes and scales."""
        m, n = self.shape
        codes = unpack_digits(self.arrays["codes"], 16, m).reshape(m, -1)[:, :n]
        return self.scales_of(slice(m), codes)
