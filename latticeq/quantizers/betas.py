r"""The scales of a union of nested codes: published sets, tuned sets, and how to find new ones.

A scale is often written s = β q: a block of unit variance divided by β meets a cell whose size
grows with q, so s is about the same for every q.

Two ways to choose k scales for given blocks are here. `dynamic_program_betas` finds the best subset
of a grid of candidates for First-β. `fit_betas` starts there and goes on with a pattern search over
the error of Opt-β. The tuned sets, kept with their measured errors in ``betas.json``, come from

    python -m latticeq.quantizers.betas --out latticeq/quantizers/betas.json

Source: Savkin et al., *NestQuant*, arXiv 2502.09720, and its public simulation code.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.nested import CELLS, NestedCode
from latticeq.errors import InputError

__all__ = [
    "PUBLISHED",
    "dynamic_program_betas",
    "fit_betas",
    "mean_squared_error",
    "published_betas",
    "tunable_sets",
    "tuned_betas",
]

PUBLISHED = {
    "weights": (4.0, 5.5, 7.0, 18.0),
    "activations": (3.47, 4.74, 6.90, 18.11),
    "keys": (3.50, 4.58, 6.47, 17.06),
    "values": (3.53, 5.59, 9.62, 29.03),
}
"""s = β q for q = 14, k = 4, from the authors' code of Savkin et al., arXiv 2502.09720."""

SPREAD = {"voronoi": 1.0, "nestquantm": 1.05, "cubic": 1.15, "d8": 0.75}
"""About how large each cell's s is beside the Voronoi cell's."""

GRID = 40
"""Candidates that the dynamic program chooses from."""

SAMPLES = 1 << 16
FRESH = 1 << 18
"""Blocks to fit, and others to measure the error with."""


def published_betas(kind: str = "weights", q: int = 14) -> tuple[float, ...]:
    """Return the authors' four scales for a kind of tensor, as β = s / q.

    Raises
    ------
    InputError
        If `kind` is not one of `PUBLISHED`.
    """
    if kind not in PUBLISHED:
        raise InputError(f"there is no published set for {kind!r}; choose from {list(PUBLISHED)}")
    return tuple(s / q for s in PUBLISHED[kind])


@cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    text = files("latticeq.quantizers").joinpath("betas.json").read_text("utf-8")
    sets: dict[str, dict[str, dict[str, Any]]] = json.loads(text)["tuned"]
    return sets


def tuned_betas(q: int, k: int, cell: str = "voronoi") -> tuple[float, ...]:
    """Return the scales that this project tuned on N(0, 1) for a cell and Opt-β.

    Raises
    ------
    InputError
        If no set was tuned for these; the message says which were and how to fit one.

    Examples
    --------
    >>> len(tuned_betas(16, 4))
    4
    """
    sets = _table().get(cell, {})
    found = sets.get(_key(q, k))
    if found is None:
        sizes = [name.removeprefix("q=").split(",")[0] for name in sets if name.endswith(",k=4")]
        raise InputError(
            f"no scales were tuned for q = {q}, k = {k}, cell {cell!r}; tuned are q = "
            f"{', '.join(sizes)} with k = 1, 2, 4 or 8, and 16 for cell 'voronoi'. Give others as "
            "betas=…, such as those that latticeq.quantizers.betas.fit_betas(q, k, cell) finds"
        )
    return tuple(found["betas"])


def _key(q: int, k: int) -> str:
    return f"q={q},k={k}"


def mean_squared_error(code: NestedCode, blocks: NDArray[np.floating]) -> float:
    """Return the mean squared error of an entry of float32 blocks, shape (n, 8), under a code."""
    _, _, values = code.encode_decoded(blocks)
    return float(np.square(blocks - values, dtype=np.float64).mean())


