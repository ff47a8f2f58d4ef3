"""What this machine could do: the ceilings that measured speeds are shown beside.

Decoding reads all weights for each token: its ceiling is how fast memory is read. Prefill
multiplies many tokens by each weight: its ceiling is how fast int8 values are multiplied, in the
instruction that the kernels use (`latticeq.simd.path` names it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from latticeq import jit
from latticeq.cli.tables import thread_words
from latticeq.jit import kernel, prange
from latticeq.simd import dot_bytes, filled, lane_index, load, store

__all__ = ["READ_BYTES", "Peaks", "measure_peaks"]

READ_BYTES = 256 * 2**20
"""What is read to measure the bandwidth: beyond the caches of most machines."""

_PARTS = 256
_PASSES = 20

_OPERANDS = 64  # vectors of 64 bytes: 4 KiB of each kind, in the first cache of any machine
_ROUNDS = 40_000  # over the operands: about two milliseconds
_LANE_OPERATIONS = 16 * 4 * 2  # of one dot product: lanes, bytes in a lane, multiply and add


@dataclass(frozen=True)
class Peaks:
    """The fastest passes of a measurement.

    Parameters
    ----------
    threads : int
        All that kernels may use.
    read, read_one : float
        Bytes a second read from memory, by all threads and by one.
    int8, int8_one : float
        Int8 multiplications and additions a second, a product that is added counting as two.
    """

    threads: int
    read: float
    read_one: float
    int8: float
    int8_one: float

    def result(self) -> dict[str, Any]:
        """Return the keys of ``--json``."""
        return {
            "read_bandwidth_gb_s": self.read / 1e9,
            "read_bandwidth_1_thread_gb_s": self.read_one / 1e9,
            "int8_peak_gop_s": self.int8 / 1e9,
            "int8_peak_1_thread_gop_s": self.int8_one / 1e9,
        }

    def words(self) -> str:
        """Return a line for people."""
        words = (
            f"memory reads {self.read / 1e9:.1f} GB/s, int8 products {self.int8 / 1e9:.0f} GOP/s"
        )
        if self.threads > 1:
            words += f" (one: {self.read_one / 1e9:.1f} GB/s, {self.int8_one / 1e9:.0f} GOP/s)"
        return f"{thread_words(self.threads)}: {words}"


def measure_peaks() -> Peaks:
    """Measure reading and multiplying, with all threads and with one; takes one or two seconds.

    The fastest of several passes: it is a ceiling, and whatever else runs on the machine only slows
    a pass down.
    """
    threads = jit.threads()
    words = np.ones((_PARTS, READ_BYTES // 8 // _PARTS), np.uint64)
    read, int8 = _read(words), _int8(threads)
    if threads == 1:
        return Peaks(threads, read, read, int8, int8)
    with _one_thread():
        return Peaks(threads, read, _read(words), int8, _int8(1))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = jit.threads()
    jit.set_threads(1)
    try:
        yield
    finally:
        jit.set_threads(before)


def _fastest(run: Callable[..., None], *operands: Any) -> float:
    """Return the seconds of the fastest pass but the first, which compiles or loads the kernel."""
    times = []
    for _ in range(_PASSES + 1):
        start = time.perf_counter()
        run(*operands)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _read(words: Any) -> float:
    """Return the bytes a second of adding up (parts, n) uint64 ones."""
    sums = np.zeros(len(words), np.uint64)
    seconds = _fastest(_sum_rows, words, sums)
    assert sums.sum() == words.size  # and the compiler cannot leave the reading out
    return float(words.nbytes / seconds)


@kernel(parallel=True)
def _sum_rows(words: Any, sums: Any) -> None:
    for row in prange(len(words)):
        total = np.uint64(0)
        for column in range(words.shape[1]):
            total += words[row, column]
        sums[row] = total


def _int8(threads: int) -> float:
    """Return the int8 operations a second of multiplying tiles that stay in registers."""
    unsigned = np.full(16 * _OPERANDS, 0x01010101, np.int32)  # bytes of 1
    best = 0.0
    for multiply, side in ((_multiply_small, 2), (_multiply_large, 4)):
        sums = np.zeros((threads, 16), np.int32)
        seconds = _fastest(multiply, unsigned, unsigned, _ROUNDS, sums)
        dots = _ROUNDS * (_OPERANDS // side) * side**2
        assert (sums == 4 * dots).all()  # four products of 1 and 1 in each lane of each dot
        best = max(best, threads * dots * _LANE_OPERATIONS / seconds)
    return best


# Two tiles, as in a matrix product: each operand is loaded once and used by a whole row of the
# tile. Two by two sums leave room for their operands where a register holds 32 bytes and there are
# sixteen; four by four hide the five cycles of one AVX-512 dot product behind the others.


@kernel(parallel=True)
def _multiply_small(unsigned: Any, signed: Any, rounds: int, sums: Any) -> None:
    for thread in prange(len(sums)):
        zero = filled(0, lane_index(load(unsigned, 0)))
        s00, s01, s10, s11 = zero, zero, zero, zero
        for _ in range(rounds):
            for step in range(0, len(unsigned), 32):
                u0, u1 = load(unsigned, step), load(unsigned, step + 16)
                v0, v1 = load(signed, step), load(signed, step + 16)
                s00, s01 = dot_bytes(s00, u0, v0), dot_bytes(s01, u0, v1)
                s10, s11 = dot_bytes(s10, u1, v0), dot_bytes(s11, u1, v1)
        store(sums[thread], 0, (s00 + s01) + (s10 + s11))


@kernel(parallel=True)
def _multiply_large(unsigned: Any, signed: Any, rounds: int, sums: Any) -> None:
    for thread in prange(len(sums)):
        zero = filled(0, lane_index(load(unsigned, 0)))
        s00, s01, s02, s03 = zero, zero, zero, zero
        s10, s11, s12, s13 = zero, zero, zero, zero
        s20, s21, s22, s23 = zero, zero, zero, zero
        s30, s31, s32, s33 = zero, zero, zero, zero
        for _ in range(rounds):
            for step in range(0, len(unsigned), 64):
                u0, u1 = load(unsigned, step), load(unsigned, step + 16)
                u2, u3 = load(unsigned, step + 32), load(unsigned, step + 48)
                v0, v1 = load(signed, step), load(signed, step + 16)
                v2, v3 = load(signed, step + 32), load(signed, step + 48)
                s00, s01 = dot_bytes(s00, u0, v0), dot_bytes(s01, u0, v1)
                s02, s03 = dot_bytes(s02, u0, v2), dot_bytes(s03, u0, v3)
                s10, s11 = dot_bytes(s10, u1, v0), dot_bytes(s11, u1, v1)
                s12, s13 = dot_bytes(s12, u1, v2), dot_bytes(s13, u1, v3)
                s20, s21 = dot_bytes(s20, u2, v0), dot_bytes(s21, u2, v1)
                s22, s23 = dot_bytes(s22, u2, v2), dot_bytes(s23, u2, v3)
                s30, s31 = dot_bytes(s30, u3, v0), dot_bytes(s31, u3, v1)
                s32, s33 = dot_bytes(s32, u3, v2), dot_bytes(s33, u3, v3)
        row0, row1 = (s00 + s01) + (s02 + s03), (s10 + s11) + (s12 + s13)
        row2, row3 = (s20 + s21) + (s22 + s23), (s30 + s31) + (s32 + s33)
        store(sums[thread], 0, (row0 + row1) + (row2 + row3))
