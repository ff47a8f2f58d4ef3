"""Time products of two quantized matrices: ``python tests/bench/matmul.py [size] [threads]``.

Prints seconds and GOPS (an addition and a multiplication count as two), the median of seven rounds
with the fastest and the slowest. Float32 BLAS runs in the same rounds, so that a machine that is
busy for a while slows both. "whole" is what `latticeq.matmul` takes: digits to points, laying out,
and multiplying.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from latticeq.cli.machine import limit_threads, physical_cores

ROUNDS = 7


def main(size: int = 4096, threads: int | None = None) -> None:
    """Time the product of two matrices of `size` rows and columns."""
    count = limit_threads(threads or physical_cores())  # before NumPy reads how many there are

    import numpy as np

    from latticeq import NestQuant, matmul
    from latticeq.linear.coded_kernels import coded_products
    from latticeq.linear.matmul import coded_operand
    from latticeq.simd import path

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    x, y = NestQuant().quantize(a), NestQuant().quantize(b)
    points = *coded_operand(x), *coded_operand(y)
    work: dict[str, Callable[[], object]] = {
        "float32 BLAS": lambda: a @ b.T,
        "two coded operands: whole": lambda: matmul(x, y),
        "two coded operands: from points": lambda: coded_products(*points),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(ROUNDS + 1):
        for name, product in work.items():
            start = time.perf_counter()
            product()
            if number > 0:  # the first round compiles
                seconds[name].append(time.perf_counter() - start)
    print(f"{size} x {size} by its like, {count} threads, {path()}")
    for name, times in seconds.items():
        gops = [2 * size**3 / one / 1e9 for one in times]
        print(
            f"{name:<34}{statistics.median(times):7.3f} s  {statistics.median(gops):5.0f} GOPS  "
            f"({min(gops):.0f} to {max(gops):.0f})"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
