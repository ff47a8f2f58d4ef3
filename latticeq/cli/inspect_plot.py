"""The picture of ``latticeq inspect``: what was lost where, the use of scales, and the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.cli.bench_plot import check_plot, figure_class
from latticeq.cli.layer_report import MatrixReport
from latticeq.cli.tables import kind
from latticeq.cli.weight_law import BINS, WIDEST, WeightLaw

__all__ = ["draw_inspect"]

_ACROSS = 4
"""Panels of weights in a row."""

_STYLES = (
    ("o", "#0b6e4f"),
    ("s", "#1f5fa8"),
    ("^", "#c44536"),
    ("D", "#d98324"),
    ("v", "#8e5ea2"),
    ("P", "#6c757d"),
    ("X", "#222222"),
)
"""Marker and colour of each kind of matrix: told apart without colour too."""

_LEAST = 1e-7
"""Density at the bottom of the panels of weights: one of ten million weights."""


def draw_inspect(
    report: Sequence[MatrixReport],
    shares: Mapping[str, Sequence[float]],
    laws: Sequence[WeightLaw],
    path: Path,
) -> None:
    """Draw what is known of a folder's matrices; panels of which nothing is known are left out.

    Parameters
    ----------
    report : sequence of MatrixReport
        Of `read_layer_report`.
    shares : mapping of str to sequence of float
        Which share of a kind's blocks uses each scale, the smallest first.
    laws : sequence of WeightLaw
        Of `weight_laws`.
    path : Path
        A .png or .svg file; replaced if it is there.

    Raises
    ------
    InputError, MissingDependencyError
        As `check_plot`.
    """
    check_plot(path)
    panels = _upper_panels(report, shares)
    rows = -(-len(laws) // _ACROSS)
    heights = ([3.6] if panels else []) + [2.3 * rows]
    figure = figure_class()(figsize=(13, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if panels:
        every = parts[0].subplots(1, len(panels), squeeze=False)[0]
        for axes, draw in zip(every, panels, strict=True):
            draw(axes)
        handles, labels = every[0].get_legend_handles_labels()
        if labels:
            parts[0].legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8)
    _weights(parts[-1], laws, rows)
    figure.savefig(path, dpi=150)


def _upper_panels(
    report: Sequence[MatrixReport], shares: Mapping[str, Sequence[float]]
) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    if report:
        errors = [(row.name, row.relative_error) for row in report]
        panels.append(lambda axes: _by_layer(axes, errors, "relative error of the weights"))
    losses = [(row.name, row.proxy_loss) for row in report if row.proxy_loss is not None]
    if losses:
        title = "share of the output lost on the calibration text"
        panels.append(lambda axes: _by_layer(axes, losses, title))
    if shares:
        panels.append(lambda axes: _scale_use(axes, shares))
    return panels


def _by_layer(axes: Any, points: Sequence[tuple[str, float]], title: str) -> None:
    """Draw a line a kind of matrix over the layers."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, value in points:
        number = re.search(r"\.(\d+)\.", name)
        lines.setdefault(_short(kind(name)), []).append((int(number[1]) if number else 0, value))
    for i, (label, line) in enumerate(lines.items()):
        marker, colour = _STYLES[i % len(_STYLES)]
        across, up = zip(*sorted(line), strict=True)
        axes.plot(
            across, up, marker, color=colour, ls="-", linewidth=0.8, markersize=3.5, label=label
        )
    if any(value > 0 for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if _is_narrow(axes) else "")
    axes.set_xlabel("layer")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", linewidth=0.3)


def _is_narrow(axes: Any) -> bool:
    """Tell whether a logarithmic axis spans so little that powers of ten alone would not do."""
    low, high = axes.get_ylim()
    return bool(high < 10 * low)


def _scale_use(axes: Any, shares: Mapping[str, Sequence[float]]) -> None:
    """Draw for each kind a bar a scale, in shades from the smallest to the largest."""
    most = max(map(len, shares.values()))
    for row, found in enumerate(shares.values()):
        for i, share in enumerate(found):
            shade = 0.25 + 0.75 * (i + 1) / len(found)
            at = row + (i - (len(found) - 1) / 2) / (most + 1)
            axes.bar(at, share, 0.9 / (most + 1), color=_STYLES[0][1], alpha=shade)
    axes.set_xticks(range(len(shares)), map(_short, shares), rotation=35, ha="right", fontsize=8)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title("blocks that use each scale, smallest first", fontsize=10)
    axes.grid(True, axis="y", linewidth=0.3)


def _weights(part: Any, laws: Sequence[WeightLaw], rows: int) -> None:
    panels = part.subplots(rows, _ACROSS, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, law in zip(panels, laws, strict=False):
        _histogram(axes, law)
    for axes in panels[len(laws) :]:
        axes.axis("off")
    part.supxlabel("weight over the root mean square of its row", fontsize=10)
    part.supylabel("density", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="lower right", frameon=False, fontsize=9)


def _histogram(axes: Any, law: WeightLaw) -> None:
    import numpy as np
    from scipy.stats import norm

    edges = np.linspace(-WIDEST, WIDEST, BINS + 1)
    at = np.linspace(-WIDEST, WIDEST, 200)
    axes.stairs(law.density, edges, fill=True, color="#b8b8b8", label="as the model has them")
    axes.stairs(law.density_coded, edges, color=_STYLES[0][1], label="as they are coded: rotated")
    axes.plot(at, norm.pdf(at), color="black", linewidth=0.8, label="normal law")
    axes.set_yscale("log")
    axes.set_ylim(_LEAST, 1)
    axes.set_title(f"{_short(law.kind)}, {law.matrices} matrices", fontsize=9)
    axes.annotate(
        f"largest {law.largest:.1f}\nrotated {law.largest_coded:.1f}",
        (0.97, 0.95),
        xycoords="axes fraction",
        ha="right",
        va="top",
        fontsize=8,
    )


def _short(name: str) -> str:
    """Return a kind without what all kinds have in common."""
    return name.removeprefix("layers.*.")
