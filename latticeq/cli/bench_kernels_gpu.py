"""What ``latticeq bench kernels --device gpu`` measures: the same products on a GPU.

Beside each product stands the copy bandwidth of the same run and how much of it reading the
matrix reached, and cuBLAS multiplying a float16 matrix of the same shape. The rotation of the
input, which several matrices share, has rows of its own. Copies of a matrix, more than the cache
holds, take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.bench_plot import check_plot
from latticeq.cli.bench_roofline import Limits, draw_roofline
from latticeq.cli.console import say
from latticeq.cli.product_row import ProductRow
from latticeq.cli.tables import megabytes, short, table
from latticeq.errors import InputError

if TYPE_CHECKING:
    from latticeq.gpu.device import Device
    from latticeq.gpu.timing import Timing

__all__ = ["ProductRow", "chosen_device", "report", "run_on_gpu"]

SHAPES = ((4096, 4096), (4096, 14336), (8192, 28672))
QUICK_SHAPES = ((512, 512),)
TOKENS, QUICK_TOKENS = (1, 16, 512), (1, 16)

FORMATS = "voronoi,cubic,d8,nestquantm,int8"
"""Words in the names of formats that stay packed in device memory: what is measured by default."""

FLOAT, ROTATION = "float16, cuBLAS", "rotation of the input"

CACHES = 4
"""Copies of a matrix take this many times what the last cache holds, and are three at least."""


def chosen_device(text: str) -> int | None:
    """Return the index of the GPU that an argument names, None for the CPU.

    Raises
    ------
    argparse.ArgumentTypeError
        If it names neither.

    Examples
    --------
    >>> chosen_device("cpu"), chosen_device("gpu"), chosen_device("gpu:1")
    (None, 0, 1)
    """
    kind, _, index = text.partition(":")
    if text == "cpu":
        return None
    if kind != "gpu" or not (index.isdecimal() or text == "gpu"):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: use cpu, gpu or gpu:N")
    return int(index or 0)


def run_on_gpu(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every format and show the table."""
    from latticeq.cli.env import versions
    from latticeq.cli.random_matrices import RANDOM_FORMATS
    from latticeq.gpu.device import copy_bandwidth, cupy, describe

    if args.plot is not None:
        check_plot(args.plot)
    words = (args.formats or FORMATS).split(",")
    formats = [name for name in RANDOM_FORMATS if any(word in name for word in words)]
    if not formats:
        raise InputError(f"--formats {args.formats} names none of {', '.join(RANDOM_FORMATS)}")
    device = describe(args.device)
    shapes = args.shapes or (QUICK_SHAPES if args.quick else SHAPES)
    tokens = sorted(set(args.tokens or (QUICK_TOKENS if args.quick else TOKENS)))
    start = time.perf_counter()
    with cupy().cuda.Device(args.device):
        copy = copy_bandwidth(args.device)
        say(f"{device.name}; a copy moves {copy / 1e12:.3f} TB/s, read and written")
        bench = _Bench(device, copy, max(args.repeats, 1), args.seed)
        rows = bench.rows(formats, shapes, tokens)
    report(rows)
    if args.plot is not None:
        _draw(rows, copy, device.name, args.plot)
    return {
        "rows": [asdict(row) for row in rows],
        "copy_bandwidth_gb_s": copy / 1e9,
        "device": asdict(device),
        "quick": args.quick,
        "plot": args.plot,
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions() | {"cupy": str(cupy().__version__)},
    }


def _draw(rows: Sequence[ProductRow], copy: float, name: str, path: Path) -> None:
    """Draw all but rotations, under the copy bandwidth and the fastest of cuBLAS's products."""
    fastest = 1e9 * max(row.gop_s for row in rows if row.format == FLOAT)
    words = f"memory, a copy: {copy / 1e12:.2f} TB/s; fastest cuBLAS: {fastest / 1e12:.0f} TOP/s"
    drawn = [asdict(row) for row in rows if row.format != ROTATION]
    draw_roofline(drawn, Limits(copy, fastest, words, name), path)
    say(f"\ndrawn in {path}")


