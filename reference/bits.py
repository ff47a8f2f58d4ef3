"""Format v1's bytes, written with Python integers: the definition rather than a way to do it.

docs/format-v1.md, section "Arrays". Notation: M x N the matrix, q digits' values, k scales, w =
ceil(log2 q) and v = ceil(log2 k) bits; rows in groups of sixteen, columns in blocks of eight. An
integer of n bytes is written little-endian: its lowest byte first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
ROWS = 16


def bit_width(count: int) -> int:
    """Return the least number of bits that tell ``count`` values apart."""
    width = 0
    while 2**width < count:
        width += 1
    return width


def joined(fields: list[int], width: int) -> int:
    """Return the integer whose bits width * i to width * i + width - 1 are field i."""
    return sum(field << (width * i) for i, field in enumerate(fields))


def padded(rows: NDArray[np.integer], fill: int = 0) -> list[NDArray[np.integer]]:
    """Return the rows, and rows of ``fill`` until there is a whole number of groups."""
    short = -len(rows) % ROWS
    return [*rows, *[np.full(rows.shape[1:], fill, rows.dtype)] * short]


def pack_digits(digits: Bytes, q: int) -> Bytes:
    """Pack digits (M, N/8, 8): for every group, block and row, one integer of w bytes."""
    w, rows = bit_width(q), padded(digits)
    out = bytearray()
    for first in range(0, len(rows), ROWS):
        for block in range(digits.shape[1]):
            for row in rows[first : first + ROWS]:
                out += joined([int(digit) for digit in row[block]], w).to_bytes(w, "little")
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, digits.shape[1], ROWS, w)


def pack_scale_index(scale_index: Bytes, k: int) -> Bytes:
    """Pack scale indices (M, N/8): for every group and block, one integer of 2 v bytes."""
    v, rows = bit_width(k), padded(scale_index)
    groups, blocks = len(rows) // ROWS, scale_index.shape[1]
    out = bytearray()
    for first in range(0, len(rows), ROWS):
        for block in range(blocks):
            fields = [int(row[block]) for row in rows[first : first + ROWS]]
            out += joined(fields, v).to_bytes(2 * v, "little")
    return np.frombuffer(bytes(out), np.uint8).reshape(groups, blocks, 2 * v)


def pack_int8(values: NDArray[np.int8]) -> Bytes:
    """Pack int8 rows (M, N): for every group, four columns and row, four bytes raised by 128."""
    rows = padded(values)
    out = bytearray()
    for first in range(0, len(rows), ROWS):
        for column in range(0, values.shape[1], 4):
            for row in rows[first : first + ROWS]:
                out += bytes(int(value) + 128 for value in row[column : column + 4])
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, values.shape[1] // 4, ROWS, 4)
