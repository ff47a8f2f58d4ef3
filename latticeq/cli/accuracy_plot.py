"""The picture of ``latticeq bench accuracy``: perplexity lost against bits, a panel a regime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latticeq.cli.accuracy_grid import GRID
from latticeq.cli.bench_plot import MARKS, figure_class

__all__ = ["draw_perplexity"]

_PANELS = {"w": "weights", "w+kv": "weights and cache", "w+kv+a": "and activations"}
_FILLED = {"none": "none", "ldlq": "left", "qa-ldlq": "full"}
"""How a marker is filled: empty without feedback, half for LDLQ, whole for QA-LDLQ."""

_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def draw_perplexity(results: Mapping[str, Mapping[str, Any]], windows: int, path: Path) -> None:
    """Draw the gap of every row against its bits a weight.

    Parameters
    ----------
    results : mapping
        Figures by the names of rows.
    windows : int
        How many windows are compared.
    path : Path
        An .svg or .png file; replaced if it is there.

    Raises
    ------
    MissingDependencyError
        If matplotlib is not installed.
    """
    figure = figure_class()(figsize=(13, 5.5), layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharex=True, sharey=True)
    for axes, (regime, title) in zip(panels, _PANELS.items(), strict=True):
        _panel(axes, results, windows, regime)
        axes.set_title(title)
        axes.set_xlabel("bits a weight, all bytes counted")
    panels[0].set_ylabel("perplexity lost against float32")
    for label, fill in (("no feedback", "none"), ("LDLQ", "left"), ("QA-LDLQ", "full")):
        panels[0].plot([], [], "o", color="black", fillstyle=fill, label=label)
    panels[0].legend(frameon=False)
    figure.savefig(path)


def _family(name: str) -> str:
    for family in ("pvq", "int4", "nf4", "mxfp4", "nvfp4"):
        if f"-{family}" in name:
            return family if family == "int4" else family.upper()
    return "NestQuant"


def _panel(axes: Any, results: Mapping[str, Mapping[str, Any]], windows: int, regime: str) -> None:
    from latticeq.cli.comparison import compare

    best: dict[str, tuple[float, float]] = {}
    for row in GRID:
        if row.regime != regime or row.name not in results:
            continue
        found, family = compare(results, row.name, windows), _family(row.name)
        bits = float(results[row.name]["bits_per_weight"])
        marker, colour = MARKS[family]
        fill = _FILLED[str(row.options.get("feedback", "qa-ldlq"))]
        axes.errorbar(
            bits, found.gap, found.stderr, fmt=marker, color=colour, fillstyle=fill, linewidth=0.8
        )
        if family not in best or found.gap < best[family][1]:
            best[family] = (bits, found.gap)
    for family, place in best.items():
        colour = MARKS[family][1]
        axes.annotate(family, place, xytext=(6, -10), textcoords="offset points", color=colour)
    axes.set_yscale("log")
    axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_yticks([], minor=True)
    axes.margins(x=0.3)  # room for names
    axes.grid(True, linewidth=0.3)