def dynamic_program_betas(
    candidates: Any, blocks: NDArray[np.floating], q: int, k: int, cell: str = "voronoi"
) -> tuple[float, ...]:
    """Return the k candidates whose union has the least total error under First-β.

    Let e_j(x) be the error of block x with candidate j and m(x) the first candidate at which x is
    not overloaded: x then uses the first chosen candidate from m(x) on, or the last chosen one,
    drawn inside. With P[a, j] = Σ e_j(x) over blocks with m(x) <= a, the least total of t chosen
    candidates up to the last one, j, is

        D[1, j] = P[j, j],    D[t, j] = min over i < j of D[t−1, i] + P[j, j] − P[i, j].

    Parameters
    ----------
    candidates : array_like of m increasing numbers, m <= 255
    blocks : ndarray, shape (n, 8)
    q, k : int
    cell : str

    Raises
    ------
    InputError
        If there are fewer candidates than k, or they are no scales of a code.

    Notes
    -----
    O(k m²) steps after O(n m) encodings. That a block which fits one scale fits every larger one is
    nearly always so.

    References
    ----------
    Savkin et al., *NestQuant*, arXiv 2502.09720: that a dynamic program chooses the scales.
    """
    scales = np.asarray(candidates, np.float32).astype(np.float64)
    m = len(scales)
    if not 1 <= k <= m:
        raise InputError(f"{m} candidates for k = {k} scales; there must be at least k of them")
    # A last candidate far beyond the others tells apart the blocks that overload all of them.
    wider = NestedCode(q, (*scales, scales[-1] * 2), cell, selection="first")
    first = wider.encode(blocks)[1]
    sums = np.zeros((m + 1, m))  # row a: P[a, j]; row m: all blocks
    for j, scale in enumerate(scales):
        sums[:, j] = np.bincount(first, _errors(blocks, NestedCode(q, (scale,), cell)), m + 1)
    sums = np.cumsum(sums, axis=0)
    own = np.diag(sums)
    best, steps = own.copy(), []
    for _ in range(1, k):
        gaps = best[:, None] + own - sums[:m]
        gaps[np.arange(m)[:, None] >= np.arange(m)] = np.inf
        steps.append(np.argmin(gaps, axis=0))
        best = gaps.min(axis=0)
    chosen = [int(np.argmin(best + sums[m] - own))]
    for step in reversed(steps):
        chosen.append(int(step[chosen[-1]]))
    return tuple(float(scales[j]) for j in reversed(chosen))


