"""The picture of ``latticeq bench distortion``: distortion against rate, and the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.errors import InputError, MissingDependencyError

__all__ = ["MARKS", "check_plot", "draw_distortion", "figure_class"]

SUFFIXES = (".png", ".svg")

MARKS = {
    "NestQuant": ("o", "#0b6e4f"),
    "PVQ": ("P", "#1f5fa8"),
    "int4": ("s", "#6c757d"),
    "NF4": ("D", "#8e5ea2"),
    "MXFP4": ("v", "#c44536"),
    "NVFP4": ("^", "#d98324"),
}
"""Marker and colour of each family of methods: told apart without colour too."""


def check_plot(path: Path) -> None:
    """Refuse a file that cannot be drawn, before anything is measured.

    Raises
    ------
    InputError
        If its name ends in neither .png nor .svg, or its folder does not exist.
    MissingDependencyError
        If matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--plot {path}: the name must end in {' or '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}; make it first")
    figure_class()


def figure_class() -> Any:
    """Return matplotlib's Figure.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "drawing needs the matplotlib package; run: pip install 'latticeq[plot]'"
        ) from error
    return Figure


def draw_distortion(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of ``latticeq bench distortion --json``: a code's own error, and the product's.

    Parameters
    ----------
    rows : sequence of mappings
        With the fields of `latticeq.cli.bench_distortion.Row`.
    path : Path
        A .png or .svg file; replaced if it is there.

    Raises
    ------
    InputError, MissingDependencyError
        As `check_plot`.
    """
    from latticeq.quantizers.limits import distortion_limit, product_limit

    check_plot(path)
    # A figure without pyplot: no window system is asked for, and nothing global is left behind.
    figure = figure_class()(figsize=(13, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, rows, "mse", distortion_limit, "limit 2^(−2R)")
    left.set_title("one matrix: error of its entries")
    left.set_ylabel("mean squared error, entries of variance 1")
    _panel(right, rows, "product_error", product_limit, "limit Γ(R)")
    right.set_title("product of two matrices, both quantized")
    right.set_ylabel("mean squared error of an entry of A Bᵀ over N")
    figure.savefig(path, dpi=150)


def _panel(
    axes: Any,
    rows: Sequence[Mapping[str, Any]],
    field: str,
    limit: Callable[[float], float],
    name: str,
) -> None:
    bits = [row["bits_per_entry"] for row in rows]
    low, high = min(bits) - 0.25, max(bits) + 0.15
    curve = [low + i * (high - low) / 100 for i in range(101)]
    axes.plot(curve, [limit(rate) for rate in curve], color="black", linewidth=1.5)
    axes.annotate(
        name,
        (curve[60], limit(curve[60])),
        xytext=(-10, -4),
        textcoords="offset points",
        horizontalalignment="right",
    )
    for row in rows:
        marker, colour = MARKS[row["family"]]
        axes.plot(row["bits_per_entry"], row[field], marker, color=colour, markersize=6)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlim(low, high)
    axes.set_xlabel("bits an entry R, all bytes counted")
    axes.grid(True, which="both", linewidth=0.3)
    _label(axes, rows, field, high + 0.03 * (high - low))


def _label(axes: Any, rows: Sequence[Mapping[str, Any]], field: str, column: float) -> None:
    """Write the names right of the panel, one column, spread so that none covers another."""
    from math import exp, log

    ordered = sorted(rows, key=lambda row: float(row[field]))
    bottom, top = (log(value) for value in axes.get_ylim())
    heights = spread([log(row[field]) for row in ordered], bottom, top, (top - bottom) / 26)
    for row, height in zip(ordered, heights, strict=True):
        colour = MARKS[row["family"]][1]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 4}
        axes.annotate(
            row["method"],
            (row["bits_per_entry"], row[field]),
            xytext=(column, exp(height)),
            verticalalignment="center",
            fontsize=9,
            color=colour,
            arrowprops=line | {"relpos": (0, 0.5)},
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], bottom: float, top: float, gap: float) -> list[float]:
    """Return heights near the wanted ones, which rise, that are a gap apart and inside the range.

    Examples
    --------
    >>> spread([0.0, 1.0, 1.25, 9.0], 0.0, 10.0, 1.0)
    [0.5, 1.5, 2.5, 9.0]
    """
    heights: list[float] = []
    floor = bottom + gap / 2
    for height in wanted:
        floor = max(floor, height)
        heights.append(floor)
        floor += gap
    ceiling = top - gap / 2
    for i in reversed(range(len(heights))):
        ceiling = min(ceiling, heights[i])
        heights[i] = ceiling
        ceiling -= gap
    return heights
