"""What ``latticeq bench distortion`` measures: how close codes come to the limits of their rate.

Two matrices of N(0, 1) entries are quantized by every method at its default settings. Reading one
back gives the code's mean squared error, at least 2^(−2R) at R bits an entry; the product of both,
straight from the quantized operands, gives the mean squared error of A Bᵀ over N, at least Γ(R)
(`latticeq.quantizers.limits`). R counts every byte: scales, indices, padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli import machine
from latticeq.cli.console import say
from latticeq.cli.env import versions
from latticeq.cli.tables import duration, table
from latticeq.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latticeq.quantizers.base import Quantizer

__all__ = ["HELP", "Row", "add_arguments", "methods", "run"]

HELP = "measure the distortion of every method on Gaussian matrices, beside the limits"

SIZE, QUICK_SIZE = 4096, 1024
MULTIPLE = 128
"""Of the size: the longest group of entries that share a scale."""

PVQ_BITS = (2, 2.5, 3, 3.25, 3.5, 4, 4.25, 4.5, 5)
"""Rates of PVQ in groups of `PVQ_GROUP`."""

PVQ_GROUP = 16

SAMPLE_ROWS = 256
"""Rows that are quantized to estimate the time."""


@dataclass(frozen=True)
class Row:
    """What one method does to a pair of matrices.

    Parameters
    ----------
    method, family : str
        Its name, and that of the methods it belongs with.
    bits_per_entry : float
        R, from bytes.
    mse, mse_limit, mse_ratio : float
        Mean squared error of both matrices, 2^(−2R), and the first over the second.
    product_error, product_limit, product_ratio : float
        Mean squared error of A Bᵀ over N, Γ(R), and the first over the second.
    quantize_s, multiply_s : float
        Seconds to quantize both matrices, and to multiply them.
    """

    method: str
    family: str
    bits_per_entry: float
    mse: float
    mse_limit: float
    mse_ratio: float
    product_error: float
    product_limit: float
    product_ratio: float
    quantize_s: float
    multiply_s: float


def methods() -> list[tuple[str, str, Quantizer]]:
    """Return name, family and quantizer of every method, in the order of the table."""
    from latticeq import PVQ, NestQuant, Scalar

    def nest(name: str, **settings: Any) -> tuple[str, str, Quantizer]:
        return f"NestQuant {name}", "NestQuant", NestQuant(**settings)

    def scalar(name: str, kind: str, **settings: Any) -> tuple[str, str, Quantizer]:
        return name, kind.upper() if kind != "int4" else kind, Scalar(kind, **settings)

    def pvq(group: int, bits: float) -> tuple[str, str, Quantizer]:
        return f"PVQ groups of {group}, {bits:g} bits", "PVQ", PVQ(group, bits)

    published: dict[str, Any] = {"q": 14, "k": 4, "betas": "published"}
    return [
        nest("q=16 k=4", q=16, k=4),
        nest("q=14 k=4 published, digits", **published),
        nest("q=14 k=4 published, radix", **published, packing="radix"),
        nest("q=8 k=4", q=8, k=4),
        nest("cubic q=16 k=4", q=16, k=4, shaping="cubic"),
        nest("cubic q=16 k=8", q=16, k=8, shaping="cubic"),
        nest("d8 q=16 k=8", q=16, k=8, shaping="d8"),
        nest("nestquantm q=16 k=4", q=16, k=4, simplified="nestquantm"),
        *(pvq(PVQ_GROUP, bits) for bits in PVQ_BITS),
        pvq(8, 4.25),
        pvq(32, 4.25),
        pvq(64, 4.25),
        scalar("int4 per row", "int4"),
        scalar("int4 groups of 128", "int4", group=128),
        scalar("int4 groups of 32", "int4", group=32),
        scalar("NF4 groups of 64", "nf4"),
        scalar("MXFP4", "mxfp4"),
        scalar("NVFP4", "nvfp4"),
        scalar("NVFP4, no four-over-six", "nvfp4", four_over_six=False),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--size",
        metavar="N",
        type=int,
        help=f"multiply N x N matrices (default {SIZE}: averages are good to a tenth of a percent)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_SIZE} x {QUICK_SIZE} matrices instead: good to half a percent, in seconds",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw distortion against rate, with both limits, into a .png or .svg file (needs the "
        "extra latticeq[plot]; a file of that name is replaced)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every method, show the table, and draw it if asked to."""
    from latticeq.cli.bench_plot import check_plot, draw_distortion
    from latticeq.cli.progress import compile_notice

    size = _size(args)
    if args.plot is not None:
        check_plot(args.plot)
    compile_notice()
    start = time.perf_counter()
    bench = _Bench(size, args.seed)
    rows = bench.rows()
    _report(rows, bench)
    result = {
        "size": size,
        "seed": args.seed,
        "rows": [asdict(row) for row in rows],
        "pvq_splits": {f"{bits:g}": pvq_splits(bits, size) for bits in PVQ_BITS},
        "float32_multiply_s": bench.float_s,
        "seconds": round(time.perf_counter() - start, 1),
        "threads": args.threads,
        "cpu": machine.cpu_name(),
        "versions": versions(),
        "plot": args.plot,
    }
    if args.plot is not None:
        draw_distortion(result["rows"], args.plot)
        say(f"\ndrawn in {args.plot}")
    return result