def fit_betas(
    q: int,
    k: int,
    cell: str = "voronoi",
    samples: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> tuple[float, ...]:
    """Return k scales with a low mean squared error under Opt-β.

    From the dynamic program's choice, one scale at a time is moved by a ratio, up and down; a move
    that lowers the error is kept, and when none does the ratio shrinks. An eighth of the blocks
    serve while the ratio is coarse, all of them at the end. The result is a local optimum, the same
    for the same samples.

    Parameters
    ----------
    q, k : int
    cell : str
    samples : ndarray, shape (n, 8), optional
        Blocks to fit; 2**16 blocks of N(0, 1) by default.
    seed : int
        Of the default samples.
    """
    if samples is None:
        samples = np.random.default_rng(seed).normal(size=(SAMPLES, 8))
    blocks = np.asarray(samples, np.float32)
    few = blocks[: max(len(blocks) // 8, min(len(blocks), 512))]
    spread = float(np.sqrt(np.mean(np.square(few, dtype=np.float64)))) * SPREAD[cell] / q
    candidates = np.geomspace(2.0, 10.0, max(GRID, k)) * spread
    betas = np.array(dynamic_program_betas(candidates, few, q, k, cell))
    _search(few, q, cell, betas, 1.1, 1.03)
    _search(blocks, q, cell, betas, 1.03, 1.002)
    return tuple(sorted(round(float(beta), 6) for beta in betas))


def _errors(blocks: NDArray[np.floating], code: NestedCode) -> NDArray[np.float64]:
    """Return the squared error of each block."""
    _, _, values = code.encode_decoded(blocks)
    difference = blocks - values
    squared: NDArray[np.float64] = np.einsum("ni,ni->n", difference, difference)
    return squared


def _search(
    blocks: NDArray[np.float32],
    q: int,
    cell: str,
    betas: NDArray[np.float64],
    coarse: float,
    fine: float,
) -> None:
    """Improve scales in place by a pattern search whose ratio shrinks from `coarse` to `fine`."""
    errors = np.stack([_errors(blocks, NestedCode(q, (beta,), cell)) for beta in betas])
    ratio = coarse
    while ratio > fine:
        if not _improve(blocks, q, cell, betas, errors, ratio):
            ratio **= 0.5


def _improve(
    blocks: NDArray[np.float32], q: int, cell: str, betas: Any, errors: Any, ratio: float
) -> bool:
    """Try to move each scale by the ratio, in place; tell whether any move was kept."""
    improved = False
    for p in range(len(betas)):
        others = np.delete(errors, p, axis=0).min(axis=0, initial=np.inf)
        best = np.minimum(errors[p], others).sum(dtype=np.float64)
        for factor in (ratio, 1 / ratio):
            trial = _errors(blocks, NestedCode(q, (betas[p] * factor,), cell))
            if np.minimum(trial, others).sum(dtype=np.float64) < best:
                betas[p] *= factor
                errors[p] = trial
                improved = True
                break
    return improved


def tunable_sets() -> list[tuple[str, int, int]]:
    """Return cell, q and k of every set that ``betas.json`` holds."""
    sizes: dict[str, tuple[int, ...]] = dict.fromkeys(CELLS, (8, 10, 12, 14, 16))
    sizes["voronoi"] = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 63)
    return [
        (cell, q, k)
        for cell in CELLS
        for q in sizes[cell]
        for k in ((1, 2, 4, 8, 16) if cell == "voronoi" else (1, 2, 4, 8))
    ]


def _tune(cell: str, q: int, k: int, seed: int = 0) -> dict[str, Any]:
    betas = fit_betas(q, k, cell, seed=seed)
    fresh = np.random.default_rng(seed + 1).normal(size=(FRESH, 8)).astype(np.float32)
    return {
        "betas": betas,
        "mse": float(f"{mean_squared_error(NestedCode(q, betas, cell), fresh):.5g}"),
    }


def _write(path: Path, tuned: dict[str, dict[str, Any]]) -> None:
    about = (
        "Scales of unions of nested codes for N(0, 1) and Opt-beta, and the mean squared error of "
        f"an entry on {FRESH} fresh blocks; made by python -m latticeq.quantizers.betas"
    )
    cells = []
    for cell, sets in tuned.items():
        rows = ",\n".join(f'   "{name}": {json.dumps(one)}' for name, one in sets.items())
        cells.append(f'  "{cell}": {{\n{rows}\n  }}')
    text = ",\n".join(cells)
    path.write_text(f'{{\n "about": "{about}",\n "tuned": {{\n{text}\n }}\n}}\n', "utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Tune sets and write them to a file, which is kept but for these sets."""
    parser = argparse.ArgumentParser(
        prog="python -m latticeq.quantizers.betas", description=main.__doc__
    )
    parser.add_argument("--cell", choices=CELLS, help="only this cell")
    parser.add_argument("--q", type=int, help="only this nesting ratio")
    parser.add_argument("--k", type=int, help="only this number of scales")
    parser.add_argument("--seed", type=int, default=0, help="of the blocks; 0 by default")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    given = parser.parse_args(arguments)
    wanted = [
        (cell, q, k)
        for cell, q, k in tunable_sets()
        if given.cell in {None, cell} and given.q in {None, q} and given.k in {None, k}
    ]
    tuned: dict[str, dict[str, Any]] = {cell: {} for cell in CELLS}
    if given.out.exists():
        tuned |= json.loads(given.out.read_text("utf-8"))["tuned"]
    for cell, q, k in wanted:
        found = _tune(cell, q, k, given.seed)
        tuned[cell][_key(q, k)] = found
        sys.stderr.write(f"{cell} q={q} k={k}: mean squared error {found['mse']}\n")
        _write(given.out, tuned)


if __name__ == "__main__":
    main()
