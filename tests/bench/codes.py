"""Time closest points and codes in bulk on one thread: ``python tests/bench/codes.py``.

Prints nanoseconds a block of eight: the median of fifteen runs, with the fastest and the slowest.
Arrays stay in the second-level cache, so that arithmetic is timed and not memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from latticeq.codes.nested import NestedCode
from latticeq.codes.pyramid import PyramidCode
from latticeq.codes.words import word_tables
from latticeq.jit import set_threads
from latticeq.lattices import e8
from latticeq.linear.cell_kernels import CELLS
from latticeq.quantizers.betas import tuned_betas
from latticeq.storage.bits import pack_digits, pack_scale_index

BLOCKS = 16_384
RUNS = 15


def measure(name: str, work: Callable[[], object]) -> None:
    """Print the time a block that some work on `BLOCKS` blocks takes."""
    work()  # compiles
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / BLOCKS * 1e9)
    low, high = min(times), max(times)
    print(f"{name:<46}{statistics.median(times):8.2f} ns a block  ({low:.2f} to {high:.2f})")


def pyramids(pulses: int) -> None:
    """Time pyramid codes; here a block is a word of sixteen numbers."""
    code = PyramidCode(16, pulses)
    x = np.random.default_rng(0).normal(size=(BLOCKS, 16)).astype(np.float32)
    for search in ("cosine", "projection"):
        measure(f"pyramid n=16 K={pulses}, {search}", lambda: code.nearest(x, search))  # noqa: B023
    words, _ = code.nearest(x)
    index = code.rank(words)
    measure(f"pyramid n=16 K={pulses}, rank", lambda: code.rank(words))
    measure(f"pyramid n=16 K={pulses}, unrank", lambda: code.unrank(index))


def main() -> None:
    """Time every bulk operation on one thread."""
    set_threads(1)
    blocks = np.random.default_rng(0).normal(size=(BLOCKS, 8)).astype(np.float32)
    wide = blocks.astype(np.float64)
    measure("E8 closest point, float32", lambda: e8.closest_point(blocks))
    measure("E8 closest point, float64", lambda: e8.closest_point(wide))
    for cell, k in (("nestquantm", 4), ("cubic", 4), ("cubic", 8), ("d8", 8), ("voronoi", 4)):
        code = NestedCode(16, tuned_betas(16, k, cell), cell)
        name = f"q=16 k={k} {cell}"
        measure(f"encode {name}, Opt-beta", lambda code=code: code.encode(blocks))  # type: ignore[misc]
    opt = code
    for pulses in (27, 58):
        pyramids(pulses)
    first = NestedCode(16, opt.betas, selection="first")
    measure("encode q=16 k=4 voronoi, First-beta", lambda: first.encode(blocks))

    digits, index = opt.encode(blocks)
    measure("decode digits to int8 points, voronoi", lambda: opt.points(digits))
    rows, columns = 256, 8 * BLOCKS // 256
    packed = pack_digits(digits.reshape(rows, -1, 8), 16)
    words = packed.view("<i4")[..., 0]
    scales = pack_scale_index(index.reshape(rows, -1), 4).reshape(rows // 16, -1)
    betas = np.zeros(16, np.float32)
    betas[:4] = np.array(opt.betas) / 2
    ones, out = np.ones(rows, np.float32), np.empty((columns, rows), np.float32)
    tables = word_tables(16)
    measure(
        "decode packed bytes to float32",
        lambda: CELLS["voronoi"].dequantize_groups(
            words, scales, 2, betas, ones, 16, tables, 0, out
        ),
    )
    kept = (words, scales, betas, ones)
    plan = np.array([[*(array.ctypes.data for array in kept), 2, rows // 16]], np.int64)
    pairs = np.ones((columns // 8, 3), np.int32)
    y = np.empty(rows, np.float32)
    measure(
        "decode packed bytes and multiply (int8 dots)",
        lambda: CELLS["voronoi"].multiply_row(plan, 16, tables, pairs, np.float32(1), y),
    )


if __name__ == "__main__":
    main()
