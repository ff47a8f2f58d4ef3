"""Row codecs: rows of numbers to rows of bytes and back, one row at a time.

They code activations as tokens arrive and keys and values as they enter the cache. A row's bytes
hold all that it needs, so rows may be cut out, joined and thrown away. Codecs do not rotate: the
caller does, where it pays. A row with an infinite or NaN entry comes back as NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.d8_fields import join_d8, split_d8
from latticeq.codes.grids import half_bits, half_value
from latticeq.codes.nested import NestedCode
from latticeq.errors import InputError
from latticeq.jit import kernel, prange

__all__ = [
    "NestRowCodec",
    "RowCodec",
    "checked_bytes",
    "checked_rows",
    "normalise",
    "read_integer",
    "write_integer",
]


@runtime_checkable
class RowCodec(Protocol):
    """A code for rows of a fixed length."""

    @property
    def n(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def row_nbytes(self) -> int:
        """Bytes of a coded row, everything counted."""
        ...

    @property
    def bits_per_entry(self) -> float:
        """Effective bits: eight times `row_nbytes` over `n`."""
        ...

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the bytes (R, row_nbytes) of rows (R, n)."""
        ...

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows (R, n) that bytes (R, row_nbytes) stand for."""
        ...


def checked_rows(x: Any, n: int) -> NDArray[np.float32]:
    """Return x if it is a contiguous float32 array (R, n), else such a copy of it.

    Raises
    ------
    InputError
        If it has another shape.
    """
    rows = np.ascontiguousarray(x, np.float32)
    if rows.ndim != 2 or rows.shape[1] != n:
        raise InputError(f"rows have shape {rows.shape}; this codec takes (R, {n})")
    return rows


def checked_bytes(rows: Any, count: int) -> NDArray[np.uint8]:
    """Return rows if they are a contiguous uint8 array (R, count), else such a copy of them.

    Raises
    ------
    InputError
        If they have another shape or dtype.
    """
    raw = np.asarray(rows)
    if raw.ndim != 2 or raw.shape[1] != count or raw.dtype != np.uint8:
        raise InputError(
            f"coded rows are {raw.dtype} {raw.shape}; this codec takes uint8 (R, {count})"
        )
    return np.ascontiguousarray(raw)


def normalise(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Return rows (R, n) over their root mean square in float16, and the bits of that, (R,).

    Rows without one, such as zeros and those with an entry that is not finite, become zeros.
    """
    unit, norms = np.empty_like(rows), np.empty(len(rows), np.uint16)
    _normalise(rows, unit, norms)
    return unit, norms


@kernel(inline=True)
def write_integer(coded: Any, at: int, value: int, count: int) -> None:
    """Write the low `count` bytes of an integer, the lowest one first."""
    for j in range(count):
        coded[at + j] = (value >> (8 * j)) & 0xFF


@kernel(inline=True)
def read_integer(coded: Any, at: int, count: int) -> Any:
    """Return `count` bytes, up to 7, as an integer, the lowest one first."""
    value = np.int64(0)
    for j in range(count):
        value |= np.int64(coded[at + j]) << (8 * j)
    return value


