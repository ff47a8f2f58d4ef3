"""Format "pvq": words of a pyramid code by their index, and gains by their level.

The indices of words and of levels are integers of fixed numbers of bits, sixteen rows side by side
(`latticeq.storage.wide_bits`). The levels are stored, so that reading needs no law of gains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.pyramid import MAX_PULSES, PyramidCode
from latticeq.errors import FormatError, InputError
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.gains import MAX_GAIN_BITS
from latticeq.quantizers.pvq import MAX_GROUP, PVQTensor
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.base import (
    Entry,
    Packed,
    Shapes,
    check_integer,
    check_rotation,
    check_scales,
    check_shape,
    describe_rotation,
)
from latticeq.storage.wide_bits import pack_wide, unpack_wide

__all__ = ["PackedPVQ"]


class PackedPVQ(Packed):
    """A matrix of words of a pyramid code.

    Arrays
    ------
    index : uint8, shape (ceil(M / 16), N / group, 2 shape_bits)
        Of words, with shape_bits = ceil(log2 N(group, pulses)).
    gain_index : uint8, shape (ceil(M / 16), N / group, 2 gain_bits)
        Absent without gain bits.
    levels : float32, shape (2^gain_bits,)
    row_scale : float16, shape (M,)
    """

    names = ("pvq",)

    @classmethod
    def takes(cls, tensor: QuantizedTensor) -> bool:
        """Tell whether a tensor is one of pyramid codes."""
        return isinstance(tensor, PVQTensor)

    @classmethod
    def describe(cls, tensor: PVQTensor) -> dict[str, Any]:
        """Return the entry of a tensor."""
        return {
            "format": "pvq",
            "shape": list(tensor.shape),
            "group": tensor.code.n,
            "pulses": tensor.code.pulses,
            "gain_bits": tensor.gain_bits,
            **describe_rotation(tensor.rotation),
        }

    @classmethod
    def pack(cls, tensor: PVQTensor) -> dict[str, NDArray[Any]]:
        """Return a tensor's arrays."""
        arrays: dict[str, NDArray[Any]] = {
            "index": pack_wide(tensor.code.rank(tensor.words), tensor.code.index_bits),
            "levels": tensor.levels,
            "row_scale": tensor.row_scale,
        }
        if tensor.gain_bits:
            gains = tensor.gain_index.astype(np.uint64)[..., None]
            arrays["gain_index"] = pack_wide(gains, tensor.gain_bits)
        return arrays

    @classmethod
    def check_entry(cls, entry: Entry) -> None:
        """Refuse an entry with fields out of range."""
        check_integer(entry, "group", 2, MAX_GROUP)
        check_shape(entry, entry["group"])
        check_integer(entry, "pulses", 1, MAX_PULSES)
        check_integer(entry, "gain_bits", 0, MAX_GAIN_BITS)
        check_rotation(entry)
        try:
            PyramidCode(entry["group"], entry["pulses"])
        except InputError as error:
            raise FormatError(str(error)) from error

    @classmethod
    def stored_shapes(cls, entry: Entry) -> Shapes:
        """Return dtype and shape of each array of a checked entry."""
        m, n = entry["shape"]
        bits, gain_bits = (
            PyramidCode(entry["group"], entry["pulses"]).index_bits,
            entry["gain_bits"],
        )
        blocks = (-(-m // ROWS), n // entry["group"])
        shapes: Shapes = {
            "index": ("U8", (*blocks, 2 * bits)),
            "levels": ("F32", (2**gain_bits,)),
            "row_scale": ("F16", (m,)),
        }
        if gain_bits:
            shapes["gain_index"] = ("U8", (*blocks, 2 * gain_bits))
        return shapes

    @property
    def code(self) -> PyramidCode:
        """The code whose words these are."""
        return PyramidCode(self.entry["group"], self.entry["pulses"])

    @property
    def levels(self) -> NDArray[np.float32]:
        """The levels of gains, (2^gain_bits,)."""
        return self.arrays["levels"]

    @property
    def row_scale(self) -> NDArray[np.float16]:
        """The scale of each row, (M,)."""
        return self.arrays["row_scale"]

    def check(self) -> None:
        """Refuse indices, levels and row scales out of range, rows of padding included."""
        check_scales("row_scale", self.row_scale)
        check_scales("levels", self.levels)
        self._index()

    def _index(self) -> NDArray[np.uint64]:
        """Return the index of each group's word, (M padded, N / group, limbs), checked."""
        code, packed = self.code, self.arrays["index"]
        index = unpack_wide(packed, code.index_bits, ROWS * len(packed))
        if (bad := code.first_invalid(index.reshape(-1, code.limbs))) is not None:
            row, group = divmod(bad, index.shape[1])
            raise FormatError(
                f"the index of row {row}, group {group} names no word; it must be below "
                f"{code.size}, the number of words of {code.n} numbers and {code.pulses} pulses"
            )
        return index

    def unpack(self) -> PVQTensor:
        """Return the words and gains."""
        code, m = self.code, self.shape[0]
        words, gains = code.unrank(self._index()[:m]), self.gain_indices()
        parts = (self.shape, code, self.rotation, words, gains, self.levels, self.row_scale)
        return PVQTensor(*parts)

    def gain_indices(self) -> NDArray[np.uint8]:
        """Return the level of each group's gain, (M, N / group); zeros without gain bits."""
        m, n = self.shape
        if bits := int(self.entry["gain_bits"]):
            return unpack_wide(self.arrays["gain_index"], bits, m)[..., 0].astype(np.uint8)
        return np.zeros((m, n // self.entry["group"]), np.uint8)
