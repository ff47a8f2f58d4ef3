"""The scales of a union of Voronoi codes: published sets, tuned sets, and how to fit a new one.

A scale is often written s = β q: a block of unit variance divided by β meets the cell of qE8, whose
size grows with q, so s is about the same for every q.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.voronoi import VoronoiCode
from latticeq.errors import InputError

__all__ = ["PUBLISHED", "fit_betas", "published_betas", "tuned_betas"]

PUBLISHED = {
    "weights": (4.0, 5.5, 7.0, 18.0),
    "activations": (3.47, 4.74, 6.90, 18.11),
    "keys": (3.50, 4.58, 6.47, 17.06),
    "values": (3.53, 5.59, 9.62, 29.03),
}
"""s = β q for q = 14, k = 4, from the authors' code of Savkin et al., arXiv 2502.09720."""


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
def _table() -> dict[str, list[float]]:
    text = files("latticeq.quantizers").joinpath("betas.json").read_text("utf-8")
    sets: dict[str, list[float]] = json.loads(text)["tuned"]
    return sets


def tuned_betas(q: int, k: int) -> tuple[float, ...]:
    """Return the scales that this project tuned on N(0, 1) for overload-aware Opt-β encoding.

    Raises
    ------
    InputError
        If no set was tuned for q and k; the message says which were and how to fit one.

    Examples
    --------
    >>> len(tuned_betas(16, 4))
    4
    """
    found = _table().get(f"q={q},k={k}")
    if found is None:
        sizes = [name.removeprefix("q=").split(",")[0] for name in _table() if ",k=4" in name]
        raise InputError(
            f"no scales were tuned for q = {q}, k = {k}; tuned are q = {', '.join(sizes)} with k = "
            "1, 2, 4, 8 or 16. Give others as betas=…, such as those that "
            "latticeq.quantizers.betas.fit_betas(q, k) finds"
        )
    return tuple(found)


def fit_betas(
    q: int, k: int, samples: NDArray[np.floating] | None = None, seed: int = 0
) -> tuple[float, ...]:
    """Return k scales with a low mean squared error: a pattern search from a spread-out start.

    One scale at a time is moved by a ratio, up and down; a move that lowers the error is kept, and
    when none does the ratio shrinks. The result is a local optimum, the same for the same samples.

    Parameters
    ----------
    q, k : int
    samples : ndarray, shape (n, 8), optional
        Blocks to fit; 2**14 blocks of N(0, 1) by default.
    seed : int
        Of the default samples.
    """
    if samples is None:
        samples = np.random.default_rng(seed).normal(size=(2**14, 8))
    blocks = np.asarray(samples, np.float32)
    betas = np.geomspace(3.1, 6.0, k) / q if k > 1 else np.array([4.3 / q])
    errors = np.stack([_errors(blocks, q, beta) for beta in betas])
    ratio = 1.15
    while ratio > 1.004:
        if not _improve(blocks, q, betas, errors, ratio):
            ratio **= 0.5
    return tuple(sorted(round(float(beta), 6) for beta in betas))


def _errors(blocks: NDArray[np.float32], q: int, beta: float) -> NDArray[np.float32]:
    """Return the squared error of each block under one scale."""
    _, _, values = VoronoiCode(q, (float(beta),)).encode_decoded(blocks)
    squared: NDArray[np.float32] = np.square(blocks - values).sum(axis=1)
    return squared


def _improve(blocks: NDArray[np.float32], q: int, betas: Any, errors: Any, ratio: float) -> bool:
    """Try to move each scale by the ratio, in place; tell whether any move was kept."""
    improved = False
    for p in range(len(betas)):
        others = np.delete(errors, p, axis=0).min(axis=0, initial=np.inf)
        best = np.minimum(errors[p], others).mean()
        for factor in (ratio, 1 / ratio):
            trial = _errors(blocks, q, betas[p] * factor)
            if np.minimum(trial, others).mean() < best:
                betas[p] *= factor
                errors[p] = trial
                improved = True
                break
    return improved
