"""Formats "voronoi", "nestquantm" and "cubic": eight digits a block, scale indices apart.

The three share their bytes; what a digit string stands for differs. Digits take ceil(log2 q) bits
each, or with ``"packing": "radix"`` sixteen together ceil(16 log2 q).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.nested import MAX_Q, NestedCode
from latticeq.errors import FormatError
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.nestquant import MAX_K, MAX_RADIX_Q, NestTensor, is_radix_q
from latticeq.storage.bits import (
    bit_width,
    check_packed,
    pack_digits,
    pack_scale_index,
    unpack_digits,
    unpack_scale_index,
)
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
from latticeq.storage.radix import (
    check_radix,
    pack_radix,
    radix_width,
    unpack_radix,
)

__all__ = ["PackedNest", "check_betas", "check_even"]


class PackedNest(Packed):
    """A matrix of codewords whose digits and scale indices are apart.

    Arrays
    ------
    digits : uint8, shape (ceil(M / 16), N / 8, 16, ceil(log2 q))
        Or, in mixed radix,
    radix : uint8, shape (ceil(M / 16), radix_width(q, N / 8))
    scale_index : uint8, shape (ceil(M / 16), N / 8, 2 ceil(log2 k))
    row_scale : float16, shape (M,)
    betas : float32, shape (k,)
    """

    names: ClassVar[tuple[str, ...]] = ("voronoi", "nestquantm", "cubic")

    @classmethod
    def takes(cls, tensor: QuantizedTensor) -> bool:
        """Tell whether a tensor's code has one of the three cells."""
        return isinstance(tensor, NestTensor) and tensor.code.cell in cls.names

    @classmethod
    def describe(cls, tensor: NestTensor) -> dict[str, Any]:
        """Return the entry of a tensor."""
        entry = {
            "format": tensor.code.cell,
            "shape": list(tensor.shape),
            "q": tensor.code.q,
            "k": len(tensor.code.betas),
            **describe_rotation(tensor.rotation),
        }
        return entry | ({"packing": "radix"} if tensor.packing == "radix" else {})

    @classmethod
    def pack(cls, tensor: NestTensor) -> dict[str, NDArray[Any]]:
        """Return a tensor's arrays."""
        q = tensor.code.q
        if tensor.packing == "radix":
            digits = {"radix": pack_radix(tensor.digits, q)}
        else:
            digits = {"digits": pack_digits(tensor.digits, q)}
        return {
            **digits,
            "scale_index": pack_scale_index(tensor.scale_index, len(tensor.code.betas)),
            "row_scale": tensor.row_scale,
            "betas": np.array(tensor.code.betas, np.float32),
        }

    @classmethod
    def check_entry(cls, entry: Entry) -> None:
        """Refuse an entry with fields out of range."""
        check_shape(entry, 8)
        check_integer(entry, "q", 2, MAX_Q)
        check_integer(entry, "k", 1, MAX_K)
        check_rotation(entry)
        if entry["format"] == "cubic":
            check_even(entry)
        if "packing" not in entry:
            return
        if entry["packing"] != "radix":
            raise FormatError(f"packing is {entry['packing']!r:.80}; it must be 'radix' or absent")
        if not is_radix_q(entry["q"]):
            raise FormatError(
                f"packing is 'radix' with q = {entry['q']}; it needs a q from 3 to {MAX_RADIX_Q} "
                "that is no power of two"
            )

    @classmethod
    def stored_shapes(cls, entry: Entry) -> Shapes:
        """Return dtype and shape of each array of a checked entry."""
        m, n = entry["shape"]
        groups, blocks = -(-m // 16), n // 8
        digits: Shapes = {"digits": ("U8", (groups, blocks, 16, bit_width(entry["q"])))}
        if "packing" in entry:
            digits = {"radix": ("U8", (groups, radix_width(entry["q"], blocks)))}
        return {
            **digits,
            "scale_index": ("U8", (groups, blocks, 2 * bit_width(entry["k"]))),
            "row_scale": ("F16", (m,)),
            "betas": ("F32", (entry["k"],)),
        }

    @property
    def q(self) -> int:
        """The nesting ratio."""
        return int(self.entry["q"])

    @property
    def betas(self) -> NDArray[np.float32]:
        """The scales, (k,)."""
        return self.arrays["betas"]

    @property
    def row_scale(self) -> NDArray[np.float16]:
        """The scale of each row, (M,)."""
        return self.arrays["row_scale"]

    @property
    def code(self) -> NestedCode:
        """The code whose words these are."""
        return NestedCode(self.q, tuple(map(float, self.betas)), self.format)

    def check(self) -> None:
        """Refuse digits, scale indices, row scales and betas out of range."""
        check_scales("row_scale", self.row_scale)
        check_betas(self.betas)
        self._check_codewords()

    def _check_codewords(self) -> None:
        if "radix" in self.arrays:
            check_radix(self.arrays["radix"], self.q, self.shape[1] // 8)
        else:
            check_packed(self.arrays["digits"], self.q, "digit")
        check_packed(self.arrays["scale_index"], len(self.betas), "scale index")

    def digit_bytes(self) -> NDArray[np.uint8]:
        """Return the digits in whole bits, (ceil(M / 16), N / 8, 16, ceil(log2 q)) uint8.

        The stored array itself, or a new one made from mixed radix: for q = 14 that takes 4 bits a
        digit in memory where the file takes 3.8125.

        Raises
        ------
        FormatError
            If an integer in mixed radix stands for no digits.
        """
        if "radix" in self.arrays:
            return unpack_radix(self.arrays["radix"], self.q, self.shape[1] // 8)
        return self.arrays["digits"]

    def codewords(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the digits, (M, N / 8, 8), and the scale indices, (M, N / 8).

        Raises
        ------
        FormatError
            If one of them is out of its range.
        """
        digits = unpack_digits(self.digit_bytes(), self.q, self.shape[0])
        return digits, self.scale_indices()

    def scale_indices(self) -> NDArray[np.uint8]:
        """Return the scale index of each block, (M, N / 8).

        Raises
        ------
        FormatError
            If one of them is out of its range.
        """
        return unpack_scale_index(self.arrays["scale_index"], len(self.betas), self.shape[0])

    def unpack(self) -> NestTensor:
        """Return the digits and scales."""
        digits, index = self.codewords()
        packing = self.entry.get("packing", "digits")
        parts = (self.shape, self.code, self.rotation, digits, index, self.row_scale)
        return NestTensor(*parts, packing=packing)


def check_even(entry: Entry) -> None:
    """Refuse an odd q where the fine lattice must hold a multiple of Z8 with even steps."""
    if entry["q"] % 2:
        raise FormatError(f"q is {entry['q']}; it must be even for format {entry['format']!r}")


def check_betas(betas: NDArray[np.float32]) -> None:
    """Refuse betas that are not finite, positive and increasing."""
    if not (np.isfinite(betas).all() and betas[0] > 0 and (np.diff(betas) > 0).all()):
        raise FormatError(f"betas are {betas}; they must be positive and increasing")
