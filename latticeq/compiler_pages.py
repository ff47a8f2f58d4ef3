"""Giving back the memory that LLVM's library takes of a process once its kernels are loaded.

Numba loads kernels by LLVM, a library of some 180 MB. Importing it and linking compiled kernels
touches 40 to 70 MiB of that, most of it once, and all of it counts as memory of the process for as
long as it runs: as much again as a small model. These pages are the file's, unchanged. Where the
system is told that they are not needed they stay in its page cache at most, and the next use maps
them again.
"""

from __future__ import annotations

import mmap
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["release_compiler"]

_LIBRARY = "libllvmlite"

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ +(.+)$")


def release_compiler() -> None:
    """Tell the system that no page of the compiler is needed; on Linux only, elsewhere nothing."""
    madvise, ranges = _found()
    for start, length in ranges:
        madvise(start, length, mmap.MADV_DONTNEED)


@cache
def _found() -> tuple[Any, list[tuple[int, int]]]:
    """Return the system's function, and the addresses and lengths of what it may be told of."""
    if not sys.platform.startswith("linux"):
        return None, []
    import ctypes

    try:
        with Path("/proc/self/smaps").open(encoding="utf-8", errors="replace") as lines:
            ranges = unchanged_mappings(lines, _LIBRARY)
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # no such file, or no such function: memory is kept
        return None, []
    madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    return madvise, ranges


def unchanged_mappings(lines: Any, name: str) -> list[tuple[int, int]]:
    """Return the mappings of a file that cannot be written and have not been.

    Parameters
    ----------
    lines : iterable of str
        Of ``/proc/self/smaps``.
    name : str
        What the file's path must have in it.

    Returns
    -------
    list of (int, int)
        Addresses and lengths in bytes. A mapping that has pages of its own is left out: what a
        linker wrote there before it was closed to writing would be lost.
    """
    found: list[tuple[int, int]] = []
    is_wanted = False
    for line in lines:
        if mapping := _MAPPING.match(line):
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            is_wanted = name in mapping[4] and "w" not in mapping[3]
        elif is_wanted and line.startswith("Anonymous:") and line.split()[1] == "0":
            found.append((start, end - start))
    return found
