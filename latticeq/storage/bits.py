"""Digits and scale indices as bytes: sixteen rows interleaved, no bit wasted inside a block.

Rows are taken in groups of sixteen, the last group padded with zeros, so that sixteen vector lanes
read sixteen rows at once. For every group and every block of eight columns

- the digits of one row are one little-endian integer, digit i in bits ``w*i`` to ``w*i + w - 1``
  with
  ``w = ceil(log2 q)``: w bytes a row, the rows one after the other;
- the scale indices of the sixteen rows are one little-endian integer, row l in bits ``v*l`` to
  ``v*l + v - 1`` with ``v = ceil(log2 k)``: 2 v bytes, none for k = 1.

docs/format-v1.md is the normative text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError
from latticeq.jit import kernel, prange

__all__ = [
    "bit_width",
    "check_packed",
    "pack_digits",
    "pack_int8",
    "pack_scale_index",
    "unpack_digits",
    "unpack_int8",
    "unpack_scale_index",
]

ROWS = 16


def bit_width(count: int) -> int:
    """Return the bits that tell `count` values apart: ceil(log2 count).

    Examples
    --------
    >>> [bit_width(count) for count in (1, 2, 14, 16, 17)]
    [0, 1, 4, 4, 5]
    """
    return (count - 1).bit_length()


def _grouped(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Pad to whole groups of sixteen rows and split the row axis into (groups, 16)."""
    short = -len(rows) % ROWS
    padded = np.concatenate([rows, np.zeros((short, *rows.shape[1:]), rows.dtype)])
    return padded.reshape(-1, ROWS, *rows.shape[1:]).astype(np.uint64)


def _to_bytes(integers: NDArray[np.uint64], count: int) -> NDArray[np.uint8]:
    """Return the low `count` bytes of each integer along a new last axis."""
    raw = np.ascontiguousarray(integers, "<u8").view(np.uint8).reshape(*integers.shape, 8)
    return np.ascontiguousarray(raw[..., :count])


def _from_bytes(raw: NDArray[np.uint8]) -> NDArray[np.uint64]:
    wide = np.zeros((*raw.shape[:-1], 8), np.uint8)
    wide[..., : raw.shape[-1]] = raw
    return wide.view("<u8")[..., 0].astype(np.uint64)


