"""How fast this machine reads memory: the ceiling of decoding, which reads all weights a token."""

from __future__ import annotations

import time

import numpy as np

from latticeq.jit import kernel, prange

__all__ = ["read_bandwidth"]

_BYTES = 256 * 2**20  # beyond the caches of most machines
_PARTS = 256
_PASSES = 7


def read_bandwidth() -> float:
    """Return the bytes a second that all threads together read from memory; takes half a second.

    The fastest of several passes over 256 MiB: it is a ceiling, and whatever else runs on the
    machine only slows a pass down.
    """
    words = np.ones((_PARTS, _BYTES // 8 // _PARTS), np.uint64)
    sums = np.zeros(_PARTS, np.uint64)
    times = []
    for _ in range(_PASSES):
        start = time.perf_counter()
        _sum_rows(words, sums)
        times.append(time.perf_counter() - start)
    assert sums.sum() == words.size  # and the compiler cannot leave the reading out
    return words.nbytes / min(times[1:])


@kernel(parallel=True)
def _sum_rows(words, sums):  # type: ignore[no-untyped-def]
    for row in prange(len(words)):
        total = np.uint64(0)
        for column in range(words.shape[1]):
            total += words[row, column]
        sums[row] = total
