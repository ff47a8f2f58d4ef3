"""What ``latticeq bench lengths`` measures: whether groups of a model's weights keep the Beta law.

PVQ codes the length of a group by levels that are best if a rotated row of D weights points in a
uniform direction: then the share of its energy in a group of g follows Beta(g/2, (D−g)/2)
(`latticeq.quantizers.gains`). Here the shares of all groups of a model are put beside that law, a
kind of matrix at a time, rotated and not: by their histogram, and by the Kolmogorov-Smirnov
distance, the largest difference between the distribution functions.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.console import say
from latticeq.cli.tables import table
from latticeq.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BINS", "HELP", "Lengths", "add_arguments", "run"]

HELP = "compare the lengths of weight groups with the law that PVQ's levels are made for"

BINS = 60
"""Of the histograms, from nothing to `WIDEST` times the mean share."""

WIDEST = 3.0


@dataclass(frozen=True)
class Lengths:
    """How the groups of all matrices of one kind share the energy of their rows.

    Parameters
    ----------
    kind : str
        Such as ``mlp.down_proj``.
    columns, groups : int
        Of a row, and of all matrices together.
    distance, distance_unrotated : float
        Of Kolmogorov and Smirnov, from the Beta law; without the rotation.
    density : list of float
        How many groups fall into each of `BINS` equal parts of the shares from 0 to `WIDEST` times
        their mean, over what makes the histogram's area one.
    """

    kind: str
    columns: int
    groups: int
    distance: float
    distance_unrotated: float
    density: list[float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", type=Path, help="a float model folder")
    parser.add_argument(
        "--group",
        metavar="N",
        type=int,
        default=16,
        help="weights in a group (default %(default)s)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw the histograms and the law into a .png or .svg file (needs the extra "
        "latticeq[plot]; a file of that name is replaced)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every kind of matrix, show the table, and draw it if asked to."""
    from latticeq.cli.bench_plot import check_plot
    from latticeq.cli.lengths_plot import draw_lengths

    if args.plot is not None:
        check_plot(args.plot)
    found = [asdict(row) for row in _measure(args.source, args.group)]
    lines: list[tuple[object, ...]] = [("matrices", "columns", "groups", "distance", "unrotated")]
    for row in found:
        distances = f"{row['distance']:.4f}", f"{row['distance_unrotated']:.4f}"
        lines.append((row["kind"], row["columns"], row["groups"], *distances))
    say(table(lines))
    if args.plot is not None:
        draw_lengths(found, args.group, WIDEST, args.plot)
        say(f"\ndrawn in {args.plot}")
    return {"group": args.group, "rows": found, "plot": args.plot}


def _measure(source: Path, group: int) -> list[Lengths]:
    from tqdm import tqdm

    from latticeq.model.llama import BLOCK_LINEARS
    from latticeq.model.loader import Weights
    from latticeq.model.source import model_config

    config = model_config(source)
    weights = Weights(source, config)
    if weights.entries:
        raise InputError(f"{source} is quantized; give the folder of the float model")
    rows = []
    for kind in tqdm(BLOCK_LINEARS, "lengths", unit="kind", leave=False):
        names = [f"model.layers.{layer}.{kind}.weight" for layer in range(config.num_hidden_layers)]
        rows.append(_lengths(kind, (weights.matrix_float32(name) for name in names), group))
    return rows


def _lengths(kind: str, matrices: Any, group: int) -> Lengths:
    """Return what is known of the matrices of one kind."""
    import numpy as np

    from latticeq.transforms.rotation import Rotation

    plain, rotated = [], []
    for matrix in matrices:
        n = matrix.shape[1]
        if not 2 <= group < n or n % group:
            raise InputError(
                f"--group is {group}; rows of {kind} have {n} weights, so it must divide that"
            )
        plain.append(shares(matrix, group))
        rotated.append(shares(Rotation(n).apply(matrix), group))
    values = np.concatenate(rotated)
    counts, _ = np.histogram(values * (n / group), BINS, (0, WIDEST))
    density = counts / len(values) * (BINS / WIDEST)
    turned, unturned = (distance(part, group, n) for part in (values, np.concatenate(plain)))
    return Lengths(kind, n, len(values), turned, unturned, density.tolist())


def shares(matrix: NDArray[np.float32], group: int) -> NDArray[np.float64]:
    """Return the share of its row's energy that each group has; rows of zeros have none."""
    import numpy as np

    energy = np.square(matrix.astype(np.float64)).reshape(len(matrix), -1, group).sum(axis=2)
    whole = energy.sum(axis=1, keepdims=True)
    found: NDArray[np.float64] = (energy / np.where(whole > 0, whole, 1))[whole[:, 0] > 0]
    return found.ravel()


def distance(values: NDArray[np.float64], group: int, n: int) -> float:
    """Return the Kolmogorov-Smirnov distance of shares from Beta(group / 2, (n − group) / 2)."""
    import numpy as np
    from scipy.special import betainc

    law = betainc(group / 2, (n - group) / 2, np.sort(values))
    steps = np.arange(len(values) + 1) / len(values)
    return float(max(np.max(steps[1:] - law), np.max(law - steps[:-1])))
