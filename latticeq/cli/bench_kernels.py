"""What ``latticeq bench kernels`` measures: products by random packed matrices of every format.

A product by one token reads the matrix once and does little with it: its measure is bytes a second,
beside what memory can do. A product by many tokens is bound by arithmetic: its measure is
operations a second, beside the peak of int8 products. NumPy multiplies a float32 matrix of the same
shape in the same run.

For one token there are copies of each matrix, as many as take no less memory than the measurement
of the bandwidth reads, and each product takes the next: as in a model, where all other layers are
read before a matrix comes again, it is not found in a cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli import machine
from latticeq.cli.bench_kernels_gpu import chosen_device, run_on_gpu
from latticeq.cli.bench_model import number_list
from latticeq.cli.console import say
from latticeq.cli.env import versions
from latticeq.cli.product_row import ProductRow
from latticeq.cli.tables import duration, megabytes, short, table, thread_words
from latticeq.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latticeq.cli.peaks import Peaks

    Product = Callable[[NDArray[np.float32]], object]

__all__ = ["HELP", "KernelRow", "add_arguments", "run"]

HELP = "measure products by packed matrices of every format, beside NumPy and the machine's limits"

SHAPES, QUICK_SHAPES = ((4096, 4096), (4096, 14336)), ((512, 512),)
TOKENS, QUICK_TOKENS = (1, 16, 64, 512), (1, 16)
REPEATS = 5

FLOAT = "float32, NumPy"

_LEAST_SECONDS, _MOST_REPEATS = 0.3, 100
"""Short products are repeated until they took so long together, or so often."""


@dataclass(frozen=True)
class KernelRow(ProductRow):
    """One format, shape and number of tokens on the CPU.

    Parameters
    ----------
    int8_fraction : float
        Of the machine's int8 peak.
    """

    int8_fraction: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    shown = ",".join(f"{rows}x{columns}" for rows, columns in SHAPES)
    parser.add_argument(
        "--shapes",
        metavar="MxN,...",
        type=_shapes,
        help=f"matrices of M outputs and N inputs (default {shown}: layers of an 8B model)",
    )
    parser.add_argument(
        "--tokens",
        metavar="T,T,...",
        type=number_list,
        help=f"tokens multiplied at once (default {','.join(map(str, TOKENS))}: decoding and "
        "prefill)",
    )
    parser.add_argument(
        "--formats",
        metavar="NAME,...",
        help="only formats whose name has one of these words in it, such as cubic,int8",
    )
    parser.add_argument(
        "--runtime",
        choices=("packed", "int8"),
        default="packed",
        help="how matrices are run: as they are stored, or rounded to a byte a weight when they "
        "are loaded, as `latticeq bench DIR --runtime int8` does (default %(default)s)",
    )
    parser.add_argument(
        "--device",
        metavar="cpu|gpu|gpu:N",
        type=chosen_device,
        help="measure on this GPU, beside cuBLAS and the bandwidth of its memory (default cpu; "
        "needs the extra latticeq[gpu])",
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=REPEATS,
        help="the least number of products of each kind (default %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small matrix and few tokens: shows that it works, in seconds; no measure of speed",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw operations a second against operations a byte, under the machine's limits, into "
        "a .png or .svg file (needs the extra latticeq[plot]; a file of that name is replaced)",
    )


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [word.split("x") for word in text.split(",")]
    if not all(len(pair) == 2 and all(size.isdecimal() for size in pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of shapes such as 4096x14336")
    shapes = tuple((int(rows), int(columns)) for rows, columns in pairs)
    if any(not (1 <= m <= 2**17 and 32 <= n <= 2**16 and n % 32 == 0) for m, n in shapes):
        raise argparse.ArgumentTypeError(
            f"{text!r}: M must be from 1 to {2**17}, N a multiple of 32 up to {2**16}"
        )
    return shapes


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every format, show the table, and draw it if asked to."""
    from latticeq.cli.bench_plot import check_plot
    from latticeq.cli.peaks import READ_BYTES, measure_peaks
    from latticeq.cli.progress import compile_notice

    if args.repeats < 1:
        raise InputError(f"--repeats is {args.repeats}; it must be at least 1")
    if args.device is not None:
        if args.runtime != "packed":
            raise InputError("--runtime int8 is of the CPU; a GPU multiplies codewords as they are")
        return run_on_gpu(args)
    formats = _formats(args.formats)
    shapes = args.shapes or (QUICK_SHAPES if args.quick else SHAPES)
    tokens = args.tokens or (QUICK_TOKENS if args.quick else TOKENS)
    if args.plot is not None:
        check_plot(args.plot)
    compile_notice()
    start = time.perf_counter()
    peaks = measure_peaks()
    say(f"{machine.cpu_name()}; {peaks.words()}")
    bench = _Bench(peaks, args.repeats, args.seed, 0 if args.quick else READ_BYTES, args.runtime)
    rows = bench.rows(formats, shapes, sorted(set(tokens)))
    _report(rows, peaks)
    result = {
        "rows": [asdict(row) for row in rows],
        **peaks.result(),
        "quick": args.quick,
        "runtime": args.runtime,
        "seconds": round(time.perf_counter() - start, 1),
        "threads": args.threads,
        "cpu": machine.cpu_name(),
        "versions": versions(),
        "plot": args.plot,
    }
    if args.plot is not None:
        from latticeq.cli.bench_roofline import draw_roofline, limits_of

        draw_roofline(result["rows"], limits_of(peaks), args.plot)
        say(f"\ndrawn in {args.plot}")
    return result


