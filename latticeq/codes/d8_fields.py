"""The word of a block of cell "d8": eight digits, the coset bit and a scale index, no bit unused.

The least significant bits of eight digits are a word of the extended Hamming code: those of digits
0 to 3 fix the others, whose places are free for the scale index (three bits) and for the coset bit
that the first digit carries (one bit).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["join_d8", "split_d8"]


def join_d8(digits: NDArray[np.uint8], scale_index: NDArray[np.uint8], q: int) -> NDArray[np.uint8]:
    """Return the eight fields of each block's word.

    Parameters
    ----------
    digits : ndarray of uint8, shape (..., 8)
        Of the cell "d8": the first below 2q, the others below q, their least significant bits a
        word of the Hamming code.
    scale_index : ndarray of uint8, shape (...)
        Below 8.
    q : int
        Even.

    Returns
    -------
    ndarray of uint8, shape (..., 8)
        Below q; field i goes to bits w i to w i + w - 1.

    Examples
    --------
    >>> fields = join_d8(np.array([17, 1, 0, 0, 3, 1, 0, 0], np.uint8), np.uint8(5), 16)
    >>> fields.tolist()
    [1, 1, 0, 0, 3, 0, 1, 1]
    >>> [part.tolist() for part in split_d8(fields, 16)]
    [[17, 1, 0, 0, 3, 1, 0, 0], 5]
    """
    fields = digits.copy()
    fields[..., 0] %= q
    free = np.stack([*(scale_index >> bit & 1 for bit in range(3)), digits[..., 0] // q], axis=-1)
    fields[..., 4:] = (digits[..., 4:] & 0xFE) | free
    return fields


def split_d8(fields: NDArray[np.uint8], q: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Undo `join_d8`: return the digits and the scale indices of words' fields."""
    low = fields & 1
    digits = fields.copy()
    parity = np.bitwise_xor.reduce(low[..., :4], axis=-1, keepdims=True)
    digits[..., 4:] = (fields[..., 4:] & 0xFE) | (low[..., :4] ^ parity)
    digits[..., 0] += low[..., 7] * np.uint8(q)
    index = low[..., 4] + 2 * low[..., 5] + 4 * low[..., 6]
    return digits, index.astype(np.uint8)