@dataclass(frozen=True)
class NestRowCodec:
    """Rows as digits and scale indices of a nested code, under their root mean square.

    Bytes of a row, all little-endian: for each block of eight its digits, w = ceil(log2 q) bits
    each, digit i in bits w i to w i + w - 1, so w bytes a block; the scale indices, v = ceil(log2
    k) bits each, padded to whole bytes; the row's root mean square in float16. In cell "d8" the
    word of a block holds its scale index too, and the coset bit of digit 0: bit 0 of digits 4 to 6
    is bit 0 to 2 of the index, bit 0 of digit 7 is that bit.

    Parameters
    ----------
    code : NestedCode
        For rows of unit mean square; at most 8 scales in cell "d8".
    n : int
        Length of a row, a multiple of 8.

    Raises
    ------
    InputError
        If n does not divide, or there are too many scales.

    Examples
    --------
    >>> codec = NestRowCodec(NestedCode(16, (0.1942, 0.2423, 0.2892, 0.3771)), 64)
    >>> codec.row_nbytes, codec.bits_per_entry
    (36, 4.5)
    >>> x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    >>> bool(np.mean((codec.decode(codec.encode(x)) - x) ** 2) < 0.005)
    True
    """

    code: NestedCode
    n: int

    def __post_init__(self) -> None:
        if type(self.n) is not int or self.n < 8 or self.n % 8:
            raise InputError(f"n is {self.n!r}; rows must be a positive multiple of 8 long")
        if self.is_d8 and len(self.code.betas) > 8:
            raise InputError(
                f"{len(self.code.betas)} scales were given; a word of cell 'd8' has room for 8"
            )

    @property
    def is_d8(self) -> bool:
        """Whether words hold scale indices."""
        return self.code.cell == "d8"

    @property
    def digit_bits(self) -> int:
        """Bits of a digit, which are the bytes of a block's digits."""
        return (self.code.q - 1).bit_length()

    @property
    def index_bits(self) -> int:
        """Bits of a scale index outside the words."""
        return 0 if self.is_d8 else (len(self.code.betas) - 1).bit_length()

    @property
    def row_nbytes(self) -> int:
        """Bytes of a coded row."""
        blocks = self.n // 8
        return blocks * self.digit_bits + -(-blocks * self.index_bits // 8) + 2

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry, scale indices and norm included."""
        return 8 * self.row_nbytes / self.n

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Code rows.

        Parameters
        ----------
        x : ndarray of float32, shape (R, n)
            A row with an infinite or NaN entry, or with a root mean square that float16 cannot
            hold, decodes to NaN.

        Returns
        -------
        ndarray of uint8, shape (R, row_nbytes)

        Raises
        ------
        InputError
            If the shape is another.
        """
        rows = checked_rows(x, self.n)
        unit, norms = normalise(rows)
        digits, index = self.code.encode(unit.reshape(len(rows), self.n // 8, 8))
        coded = np.empty((len(rows), self.row_nbytes), np.uint8)
        if self.is_d8:
            digits = join_d8(digits, index, self.code.q)
        _pack(digits, index, norms, self.digit_bits, self.index_bits, coded)
        return coded

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows that bytes stand for.

        Parameters
        ----------
        rows : ndarray of uint8, shape (R, row_nbytes)

        Returns
        -------
        ndarray of float32, shape (R, n)
            Decoded values times the row's root mean square.

        Raises
        ------
        InputError
            If shape or dtype are others, or bytes stand for no codeword.
        """
        digits, index, norms = self._unpacked(rows)
        values: NDArray[np.float32] = self.code.decode(digits, index).reshape(-1, self.n)
        values *= norms[:, None]
        return values

    def decode_points(
        self, rows: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Return the integers that bytes stand for, and what they are worth.

        Parameters
        ----------
        rows : ndarray of uint8, shape (R, row_nbytes)

        Returns
        -------
        points : ndarray of int8, shape (R, n)
        scales : ndarray of float32, shape (R, n / 8)
            What a unit is worth in each block: the row is the points times it.

        Raises
        ------
        InputError
            As `decode`.
        """
        digits, index, norms = self._unpacked(rows)
        points = self.code.points(digits.reshape(-1, 8)).reshape(-1, self.n)
        units = np.asarray(self.code.betas, np.float32) * np.float32(self.code.unit)
        return points, norms[:, None] * units[index]

    def _unpacked(
        self, rows: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        coded = checked_bytes(rows, self.row_nbytes)
        digits = np.empty((len(coded), self.n // 8, 8), np.uint8)
        index = np.empty(digits.shape[:2], np.uint8)
        norms = np.empty(len(coded), np.float32)
        _unpack(coded, self.digit_bits, self.index_bits, digits, index, norms)
        if self.is_d8:
            digits, index = split_d8(digits, self.code.q)
        return digits, index, norms


@kernel(parallel=True)
def _normalise(x: Any, unit: Any, norms: Any) -> None:
    """Divide rows by their root mean square in float16; rows without one become zeros."""
    for row in prange(len(x)):
        energy = 0.0
        for i in range(x.shape[1]):
            energy += np.float64(x[row, i]) * np.float64(x[row, i])
        bits = half_bits(np.float32(np.sqrt(energy / x.shape[1])))
        norms[row] = bits
        norm = half_value(bits)
        if norm > 0:
            inverse = np.float32(1) / norm
            for i in range(x.shape[1]):
                unit[row, i] = x[row, i] * inverse
        else:
            for i in range(x.shape[1]):
                unit[row, i] = 0


@kernel(parallel=True)
def _pack(digits: Any, index: Any, norms: Any, width: int, index_bits: int, coded: Any) -> None:
    blocks = index.shape[1]
    for row in prange(len(coded)):
        at, pending, bits = width * blocks, np.int64(0), 0
        for b in range(blocks):
            word = np.int64(0)
            for i in range(8):
                word |= np.int64(digits[row, b, i]) << (width * i)
            write_integer(coded[row], width * b, word, width)
            pending |= np.int64(index[row, b]) << bits
            bits += index_bits
            if bits >= 8:
                coded[row, at] = pending & 0xFF
                at, pending, bits = at + 1, pending >> 8, bits - 8
        if bits > 0:
            coded[row, at] = pending
        write_integer(coded[row], coded.shape[1] - 2, np.int64(norms[row]), 2)


@kernel(parallel=True)
def _unpack(coded: Any, width: int, index_bits: int, digits: Any, index: Any, norms: Any) -> None:
    blocks = index.shape[1]
    for row in prange(len(coded)):
        for b in range(blocks):
            word = read_integer(coded[row], width * b, width)
            for i in range(8):
                digits[row, b, i] = (word >> (width * i)) & ((1 << width) - 1)
            at, bit = divmod(index_bits * b, 8)
            pair = 0  # an index may begin in one byte and end in the next
            if index_bits > 0:
                pair = read_integer(coded[row], width * blocks + at, 2)
            index[row, b] = (pair >> bit) & ((1 << index_bits) - 1)
        norms[row] = half_value(read_integer(coded[row], coded.shape[1] - 2, 2))