def _formats(words: str | None) -> list[str]:
    from latticeq.cli.random_matrices import RANDOM_FORMATS

    wanted = (words or "").split(",")
    found = [name for name in RANDOM_FORMATS if any(word in name for word in wanted)]
    if not found:
        raise InputError(f"--formats {words} names none of {', '.join(RANDOM_FORMATS)}")
    return found


class _Bench:
    """Products to time, and the limits to hold them against."""

    def __init__(
        self, peaks: Peaks, repeats: int, seed: int, cold_bytes: int, runtime: str
    ) -> None:
        self._peaks = peaks
        self._repeats = repeats
        self._seed = seed
        self._cold_bytes = cold_bytes
        self._runtime = runtime

    def rows(
        self, formats: Sequence[str], shapes: Sequence[tuple[int, int]], tokens: Sequence[int]
    ) -> list[KernelRow]:
        """Measure everything, with a bar on stderr; NumPy's float32 comes first for each shape."""
        import numpy as np
        from tqdm import tqdm

        rng = np.random.default_rng(self._seed)
        found: list[KernelRow] = []
        began = time.perf_counter()
        with tqdm(total=len(shapes) * (len(formats) + 1), unit="matrix", leave=False) as bar:
            for shape in shapes:
                inputs = [rng.standard_normal((count, shape[1]), np.float32) for count in tokens]
                bar.set_description(f"{shape[0]}x{shape[1]} {FLOAT}")
                floats = self._matrix(FLOAT, shape, inputs, {})
                found += floats
                bar.update()
                seconds = {row.tokens: row.seconds for row in floats}
                if shape == shapes[0]:
                    so_far = time.perf_counter() - began
                    share = sum(m * n for m, n in shapes) / (shape[0] * shape[1])
                    guess = so_far * share * (len(formats) + 1)
                    tqdm.write(f"this takes about {duration(guess)}", file=sys.stderr)
                for name in formats:
                    bar.set_description(f"{shape[0]}x{shape[1]} {name}")
                    found += self._matrix(name, shape, inputs, seconds)
                    bar.update()
        return found

    def _matrix(
        self,
        name: str,
        shape: tuple[int, int],
        inputs: Sequence[NDArray[np.float32]],
        float_seconds: dict[int, float],
    ) -> list[KernelRow]:
        """Measure one format and shape with every number of tokens."""
        make, nbytes = _maker(name, shape, self._seed, self._runtime)
        products = [make(number) for number in range(self._copies(nbytes, inputs))]
        found = []
        for x in inputs:
            used = products if len(x) == 1 else products[:1]
            found.append(self._row(name, shape, x, nbytes, used, float_seconds))
        return found

    def _copies(self, nbytes: int, inputs: Sequence[NDArray[np.float32]]) -> int:
        alone = any(len(x) == 1 for x in inputs)
        return 1 + self._cold_bytes // nbytes if alone else 1

    def _row(
        self,
        name: str,
        shape: tuple[int, int],
        x: NDArray[np.float32],
        nbytes: int,
        products: Sequence[Product],
        float_seconds: dict[int, float],
    ) -> KernelRow:
        for product in products:
            product(x)  # compiles, and touches the memory
        times: list[float] = []
        while len(times) < self._repeats or (
            sum(times) < _LEAST_SECONDS and len(times) < _MOST_REPEATS
        ):
            product = products[len(times) % len(products)]
            start = time.perf_counter()
            product(x)
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
        operations = 2 * shape[0] * shape[1] * len(x)
        return KernelRow(
            name,
            *shape,
            len(x),
            nbytes,
            seconds,
            min(times),
            max(times),
            len(times),
            nbytes / seconds / 1e9,
            operations / seconds / 1e9,
            nbytes / seconds / self._peaks.read,
            float_seconds.get(len(x), seconds) / seconds,
            operations / seconds / self._peaks.int8,
        )