class _Bench:
    """Products to time on the current device."""

    def __init__(self, device: Device, copy: float, repeats: int, seed: int) -> None:
        self._device = device
        self._copy = copy
        self._repeats = repeats
        self._seed = seed

    def rows(
        self, formats: Sequence[str], shapes: Sequence[tuple[int, int]], tokens: Sequence[int]
    ) -> list[ProductRow]:
        """Measure everything, with a bar on stderr; cuBLAS comes first for each shape."""
        import sys

        from tqdm import tqdm

        found: list[ProductRow] = []
        with tqdm(total=len(shapes) * (len(formats) + 2), unit="matrix", leave=False) as bar:
            for shape in shapes:
                floats = {count: self._float_row(shape, count) for count in tokens}
                found += floats.values()
                bar.update()
                found += [self._rotation_row(shape, count) for count in tokens]
                bar.update()
                for name in formats:
                    bar.set_description(f"{shape[0]}x{shape[1]} {name}", refresh=False)
                    linears = self._linears(name, shape)
                    for count in tokens:
                        found.append(self._row(name, linears, count, floats[count].seconds))
                    bar.update()
                    sys.stderr.flush()
        return found

    def _copies(self, nbytes: int) -> int:
        return max(3, 1 + CACHES * self._device.l2_bytes // nbytes)

    def _inputs(self, tokens: int, columns: int) -> Any:
        from latticeq.gpu.device import cupy

        module = cupy()
        random = module.random.RandomState(self._seed)
        return random.standard_normal((tokens, columns), dtype=module.float32)

    def _linears(self, name: str, shape: tuple[int, int]) -> list[Any]:
        """Return linears of different codes, as many as it takes to leave the cache."""
        from latticeq.cli.random_matrices import random_packed
        from latticeq.gpu.linear import make_gpu_linear

        packed = random_packed(name, *shape, self._seed)
        device = self._device.index
        linears = [make_gpu_linear(packed, None, device)]
        count = self._copies(linears[0].run_nbytes)
        return linears + [make_gpu_linear(packed, None, device) for _ in range(count - 1)]

    def _row(
        self, name: str, linears: Sequence[Any], tokens: int, float_seconds: float
    ) -> ProductRow:
        from latticeq.gpu.device import cupy
        from latticeq.gpu.timing import time_captured

        first = linears[0]
        operand = first.operand(self._inputs(tokens, first.in_features))
        out = cupy().empty((tokens, first.out_features), "float32")

        def product(linear: Any) -> Callable[[], object]:
            return lambda: linear.multiply(operand, out)

        time_of = _timer(first, tokens) or time_captured
        timing = time_of([product(linear) for linear in linears], self._repeats)
        shape = first.out_features, first.in_features
        nbytes = first.run_nbytes
        return self._made(name, shape, tokens, nbytes, timing, float_seconds)

    def _float_row(self, shape: tuple[int, int], tokens: int) -> ProductRow:
        from latticeq.gpu.device import cupy
        from latticeq.gpu.many import multiply_float16
        from latticeq.gpu.timing import time_queued

        module, (m, n) = cupy(), shape
        nbytes = 2 * m * n
        matrix = self._inputs(m, n).astype("float16")
        matrices = [matrix, *(matrix.copy() for _ in range(self._copies(nbytes) - 1))]
        x = self._inputs(tokens, n).astype("float16")
        out = module.empty((tokens, m), "float16")

        def product(weights: Any) -> Callable[[], object]:
            return lambda: multiply_float16(weights, x, out)

        timing = time_queued([product(weights) for weights in matrices], self._repeats)
        return self._made(FLOAT, shape, tokens, nbytes, timing, timing.seconds)

    def _rotation_row(self, shape: tuple[int, int], tokens: int) -> ProductRow:
        from latticeq.gpu.many import takes_wide
        from latticeq.gpu.small import MOST_TOKENS
        from latticeq.gpu.timing import time_captured
        from latticeq.gpu.tokens import GpuRotation
        from latticeq.transforms.rotation import Rotation

        rotation, x = GpuRotation(Rotation(shape[1])), self._inputs(tokens, shape[1])
        is_wide = tokens > MOST_TOKENS and takes_wide()
        calls = [lambda: rotation.operand(x, is_wide)] * 20
        timing = time_captured(calls, self._repeats)
        return self._made(ROTATION, shape, tokens, int(x.nbytes), timing, timing.seconds)

    def _made(
        self,
        name: str,
        shape: tuple[int, int],
        tokens: int,
        nbytes: int,
        timing: Timing,
        float_seconds: float,
    ) -> ProductRow:
        seconds, operations = timing.seconds, 2 * shape[0] * shape[1] * tokens
        return ProductRow(
            name, *shape, tokens, nbytes, seconds, timing.lowest, timing.highest, timing.repeats,
            nbytes / seconds / 1e9, operations / seconds / 1e9, nbytes / seconds / self._copy,
            float_seconds / seconds,
        )  # fmt: skip


def _timer(linear: Any, tokens: int) -> Any:
    """Return `time_queued` for products that cuBLAS takes part in: no graph can hold those."""
    from latticeq.gpu.many import takes_wide
    from latticeq.gpu.small import MOST_TOKENS
    from latticeq.gpu.timing import time_queued

    return time_queued if tokens > MOST_TOKENS and not takes_wide() else None


def report(rows: Sequence[ProductRow]) -> None:
    """Show a table for each shape."""
    for shape in dict.fromkeys((row.rows, row.columns) for row in rows):
        say(f"\n{shape[0]} x {shape[1]}")
        heading = ("matrix", "bytes", "tokens", "µs (range)", "GB/s", "of copy", "x cuBLAS")
        lines: list[tuple[object, ...]] = [heading]
        mine = [row for row in rows if (row.rows, row.columns) == shape]
        for row in sorted(mine, key=lambda row: row.tokens):
            spread = f"{short(1e6 * row.lowest)}-{short(1e6 * row.highest)}"
            times = f"{short(1e6 * row.seconds)} ({spread})"
            words = ("", "", "") if row.format == ROTATION else (
                short(row.gb_s), f"{row.bandwidth_fraction:.0%}", f"{row.speedup:.2f}",
            )  # fmt: skip
            size = "" if row.format == ROTATION else megabytes(row.nbytes)
            lines.append((row.format, size, row.tokens, times, *words))
        say(table(lines))
    say(
        "\nmedians of products in CUDA graphs, of copies that no cache holds; GB/s are bytes of a "
        "matrix; the rotation\nis shared by all matrices of an input and counted in none of the "
        "other rows"
    )
