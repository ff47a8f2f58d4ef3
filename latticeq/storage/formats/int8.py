"""Format "int8": rows of int8 under one scale each, sixteen rows interleaved."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.scalar import Int8Tensor
from latticeq.storage.bits import pack_int8, unpack_int8
from latticeq.storage.formats.base import Entry, Packed, Shapes, check_scales, check_shape

__all__ = ["PackedInt8"]


class PackedInt8(Packed):
    """A matrix of int8 rows.

    Arrays
    ------
    int8 : uint8, shape (ceil(M / 16), N / 4, 16, 4)
        Values raised by 128.
    row_scale : float16, shape (M,)
    """

    names = ("int8",)

    @classmethod
    def takes(cls, tensor: QuantizedTensor) -> bool:
        """Tell whether a tensor is one of int8 rows."""
        return isinstance(tensor, Int8Tensor)

    @classmethod
    def describe(cls, tensor: Int8Tensor) -> dict[str, Any]:
        """Return the entry of a tensor."""
        return {"format": "int8", "shape": list(tensor.shape)}

    @classmethod
    def pack(cls, tensor: Int8Tensor) -> dict[str, NDArray[Any]]:
        """Return a tensor's arrays."""
        return {"int8": pack_int8(tensor.values), "row_scale": tensor.row_scale}

    @classmethod
    def check_entry(cls, entry: Entry) -> None:
        """Refuse a shape that is none."""
        check_shape(entry, 4)

    @classmethod
    def stored_shapes(cls, entry: Entry) -> Shapes:
        """Return dtype and shape of each array of a checked entry."""
        m, n = entry["shape"]
        return {"int8": ("U8", (-(-m // 16), n // 4, 16, 4)), "row_scale": ("F16", (m,))}

    @property
    def row_scale(self) -> NDArray[np.float16]:
        """The scale of each row, (M,)."""
        return self.arrays["row_scale"]

    def check(self) -> None:
        """Refuse row scales out of range; every byte is a value."""
        check_scales("row_scale", self.row_scale)

    def unpack(self) -> Int8Tensor:
        """Return the values and scales."""
        values = unpack_int8(self.arrays["int8"], self.shape[0])
        return Int8Tensor(self.shape, values, self.row_scale)
