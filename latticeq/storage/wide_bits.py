"""Integers of any number of bits as bytes: sixteen rows side by side, no bit wasted.

Rows are taken in groups of sixteen, the last group padded with zeros. For every group and every
block of columns the sixteen rows' integers of b bits are one little-endian integer, row l in bits
``b*l`` to ``b*l + b - 1``: 2 b bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.bit_fields import join_fields, split_fields
from latticeq.storage.bits import ROWS

__all__ = ["pack_wide", "unpack_wide"]


def pack_wide(integers: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    """Pack integers below 2^bits.

    Parameters
    ----------
    integers : ndarray of uint64, shape (M, blocks, limbs)
        In words of 64 bits, the lowest first.
    bits : int
        At least 1.

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
    padded = np.zeros((m + -m % ROWS, blocks, limbs), np.uint64)
    padded[:m] = integers
    return join_fields(padded.reshape(-1, ROWS, blocks, limbs).swapaxes(1, 2), bits)


def unpack_wide(packed: NDArray[np.uint8], bits: int, rows: int) -> NDArray[np.uint64]:
    """Undo `pack_wide`: (groups, blocks, 2 * bits) uint8 -> (rows, blocks, ceil(bits / 64))."""
    integers = split_fields(packed, ROWS, bits).swapaxes(1, 2)
    return integers.reshape(-1, *integers.shape[2:])[:rows]