def _maker(
    name: str, shape: tuple[int, int], seed: int, runtime: str
) -> tuple[Callable[[int], Product], int]:
    """Return what makes a product by copy number i of a matrix, and the bytes that one reads."""
    import numpy as np

    from latticeq.cli.random_matrices import random_packed
    from latticeq.linear.packed import make_packed_linear

    if name == FLOAT:
        matrix = np.random.default_rng(seed).standard_normal(shape, np.float32)

        def product(number: int) -> Product:
            copy = matrix if number == 0 else matrix.copy()
            return lambda x: x @ copy.T

        return product, matrix.nbytes
    packed = random_packed(name, *shape, seed)
    first = make_packed_linear(packed, runtime=runtime)

    def linear(number: int) -> Product:
        if number == 0:
            return first
        arrays = {suffix: array.copy() for suffix, array in packed.arrays.items()}
        return make_packed_linear(type(packed)(packed.entry, arrays), runtime=runtime)

    return linear, first.run_nbytes


def _report(rows: Sequence[KernelRow], peaks: Peaks) -> None:
    heading = ("tokens", "GB/s", "of bandwidth", "GOP/s", "of int8 peak", "x NumPy", "ms (range)")
    for shape in dict.fromkeys((row.rows, row.columns) for row in rows):
        say(f"\n{shape[0]} x {shape[1]}, {thread_words(peaks.threads)}")
        lines: list[tuple[object, ...]] = [("matrix", "bytes", *heading)]
        mine = [row for row in rows if (row.rows, row.columns) == shape]
        for row in sorted(mine, key=lambda row: row.tokens):
            spread = f"{short(1e3 * row.lowest)}-{short(1e3 * row.highest)}"
            lines.append(
                (
                    row.format,
                    megabytes(row.nbytes),
                    row.tokens,
                    short(row.gb_s),
                    f"{row.bandwidth_fraction:.0%}",
                    short(row.gop_s),
                    f"{row.int8_fraction:.0%}",
                    f"{row.speedup:.2f}",
                    f"{short(1e3 * row.seconds)} ({spread})",
                )
            )
        say(table(lines))
    say(
        "\nmedians; GB/s are bytes as they are run, GOP/s multiplications and additions; limits of "
        "the same run, the float32\nproduct is held against the int8 peak only for comparison"
    )
