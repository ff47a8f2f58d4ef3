"""Arrays that lie in a mapped file."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["release"]


def release(array: NDArray[Any]) -> int:
    """Tell the system that the pages of an array are not needed for now.

    They no longer count as memory of the process. The array stays as it is: what is read again
    comes from the file. Nothing happens to an array that is no part of a file mapped for reading.

    Parameters
    ----------
    array : ndarray
        Contiguous.

    Returns
    -------
    int
        Bytes that were given back: whole pages within the array.
    """
    source: Any = array
    while isinstance(source, np.ndarray):
        source = source.base
    # A mapping that may be written could hold what the file does not.
    if not isinstance(source, mmap.mmap) or not hasattr(source, "madvise"):
        return 0
    whole = np.frombuffer(source, np.uint8)
    if whole.flags.writeable or not array.flags.c_contiguous:
        return 0
    start = array.ctypes.data - whole.ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length <= 0:
        return 0
    source.madvise(mmap.MADV_DONTNEED, first, length)
    return length
