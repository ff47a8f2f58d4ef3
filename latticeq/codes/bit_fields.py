"""Integers of a fixed number of bits, one after the other in bytes: the first one lowest.

In memory an integer is its words of 64 bits ("limbs"), the lowest first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange

__all__ = ["join_fields", "read_field", "split_fields"]


def join_fields(integers: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    """Join integers below 2^bits along the axis before the last.

    Parameters
    ----------
    integers : ndarray of uint64, shape (..., count, limbs)
    bits : int
        At least 1.

    Returns
    -------
    ndarray of uint8, shape (..., ceil(count * bits / 8))

    Examples
    --------
    >>> integers = np.random.default_rng(0).integers(0, 2**61, (3, 5, 2), dtype=np.uint64)
    >>> bool((split_fields(join_fields(integers, 125), 5, 125) == integers).all())
    True
    """
    each = np.ascontiguousarray(integers, "<u8").view(np.uint8)
    each = np.unpackbits(each, axis=-1, bitorder="little", count=bits)
    joined = each.reshape(*each.shape[:-2], each.shape[-2] * bits)
    return np.packbits(joined, axis=-1, bitorder="little")


def split_fields(raw: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint64]:
    """Undo `join_fields`: (..., bytes) uint8 -> (..., count, ceil(bits / 64)) uint64."""
    strings = np.ascontiguousarray(raw).reshape(int(np.prod(raw.shape[:-1])), raw.shape[-1])
    integers = np.empty((len(strings), count, -(-bits // 64)), np.uint64)
    with np.errstate(over="ignore"):
        _split(strings, bits, integers)
    return integers.reshape(*raw.shape[:-1], *integers.shape[1:])


@kernel(parallel=True)
def _split(strings: Any, bits: int, integers: Any) -> None:
    for row in prange(len(strings)):
        for field in range(integers.shape[1]):
            read_field(strings[row], bits * field, bits, integers[row, field])


@kernel
def read_field(raw: Any, at: int, bits: int, limbs: Any) -> None:
    """Read an integer of so many bits that begins at bit `at` of bytes.

    Parameters
    ----------
    raw : (bytes,) uint8
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
