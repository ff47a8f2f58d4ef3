"""How the next token is chosen from logits: greedily, or at random from the likely ones.

Sampled is from softmax(logits / temperature) cut to its nucleus: the smallest set of most likely
tokens whose probabilities reach `top_p` (Holtzman et al. 2020, section 3.1). Tokens are in order of
their logits, the largest first, and equal ones by id, so that greedy never depends on luck.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import LatticeqError

__all__ = ["Sampling", "choose", "not_numbers"]


@dataclass(frozen=True)
class Sampling:
    """The law by which tokens are chosen, and where its chance comes from.

    Attributes
    ----------
    temperature : float
        0 always takes the most likely token; 1 samples from the model's own distribution.
    top_p : float
        Sample only from the nucleus of this probability, in (0, 1]; 1 is everything.
    rng : numpy.random.Generator
        Goes on from token to token.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    rng: np.random.Generator = field(default_factory=np.random.default_rng)

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def number(self) -> float:
        """Return the next random number, in [0, 1): one for each token that is sampled."""
        return float(self.rng.random())


def choose(logits: NDArray[np.float32], sampling: Sampling) -> int:
    """Choose the next token.

    Parameters
    ----------
    logits : (V,) float32
    sampling : Sampling
        One number is drawn, unless it is greedy.

    Raises
    ------
    LatticeqError
        If the logits hold NaN or infinities.

    Notes
    -----
    With c(i) the sum of the probabilities of the first i tokens in order, the nucleus is of the
    least n tokens with c(n) >= top_p; the number u gives the first token i with c(i) > u c(n).

    Examples
    --------
    >>> choose(np.float32([0, 2, 2, 1]), Sampling())
    1
    """
    if not np.isfinite(logits).all():
        raise not_numbers()
    if sampling.is_greedy:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64)
    scaled -= scaled.max()
    with np.errstate(under="ignore", over="ignore"):  # a tiny temperature makes exp(-inf) = 0
        probabilities = np.exp(scaled / sampling.temperature)  # (V,)
    probabilities /= probabilities.sum()
    order = np.argsort(-logits, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    # Everything before the token that reaches top_p, and that token.
    size = min(int(np.searchsorted(cumulative, sampling.top_p, side="left")) + 1, len(order))
    drawn = sampling.number() * cumulative[size - 1]
    return int(order[min(int(np.searchsorted(cumulative, drawn, side="right")), size - 1)])


def not_numbers() -> LatticeqError:
    """Return the error that logits which are not finite are."""
    return LatticeqError(
        "the model's logits hold NaN or infinite numbers; its weights are damaged, or out of "
        "the range of float32: run `latticeq verify` on the folder"
    )
