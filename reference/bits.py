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


def pack_radix(digits: Bytes, q: int) -> Bytes:
    """Pack digits (M, N/8, 8) in mixed radix: an integer for every group, pair of blocks and row.

    The last block of an odd number of blocks is alone. The integers of sixteen rows, each of as
    many bits as the largest needs, are one integer.
    """
    rows = padded(digits)
    out = []
    for first in range(0, len(rows), ROWS):
        string = b""
        for block in range(0, digits.shape[1], 2):
            pair = [row[block : block + 2].reshape(-1) for row in rows[first : first + ROWS]]
            integers = [
                sum(int(digit) * q**j for j, digit in enumerate(sixteen)) for sixteen in pair
            ]
            bits = bit_width(q ** len(pair[0]))
            string += joined(integers, bits).to_bytes(2 * bits, "little")
        out.append(string)
    return np.frombuffer(b"".join(out), np.uint8).reshape(len(out), -1)


def pack_d8(digits: Bytes, scale_index: Bytes, q: int) -> Bytes:
    """Pack the cell d8's digits (M, N/8, 8) and scale indices (M, N/8): a word of w bytes a block.

    The lowest bits of digits 4 to 7 follow from those of digits 0 to 3. Their places hold the three
    bits of the scale index, and whether digit 0 is q or more.
    """
    w, rows, indices = bit_width(q), padded(digits), padded(scale_index)
    out = bytearray()
    for first in range(0, len(rows), ROWS):
        for block in range(digits.shape[1]):
            for m in range(first, first + ROWS):
                d, p = [int(digit) for digit in rows[m][block]], int(indices[m][block])
                spare = [p % 2, p // 2 % 2, p // 4, d[0] // q]
                fields = [d[0] % q, *d[1:4], *(d[4 + j] // 2 * 2 + spare[j] for j in range(4))]
                out += joined(fields, w).to_bytes(w, "little")
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, digits.shape[1], ROWS, w)


def pack_wide(integers: list[list[int]], bits: int) -> Bytes:
    """Pack integers, M lists of blocks: for every group and block, one integer of 2 b bytes."""
    blocks = len(integers[0])
    rows = [*integers, *[[0] * blocks] * (-len(integers) % ROWS)]
    out = bytearray()
    for first in range(0, len(rows), ROWS):
        for block in range(blocks):
            fields = [row[block] for row in rows[first : first + ROWS]]
            out += joined(fields, bits).to_bytes(2 * bits, "little")
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, blocks, 2 * bits)
