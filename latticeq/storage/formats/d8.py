"""Format "d8": a block's digits and its scale index in one word, no bit unused.

The least significant bits of eight coordinates are a word of the extended Hamming code: those of
coordinates 0 to 3 fix the others, whose places are free for the scale index (three bits) and for
the coset of coordinate 0 (one bit). A coordinate takes w = ceil(log2 q) bits, a block 8 w.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.d8_fields import join_d8, split_d8
from latticeq.codes.nested import MAX_Q
from latticeq.errors import FormatError
from latticeq.jit import kernel
from latticeq.quantizers.nestquant import MAX_D8_K, NestTensor
from latticeq.storage.bits import bit_width, check_packed, pack_digits, unpack_digits
from latticeq.storage.formats.base import (
    Entry,
    Shapes,
    check_integer,
    check_rotation,
    check_shape,
)
from latticeq.storage.formats.nest import PackedNest, check_even

__all__ = ["PackedD8"]


class PackedD8(PackedNest):
    """A matrix of codewords whose words hold their scale index.

    Arrays
    ------
    words : uint8, shape (ceil(M / 16), N / 8, 16, ceil(log2 q))
        Laid out as the digits of `latticeq.storage.bits.pack_digits`.
    row_scale : float16, shape (M,)
    betas : float32, shape (k,)
    """

    names = ("d8",)

    @classmethod
    def pack(cls, tensor: NestTensor) -> dict[str, NDArray[Any]]:
        """Return a tensor's arrays."""
        fields = join_d8(tensor.digits, tensor.scale_index, tensor.code.q)
        return {
            "words": pack_digits(fields, tensor.code.q),
            "row_scale": tensor.row_scale,
            "betas": np.array(tensor.code.betas, np.float32),
        }

    @classmethod
    def check_entry(cls, entry: Entry) -> None:
        """Refuse an entry with fields out of range."""
        check_shape(entry, 8)
        check_integer(entry, "q", 2, MAX_Q)
        check_integer(entry, "k", 1, MAX_D8_K)
        check_rotation(entry)
        check_even(entry)

    @classmethod
    def stored_shapes(cls, entry: Entry) -> Shapes:
        """Return dtype and shape of each array of a checked entry."""
        m, n = entry["shape"]
        return {
            "words": ("U8", (-(-m // 16), n // 8, 16, bit_width(entry["q"]))),
            "row_scale": ("F16", (m,)),
            "betas": ("F32", (entry["k"],)),
        }

    def _check_codewords(self) -> None:
        # Any fields below q make a codeword: what could break the Hamming code is not stored.
        check_packed(self.digit_bytes(), self.q, "digit")
        if len(self.betas) < MAX_D8_K:
            width = bit_width(self.q)
            largest = _largest_index(self.digit_bytes().reshape(-1, width))
            if largest >= len(self.betas):
                raise FormatError(f"a scale index is {largest}; it must be below {len(self.betas)}")

    def digit_bytes(self) -> NDArray[np.uint8]:
        """Return the words, (ceil(M / 16), N / 8, 16, ceil(log2 q)) uint8."""
        return self.arrays["words"]

    def codewords(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the digits, (M, N / 8, 8), and the scale indices, (M, N / 8)."""
        self._check_codewords()
        return split_d8(unpack_digits(self.digit_bytes(), self.q, self.shape[0]), self.q)

    def scale_indices(self) -> NDArray[np.uint8]:
        """Return the scale index of each block, (M, N / 8)."""
        return self.codewords()[1]


@kernel
def _largest_index(words: Any) -> Any:
    """Return the largest scale index in words (n, w) of w bytes each."""
    width, largest = words.shape[1], 0
    for n in range(len(words)):
        index = 0
        for bit in range(3):
            place = width * (4 + bit)
            index |= (np.int64(words[n, place >> 3]) >> (place & 7) & 1) << bit
        largest = max(largest, index)
    return largest
