"""Integers of any number of bits as bytes: sixteen rows side by side, no bit wasted.

Rows are taken in groups of sixteen, the last group padded with zeros. For every group and every
block of columns the sixteen rows' integers of b bits are one little-endian integer, row l in bits
``b*l`` to ``b*l + b - 1``: 2 b bytes.

In memory an integer is its words of 64 bits ("limbs"), the lowest first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel
from latticeq.storage.bits import ROWS

__all__ = ["pack_wide", "read_wide", "unpack_wide"]


def pack_wide(integers: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    """Pack integers below 2^bits.

    Parameters
    ----------
    integers : ndarray of uint64, shape (M, blocks, limbs)
    bits : int

    Returns
    -------
    ndarray of uint8, shape (ceil(M / 16), blocks, 2 * bits)

    Examples
    --------
    >>> integers = np.random.default_rng(0).integers(0, 2**61, (5, 3, 2), dtype=np.uint64)
    >>> bool((unpack_wide(pack_wide(integers, 125), 125, 5) == integers).all())
    True
    """
    m, blocks, limbs = integers.shape
    padded = np.zeros((m + -m % ROWS, blocks, limbs), "<u8")
    padded[:m] = integers
    each = np.unpackbits(padded.view(np.uint8), axis=-1, bitorder="little", count=bits)
    grouped = each.reshape(-1, ROWS, blocks, bits).swapaxes(1, 2)
    return np.packbits(grouped.reshape(-1, blocks, ROWS * bits), axis=-1, bitorder="little")


def unpack_wide(packed: NDArray[np.uint8], bits: int, rows: int) -> NDArray[np.uint64]:
    """Undo `pack_wide`: (groups, blocks, 2 * bits) uint8 -> (rows, blocks, limbs) uint64."""
    groups, blocks = packed.shape[:2]
    limbs = -(-bits // 64)
    out = np.empty((groups * ROWS, blocks, limbs), np.uint64)
    with np.errstate(over="ignore"):
        _read_all(packed.reshape(groups, blocks, -1), bits, out)
    return out[:rows]


@kernel
def _read_all(packed: Any, bits: int, out: Any) -> None:
    for row in range(len(out)):
        for block in range(out.shape[1]):
            read_wide(packed[row // ROWS, block], bits * (row % ROWS), bits, out[row, block])


@kernel
def read_wide(raw: Any, at: int, bits: int, limbs: Any) -> None:
    """Read an integer of so many bits that begins at bit `at` of bytes.

    Parameters
    ----------
    raw : (2 * bits,) uint8
    at, bits : int
    limbs : (ceil(bits / 64),) uint64, output
    """
    for w in range(len(limbs)):
        first = at + 64 * w
        byte, skipped = first >> 3, first & 7
        wanted = min(64, bits - 64 * w)
        value = np.uint64(0)
        for j in range((skipped + wanted + 7) >> 3):  # up to nine bytes
            part = np.uint64(raw[byte + j])
            shift = 8 * j - skipped
            value |= part << np.uint64(shift) if shift >= 0 else part >> np.uint64(-shift)
        if wanted < 64:
            value &= (np.uint64(1) << np.uint64(wanted)) - np.uint64(1)
        limbs[w] = value