def _joined(fields: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """Join fields of `width` bits along the last axis, the first one lowest."""
    shifts = np.arange(fields.shape[-1], dtype=np.uint64) * np.uint64(width)
    joined: NDArray[np.uint64] = np.bitwise_or.reduce(fields << shifts, axis=-1)
    return joined


def _fields(integers: NDArray[np.uint64], count: int, width: int) -> NDArray[np.uint8]:
    shifts = np.arange(count, dtype=np.uint64) * np.uint64(width)
    return ((integers[..., None] >> shifts) & np.uint64(2**width - 1)).astype(np.uint8)


def pack_digits(digits: NDArray[np.uint8], q: int) -> NDArray[np.uint8]:
    """Pack digits below q.

    Parameters
    ----------
    digits : ndarray of uint8, shape (M, N / 8, 8)
    q : int, 2 to 63

    Returns
    -------
    ndarray of uint8, shape (ceil(M / 16), N / 8, 16, ceil(log2 q))

    Examples
    --------
    >>> digits = np.random.default_rng(0).integers(0, 14, (5, 3, 8), dtype=np.uint8)
    >>> bool((unpack_digits(pack_digits(digits, 14), 14, 5) == digits).all())
    True
    """
    width = bit_width(q)
    packed = np.zeros((-(-len(digits) // ROWS), digits.shape[1], ROWS, width), np.uint8)
    _pack_digits(np.ascontiguousarray(digits), width, packed)
    return packed


@kernel(parallel=True)
def _pack_digits(digits: Any, width: int, packed: Any) -> None:
    for group in prange(len(packed)):
        for lane in range(min(ROWS, len(digits) - ROWS * group)):
            for block in range(digits.shape[1]):
                joined = np.uint64(0)
                for i in range(8):
                    digit = np.uint64(digits[ROWS * group + lane, block, i])
                    joined |= digit << np.uint64(width * i)
                for j in range(width):
                    packed[group, block, lane, j] = (joined >> np.uint64(8 * j)) & np.uint64(255)


def unpack_digits(packed: NDArray[np.uint8], q: int, rows: int) -> NDArray[np.uint8]:
    """Undo `pack_digits`.

    Raises
    ------
    FormatError
        If a digit is not below q.
    """
    digits = _fields(_from_bytes(packed).swapaxes(1, 2), 8, bit_width(q))
    digits = digits.reshape(-1, *digits.shape[2:])[:rows]
    if digits.size and digits.max() >= q:
        raise FormatError(f"a digit is {digits.max()}; digits must be below q = {q}")
    return digits


def pack_scale_index(scale_index: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    """Pack scale indices below k.

    Parameters
    ----------
    scale_index : ndarray of uint8, shape (M, N / 8)
    k : int, 1 to 16

    Returns
    -------
    ndarray of uint8, shape (ceil(M / 16), N / 8, 2 * ceil(log2 k))
    """
    width = bit_width(k)
    return _to_bytes(_joined(_grouped(scale_index).swapaxes(1, 2), width), 2 * width)


def unpack_scale_index(packed: NDArray[np.uint8], k: int, rows: int) -> NDArray[np.uint8]:
    """Undo `pack_scale_index`.

    Raises
    ------
    FormatError
        If an index is not below k.
    """
    index = _fields(_from_bytes(packed), ROWS, bit_width(k)).swapaxes(1, 2)
    index = index.reshape(-1, index.shape[-1])[:rows]
    if index.size and index.max() >= k:
        raise FormatError(f"a scale index is {index.max()}; indices must be below k = {k}")
    return index


def check_packed(packed: NDArray[np.uint8], count: int, what: str) -> None:
    """Refuse packed digits or scale indices that are out of range, rows of padding included.

    Reads every byte, unless `count` is a power of two and every bit pattern is in range.

    Parameters
    ----------
    packed : ndarray of uint8
        From `pack_digits` or `pack_scale_index`.
    count : int
        q or k: how many values there are.
    what : str
        The name of such a value, for the message.

    Raises
    ------
    FormatError
        If a value is not below `count`.
    """
    if count & (count - 1) == 0:
        return
    width = bit_width(count)
    # Eight digits fill `width` bytes and so do eight of the sixteen scale indices of a block.
    largest = _largest_field(np.ascontiguousarray(packed).reshape(-1, width), width)
    if largest >= count:
        raise FormatError(f"a {what} is {largest}; it must be below {count}")


@kernel
def _largest_field(strings: Any, width: int) -> Any:
    """Return the largest of eight fields of `width` bits in each string of `width` bytes."""
    largest, mask = np.uint64(0), np.uint64((1 << width) - 1)
    for n in range(len(strings)):
        joined = np.uint64(0)
        for j in range(width):
            joined |= np.uint64(strings[n, j]) << np.uint64(8 * j)
        for i in range(8):
            largest = max(largest, (joined >> np.uint64(width * i)) & mask)
    return largest


def pack_int8(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Interleave int8 rows, four columns at a time, raised by 128 to unsigned bytes.

    Parameters
    ----------
    values : ndarray of int8, shape (M, N)
        N a multiple of 4.

    Returns
    -------
    ndarray of uint8, shape (ceil(M / 16), N / 4, 16, 4)
        Rows that pad the last group hold 128, which stands for 0.
    """
    raised = np.full((len(values) + -len(values) % ROWS, values.shape[1]), 128, np.uint8)
    raised[: len(values)] = values.view(np.uint8) ^ np.uint8(128)
    return np.ascontiguousarray(raised.reshape(-1, ROWS, values.shape[1] // 4, 4).swapaxes(1, 2))


def unpack_int8(packed: NDArray[np.uint8], rows: int) -> NDArray[np.int8]:
    """Undo `pack_int8`."""
    raised = packed.swapaxes(1, 2).reshape(len(packed) * ROWS, -1)[:rows]
    values: NDArray[np.int8] = (raised ^ np.uint8(128)).view(np.int8)
    return values
