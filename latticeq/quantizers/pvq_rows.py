"""Rows coded one by one with a pyramid code: activations, keys and values.

Bytes of a row, all little-endian: the indices of its groups' words, one after the other, filled up
to whole bytes; then so the indices of their gains' levels; the row's root mean square in float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.bit_fields import join_fields, split_fields
from latticeq.codes.pyramid import PyramidCode
from latticeq.errors import InputError
from latticeq.quantizers.gains import MAX_GAIN_BITS
from latticeq.quantizers.pvq import decoded_groups, nearest_level
from latticeq.quantizers.rows import checked_bytes, checked_rows, normalise

__all__ = ["PVQRowCodec"]


@dataclass(frozen=True)
class PVQRowCodec:
    """Rows as words of a pyramid code and levels of gains, under their root mean square.

    Parameters
    ----------
    code : PyramidCode
        Of groups.
    levels : tuple of float
        Of gains, in rows of unit mean square: 1, 2, 4, ... or 256, rising, not negative.
    n : int
        Length of a row, a multiple of the group.

    Raises
    ------
    InputError
        If n does not divide, or the levels are others.

    Examples
    --------
    >>> from latticeq.quantizers.gains import gain_levels
    >>> code = PyramidCode(16, 58)
    >>> codec = PVQRowCodec(code, tuple(gain_levels(code, 64, 4).tolist()), 64)
    >>> codec.row_nbytes, codec.bits_per_entry
    (36, 4.5)
    >>> x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    >>> bool(np.mean((codec.decode(codec.encode(x)) - x) ** 2) < 0.006)
    True
    """

    code: PyramidCode
    levels: tuple[float, ...]
    n: int

    def __post_init__(self) -> None:
        group = self.code.n
        if type(self.n) is not int or self.n < group or self.n % group:
            raise InputError(
                f"n is {self.n!r}; rows must be a positive multiple of {group}, the group, long"
            )
        levels = np.asarray(self.levels, np.float64)
        is_rising = levels.ndim == 1 and levels.size and bool((np.diff(levels) >= 0).all())
        if not (is_rising and levels[0] >= 0 and levels[-1] <= np.finfo(np.float32).max):
            raise InputError(f"levels are {self.levels}; they must rise, from 0 or more")
        if len(levels) != 2**self.gain_bits or self.gain_bits > MAX_GAIN_BITS:
            raise InputError(
                f"{len(levels)} levels were given; they must be a power of two, up to 256"
            )

    @property
    def gain_bits(self) -> int:
        """Bits of a gain."""
        return (len(self.levels) - 1).bit_length()

    @cached_property
    def _levels(self) -> NDArray[np.float32]:
        return np.array(self.levels, np.float32)

    @property
    def row_nbytes(self) -> int:
        """Bytes of a coded row."""
        index, gains = self._widths
        return index + gains + 2

    @property
    def _widths(self) -> tuple[int, int]:
        """Bytes of the indices of words, and of gains."""
        groups = self.n // self.code.n
        return -(-groups * self.code.index_bits // 8), -(-groups * self.gain_bits // 8)

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry, gains and norm included."""
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
        unit, norms = normalise(checked_rows(x, self.n))
        words, gains = self.code.nearest(
            unit.reshape(len(unit), self.n // self.code.n, self.code.n)
        )
        parts = [join_fields(self.code.rank(words), self.code.index_bits)]
        if self.gain_bits:
            chosen = nearest_level(gains, self._levels).astype(np.uint64)
            parts.append(join_fields(chosen[..., None], self.gain_bits))
        return np.concatenate([*parts, norms[:, None].view(np.uint8)], axis=1)

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows that bytes stand for.

        Parameters
        ----------
        rows : ndarray of uint8, shape (R, row_nbytes)

        Returns
        -------
        ndarray of float32, shape (R, n)
            Groups of length norm · level that point where the words do.

        Raises
        ------
        InputError
            If shape or dtype are others, or bytes stand for no word.
        """
        coded = checked_bytes(rows, self.row_nbytes)
        groups, code = self.n // self.code.n, self.code
        index_width, gain_width = self._widths
        index = split_fields(coded[:, :index_width], groups, code.index_bits)
        chosen = np.zeros((len(coded), groups), np.uint64)
        if self.gain_bits:
            gains = coded[:, index_width : index_width + gain_width]
            chosen = split_fields(gains, groups, self.gain_bits)[..., 0]
        norms = np.ascontiguousarray(coded[:, -2:]).view("<f2").astype(np.float32)
        lengths = norms * self._levels[chosen]
        return decoded_groups(code.unrank(index), lengths).reshape(-1, self.n)
