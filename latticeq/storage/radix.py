"""Digits in mixed radix: sixteen digits of two neighbouring blocks as one integer below q**16.

A digit below q takes ceil(log2 q) bits as a field of its own. Where q is no power of two that
wastes part of a bit: for q = 14 four bits hold log2 14 = 3.807. Sixteen digits as one integer

    d_0 + d_1 q + ... + d_15 q**15

take ceil(16 log2 q) bits, 61 for q = 14, which is 3.8125 bits a digit. The last block of a row with
an odd number of blocks is an integer of its own, of eight digits in ceil(8 log2 q) bits.

Rows are in groups of sixteen, as in `latticeq.storage.bits`. For every group and pair of blocks the
integers of the sixteen rows, of b bits each, are one little-endian integer of 2 b bytes, row l in
bits b*l to b*l + b - 1; pairs follow one another, and the odd block comes last.

This form is for the disk. `unpack_radix` makes of it the bytes that `pack_digits` makes, which is
what kernels read: in memory a digit takes whole bits again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, InputError
from latticeq.jit import kernel, prange
from latticeq.quantizers.nestquant import MAX_RADIX_Q, is_radix_q
from latticeq.storage.bits import ROWS, bit_width

__all__ = ["check_radix", "pack_radix", "radix_width", "unpack_radix"]


def radix_width(q: int, blocks: int) -> int:
    """Return the bytes that one row group takes: sixteen rows of some blocks.

    Examples
    --------
    >>> radix_width(14, 2), radix_width(14, 3)
    (122, 184)
    """
    return 2 * (bit_width(q**16) * (blocks // 2) + bit_width(q**8) * (blocks % 2))


def pack_radix(digits: NDArray[np.uint8], q: int) -> NDArray[np.uint8]:
    """Pack digits below q.

    Parameters
    ----------
    digits : ndarray of uint8, shape (M, N / 8, 8)
    q : int
        From 3 to 15, no power of two.

    Returns
    -------
    ndarray of uint8, shape (ceil(M / 16), radix_width(q, N / 8))
        Rows that fill the last group are zeros.

    Raises
    ------
    InputError
        If there is no mixed radix for q.
    """
    if not is_radix_q(q):
        raise InputError(
            f"q is {q}; mixed radix is for q from 3 to {MAX_RADIX_Q} that are no power of two: use "
            "packing='digits'"
        )
    rows, blocks = digits.shape[:2]
    padded = np.zeros((rows + -rows % ROWS, 8 * blocks), np.uint8)
    padded[:rows] = digits.reshape(rows, -1)
    packed = np.zeros((len(padded) // ROWS, radix_width(q, blocks)), np.uint8)
    _pack(padded, q, *_bits(q), packed)
    return packed


def unpack_radix(packed: NDArray[np.uint8], q: int, blocks: int) -> NDArray[np.uint8]:
    """Turn mixed radix into the bytes of `latticeq.storage.bits.pack_digits`.

    Parameters
    ----------
    packed : ndarray of uint8, shape (G, radix_width(q, blocks))
    q : int
    blocks : int
        Of a row: N / 8.

    Returns
    -------
    ndarray of uint8, shape (G, blocks, 16, ceil(log2 q))

    Raises
    ------
    FormatError
        If an integer is not below q**16 (or q**8, of an odd last block).
    """
    digits = np.empty((len(packed), blocks, ROWS, bit_width(q)), np.uint8)
    if _unpack(np.ascontiguousarray(packed), q, *_bits(q), digits):
        _refuse(q)
    return digits


def check_radix(packed: NDArray[np.uint8], q: int, blocks: int) -> None:
    """Refuse integers that stand for no digits, rows of padding included; reads every byte.

    Parameters and errors are those of `unpack_radix`.
    """
    limits = np.array([q**16, q**8], np.uint64)
    if _has_too_large(np.ascontiguousarray(packed), *_bits(q), blocks, limits):
        _refuse(q)


def _bits(q: int) -> tuple[int, int]:
    """Return the bits of an integer of sixteen digits, and of eight."""
    return bit_width(q**16), bit_width(q**8)


def _refuse(q: int) -> None:
    raise FormatError(
        f"an integer of sixteen digits is not below {q}**16, or one of eight not below {q}**8"
    )


@kernel(parallel=True)
def _pack(digits: Any, q: int, wide: int, narrow: int, packed: Any) -> None:
    """Pack digits (16 G, N) into the zeroed bytes (G, radix_width)."""
    columns = digits.shape[1]
    for group in prange(len(packed)):
        start = 0  # of this pair's string, in bytes
        for first in range(0, columns, 16):
            count = min(16, columns - first)
            bits = wide if count == 16 else narrow
            for lane in range(ROWS):
                value = np.uint64(0)
                for i in range(count - 1, -1, -1):
                    value = value * np.uint64(q) + np.uint64(digits[16 * group + lane, first + i])
                at, shift = start + (bits * lane >> 3), bits * lane & 7
                packed[group, at] |= np.uint8((value << np.uint64(shift)) & np.uint64(255))
                value >>= np.uint64(8 - shift)
                while value:
                    at += 1
                    packed[group, at] |= np.uint8(value & np.uint64(255))
                    value >>= np.uint64(8)
            start += 2 * bits


@kernel
def _integer(string: Any, start: int, bits: int) -> Any:
    """Return the integer of up to 63 bits that begins at bit `start` of a string of bytes."""
    at, shift = start >> 3, start & 7
    value = np.uint64(string[at]) >> np.uint64(shift)
    have = 8 - shift
    while have < bits:
        at += 1
        value |= np.uint64(string[at]) << np.uint64(have)
        have += 8
    return value & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))


@kernel(parallel=True)
def _unpack(packed: Any, q: int, wide: int, narrow: int, digits: Any) -> Any:
    """Write digits (G, blocks, 16, w) as fields; return how many integers are too large."""
    blocks, width = digits.shape[1], digits.shape[3]
    too_large = 0
    for group in prange(len(packed)):
        start, radix = 0, np.uint64(q)
        for pair in range(0, blocks, 2):
            count = min(2, blocks - pair)
            bits = wide if count == 2 else narrow
            for lane in range(ROWS):
                value = _integer(packed[group], 8 * start + bits * lane, bits)
                for block in range(pair, pair + count):
                    joined = np.uint64(0)
                    for i in range(8):
                        rest = value // radix
                        joined |= (value - rest * radix) << np.uint64(width * i)
                        value = rest
                    for i in range(width):
                        byte = (joined >> np.uint64(8 * i)) & np.uint64(255)
                        digits[group, block, lane, i] = np.uint8(byte)
                if value:
                    too_large += 1
            start += 2 * bits
    return too_large


@kernel(parallel=True)
def _has_too_large(packed: Any, wide: int, narrow: int, blocks: int, limits: Any) -> Any:
    too_large = 0
    for group in prange(len(packed)):
        start = 0
        for pair in range(0, blocks, 2):
            odd = pair + 1 == blocks
            bits = narrow if odd else wide
            limit = limits[1] if odd else limits[0]
            for lane in range(ROWS):
                if _integer(packed[group], 8 * start + bits * lane, bits) >= limit:
                    too_large += 1
            start += 2 * bits
    return too_large
