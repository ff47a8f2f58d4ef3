"""Perplexities of two rows of ``latticeq bench accuracy``, compared window for window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from latticeq.cli.accuracy_grid import FLOAT

__all__ = ["Comparison", "Results", "compare"]

Results = Mapping[str, Mapping[str, Any]]
"""Figures by the names of rows."""


class Comparison:
    """A row beside the float model, on the windows that both were measured on.

    Attributes
    ----------
    windows : int
    perplexity, gap : float
        The gap is the difference of the two perplexities.
    stderr : float
        The paired standard error of the gap over windows: what the windows have in common cancels.
    """

    def __init__(self, losses: Sequence[float], wanted: Sequence[float]) -> None:
        self.windows = min(len(losses), len(wanted))
        pairs = list(zip(losses, wanted, strict=False))
        mean, base = (sum(column) / self.windows for column in zip(*pairs, strict=True))
        self.perplexity = math.exp(mean)
        self.gap = self.perplexity - math.exp(base)
        differences = [one - other for one, other in pairs]
        shift = mean - base
        variance = sum((d - shift) ** 2 for d in differences) / max(1, self.windows - 1)
        self.stderr = self.perplexity * math.sqrt(variance / self.windows)


def compare(
    results: Results, name: str, windows: int | None = None, beside: str = FLOAT
) -> Comparison:
    """Return a row's perplexity beside another's, on the first windows or on all both have."""
    own, wanted = (results[one]["perplexity"]["window_losses"][:windows] for one in (name, beside))
    return Comparison(own, wanted)
