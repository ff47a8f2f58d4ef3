"""The picture of ``latticeq bench kernels``: speed against operations a byte, under two limits.

A product of T tokens by a packed matrix does 2 M N T operations and reads the matrix's bytes. No
more operations are done in a second than memory brings bytes for, nor than the processor can do:
the roof is the lower of both (Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.bench_plot import check_plot, figure_class
from latticeq.cli.tables import thread_words

if TYPE_CHECKING:
    from latticeq.cli.peaks import Peaks

__all__ = ["Limits", "draw_roofline", "limits_of", "roof"]

MARKERS = "osDv^<>Ph*X"
COLOURS = ("#0b6e4f", "#6c757d", "#8e5ea2", "#c44536", "#d98324", "#2b59c3",
           "#00a3b4", "#d4499e", "#7f5539", "#83a91d", "#5e1224")  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """The two limits of a machine, and their names.

    Attributes
    ----------
    read : float
        Bytes a second.
    operations : float
        Multiplications and additions a second.
    words : str
        Both, for people.
    machine : str
        What did the work.
    """

    read: float
    operations: float
    words: str
    machine: str


def limits_of(peaks: Peaks) -> Limits:
    """Return the limits of a CPU."""
    words = f"memory, {peaks.read / 1e9:.1f} GB/s; int8 products, {peaks.int8 / 1e9:.0f} GOP/s"
    return Limits(peaks.read, peaks.int8, words, thread_words(peaks.threads))


def roof(intensity: float, limits: Limits) -> float:
    """Return the most operations a second, in 10^9, that do `intensity` operations a byte."""
    return min(limits.read * intensity, limits.operations) / 1e9


def draw_roofline(rows: Sequence[Mapping[str, Any]], limits: Limits, path: Path) -> None:
    """Draw the rows of ``latticeq bench kernels --json`` that belong to its largest shape.

    Parameters
    ----------
    rows : sequence of mappings
        With the fields of `latticeq.cli.bench_kernels.KernelRow`.
    limits : Limits
    path : Path
        A .png or .svg file; replaced if it is there.

    Raises
    ------
    InputError, MissingDependencyError
        As `latticeq.cli.bench_plot.check_plot`.
    """
    check_plot(path)
    shape = max(((row["rows"], row["columns"]) for row in rows), key=lambda s: s[0] * s[1])
    drawn = [row for row in rows if (row["rows"], row["columns"]) == shape]
    # A figure without pyplot: no window system is asked for, and nothing global is left behind.
    figure = figure_class()(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensities = [_intensity(row) for row in drawn]
    corner = limits.operations / limits.read
    low, high = min(intensities) / 2, 2 * max(*intensities, corner)
    ends = sorted({low, min(max(corner, low), high), high})
    axes.plot(ends, [roof(end, limits) for end in ends], color="black", linewidth=1.5)
    axes.annotate(
        limits.words,
        (0.02, 0.97),
        xycoords="axes fraction",
        verticalalignment="top",
    )
    for number, name in enumerate(dict.fromkeys(row["format"] for row in drawn)):
        mine = sorted((row for row in drawn if row["format"] == name), key=_intensity)
        axes.plot(
            [_intensity(row) for row in mine],
            [row["gop_s"] for row in mine],
            marker=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            linewidth=0.6,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte of the matrix: more tokens to the right")
    axes.set_ylabel("10⁹ operations a second")
    tokens = ", ".join(str(count) for count in sorted({row["tokens"] for row in drawn}))
    axes.set_title(f"{shape[0]} x {shape[1]}, {tokens} tokens at once, {limits.machine}")
    axes.grid(True, which="major", linewidth=0.3)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=150)


def _intensity(row: Mapping[str, Any]) -> float:
    """Return the operations that a product does for each byte of the matrix."""
    return float(2 * row["rows"] * row["columns"] * row["tokens"] / row["nbytes"])
