"""The picture of ``latticeq bench lengths``: histograms, and the law that they should have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.cli.bench_plot import MARKS, check_plot, figure_class

__all__ = ["draw_lengths"]


def draw_lengths(rows: Sequence[Mapping[str, Any]], group: int, widest: float, path: Path) -> None:
    """Draw the rows of ``latticeq bench lengths --json``, a panel a kind of matrix.

    Parameters
    ----------
    rows : sequence of mappings
        With the fields of `latticeq.cli.bench_lengths.Lengths`.
    group : int
    widest : float
        Where the histograms end, in mean shares.
    path : Path
        A .png or .svg file; replaced if it is there.

    Raises
    ------
    InputError, MissingDependencyError
        As `check_plot`.
    """
    check_plot(path)
    across = (len(rows) + 1) // 2
    figure = figure_class()(figsize=(3.1 * across, 5.2), layout="constrained")
    panels = figure.subplots(2, across, sharex=True, sharey=True).ravel()
    for axes, row in zip(panels, rows, strict=False):
        _panel(axes, row, group, widest)
    for axes in panels[len(rows) :]:
        axes.axis("off")
    figure.supxlabel(f"energy of a group of {group} weights over the mean")
    figure.supylabel("density")
    figure.savefig(path)


def _panel(axes: Any, row: Mapping[str, Any], group: int, widest: float) -> None:
    import numpy as np
    from scipy.stats import beta

    n, density = row["columns"], row["density"]
    edges = np.linspace(0, widest, len(density) + 1)
    axes.stairs(density, edges, fill=True, color=MARKS["PVQ"][1], alpha=0.35)
    at = np.linspace(0, widest, 300)
    law = beta(group / 2, (n - group) / 2).pdf(at * group / n) * (group / n)
    axes.plot(at, law, color="black", linewidth=1)
    axes.set_title(f"{row['kind']}, rows of {n}", fontsize=9)
    axes.annotate(
        f"distance {row['distance']:.4f}",
        (0.97, 0.92),
        xycoords="axes fraction",
        horizontalalignment="right",
        fontsize=8,
    )