def _size(args: argparse.Namespace) -> int:
    if args.size is not None and args.quick:
        raise InputError(f"--size {args.size} and --quick both set the size; give one of them")
    size = args.size if args.size is not None else QUICK_SIZE if args.quick else SIZE
    if size < 1 or size % MULTIPLE:
        raise InputError(f"--size is {size}; it must be a positive multiple of {MULTIPLE}")
    return int(size)


def pvq_splits(bits: float, size: int) -> list[dict[str, Any]]:
    """Return the ways to split PVQ's bits in rows of a length, by the bits of the gain."""
    from latticeq.quantizers.gains import splits

    ways = sorted(splits(PVQ_GROUP, bits, size), key=lambda way: way.gain_bits)
    return [asdict(way) for way in ways]


class _Bench:
    """Two matrices, their exact product, and the methods to measure on them."""

    def __init__(self, size: int, seed: int) -> None:
        import numpy as np

        rng = np.random.default_rng(seed)
        shape = (size, size)
        self.a, self.b = (rng.standard_normal(shape, np.float32) for _ in range(2))
        self.a[:64] @ self.b[:64].T  # wakes the threads of BLAS
        self.product, self.float_s = _timed(lambda: self.a @ self.b.T)
        self.methods = methods()

    def rows(self) -> list[Row]:
        """Measure every method, with a bar on stderr."""
        from tqdm import tqdm

        say(f"{len(self.methods)} methods on {len(self.a)} x {len(self.a)} matrices")
        say(f"this takes about {duration(self._estimate())}")
        steps = 3 * len(self.methods)
        rows = []
        with tqdm(total=steps, unit="step", leave=False) as bar:
            for name, family, quantizer in self.methods:
                bar.set_description(name)
                rows.append(self._row(name, family, quantizer, bar.update))
        return rows

    def _estimate(self) -> float:
        """Return about how many seconds it will take, from some rows of every method."""
        from tqdm import tqdm

        from latticeq.linear.matmul import matmul

        seconds = 0.0
        sample = self.a[:SAMPLE_ROWS]
        for _, _, quantizer in tqdm(self.methods, "each on some rows", leave=False):
            quantized = quantizer.quantize(sample)
            matmul(quantized, quantized)
            quantized.dequantize()  # what has to compile has compiled
            seconds += _timed(lambda: quantizer.quantize(sample))[1] / len(sample)  # noqa: B023
        # A product takes less than BLAS straight from codes, more where they become floats first.
        return 2 * len(self.a) * seconds + 2 * len(self.methods) * self.float_s

    def _row(
        self, method: str, family: str, quantizer: Quantizer, step: Callable[[], object]
    ) -> Row:
        import numpy as np

        from latticeq.linear.matmul import matmul
        from latticeq.quantizers.limits import distortion_limit, product_limit

        operands, errors, quantize_s = [], [], 0.0
        for matrix in (self.a, self.b):
            quantized, seconds = _timed(lambda: quantizer.quantize(matrix))  # noqa: B023
            operands.append(quantized)
            errors.append(_mean_square(matrix, quantized.dequantize()))
            quantize_s += seconds
            step()
        found, multiply_s = _timed(lambda: matmul(*operands))
        step()
        rate = operands[0].bits_per_entry
        mse, error = float(np.mean(errors)), _mean_square(self.product, found) / len(self.a)
        limits = distortion_limit(rate), product_limit(rate)
        return Row(
            method,
            family,
            rate,
            mse,
            limits[0],
            mse / limits[0],
            error,
            limits[1],
            error / limits[1],
            quantize_s,
            multiply_s,
        )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    done = work()
    return done, time.perf_counter() - start


def _mean_square(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    import numpy as np

    return float(np.mean(np.square(x - y), dtype=np.float64))


def _report(rows: list[Row], bench: _Bench) -> None:
    say("\n" + table(_lines(rows)))
    say(
        "\nR counts all bytes. Error: mean square of one matrix's entries, beside 2^(-2R). Product "
        "error: mean\nsquare of an entry of A B^T over N, beside Gamma(R). No code of R bits can "
        "have a ratio below 1."
    )
    say(f"float32 BLAS multiplies the matrices in {bench.float_s:.2f} s")


def _lines(rows: list[Row]) -> Iterator[tuple[object, ...]]:
    yield (
        "method",
        "bits R",
        "error",
        "/ 2^-2R",
        "product error",
        "/ Gamma(R)",
        "quantize s",
        "multiply s",
    )
    for row in rows:
        yield (
            row.method,
            f"{row.bits_per_entry:.3f}",
            f"{row.mse:.5f}",
            f"{row.mse_ratio:.2f}",
            f"{row.product_error:.5f}",
            f"{row.product_ratio:.3f}",
            f"{row.quantize_s:.2f}",
            f"{row.multiply_s:.2f}",
        )
