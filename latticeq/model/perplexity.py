"""Perplexity by one fixed protocol, with its standard error.

The text's tokens, without a beginning-of-text token, are cut into windows of `context` that do not
overlap; the rest is dropped. Each window starts from an empty cache and scores the ``context - 1``
tokens after its first. With l_w the mean negative log-likelihood of window w of n,

    perplexity = exp(mean_w l_w),     stderr = perplexity * std(l_w) / sqrt(n)

where std has n - 1 in its denominator and the second formula is the first one's delta method; it
says how much the number would vary over texts, not over models: two models on the same windows
differ by much less than their standard errors.

``perplexity_second_half`` scores only tokens that have at least half a window before them, which is
llama.cpp's convention; numbers of the two conventions must not be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.errors import InputError, LatticeqError

__all__ = ["Perplexity", "Scorer", "perplexity"]


class Scorer(Protocol):
    """What perplexity needs of a model. `Llama` is one; tests use smaller ones."""

    @property
    def bits_per_weight(self) -> float:
        """Effective bits per weight of the linears."""
        ...

    def new_cache(self, context: int | None = None) -> Any:
        """Return the memory of one sequence, with a ``clear`` method."""
        ...

    def hidden(self, ids: ArrayLike, cache: Any) -> NDArray[np.float32]:
        """Return hidden states: (T,) int -> (T, D) float32."""
        ...

    def nll(self, hidden: NDArray[np.float32], targets: ArrayLike) -> NDArray[np.float64]:
        """Return the negative log-likelihood of what followed each state: (T,) float64."""
        ...


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    Attributes
    ----------
    perplexity : float
    stderr : float
        Its standard error over windows; NaN for a single window.
    perplexity_second_half : float
    tokens : int
        Targets scored.
    windows : int
    bits_per_weight : float
        Of the model.
    window_losses : tuple of float
        The mean negative log-likelihood of each window, in nats: what two models on the same text
        are compared by, window for window.
    """

    perplexity: float
    stderr: float
    perplexity_second_half: float
    tokens: int
    windows: int
    bits_per_weight: float
    window_losses: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON object; JSON has no NaN, so an unknown standard error is null."""
        return asdict(self) | {"stderr": None if math.isnan(self.stderr) else self.stderr}


def perplexity(
    model: Scorer,
    text: str | Sequence[int] | NDArray[np.integer[Any]],
    *,
    context: int = 2048,
    windows: int | None = None,
    progress: bool = False,
    measured: Sequence[tuple[float, float]] = (),
    report: Callable[[tuple[float, float]], object] | None = None,
) -> Perplexity:
    """Measure the perplexity of a text.

    Parameters
    ----------
    model : Scorer
    text : str or sequence of int
        The whole text, or its token ids, tokenized once.
    context : int
        Tokens in a window, at least 2.
    windows : int, optional
        Use only the first so many; all by default.
    progress : bool
        Show a bar with the running value on stderr.
    measured : sequence of (float, float)
        What `report` was told of the first windows of the same text by the same model: these are
        not measured again.
    report : callable, optional
        Called after every window with the mean negative log-likelihood of its targets, and of those
        in its second half.

    Raises
    ------
    InputError
        If the text is shorter than one window or an argument is out of range.
    LatticeqError
        If a likelihood is not a number.

    Notes
    -----
    Logits are never all in memory: the model's ``nll`` makes a few rows at a time.
    """
    from tqdm import tqdm

    if context < 2:
        raise InputError(
            f"context is {context}; it must be at least 2, one token and its successor"
        )
    if windows is not None and windows < 1:
        raise InputError(f"windows is {windows}; it must be at least 1")
    tokens = np.asarray(_tokenized(model, text) if isinstance(text, str) else text)
    n_windows = len(tokens) // context
    if n_windows == 0:
        raise InputError(
            f"the text has {len(tokens)} tokens, less than one window of {context}; give a longer "
            "text or a smaller context"
        )
    n_windows = min(n_windows, windows or n_windows)
    half = min(context // 2, context - 2)  # the first target that has half a window before it
    cache = model.new_cache(context)
    all_means, half_means = np.empty(n_windows), np.empty(n_windows)
    done = min(len(measured), n_windows)
    for w, (whole, later) in enumerate(measured[:done]):
        all_means[w], half_means[w] = whole, later
    left = range(done, n_windows)
    bar = tqdm(left, "perplexity", n_windows, initial=done, unit="window", disable=not progress)
    for w in bar:
        window = tokens[w * context : (w + 1) * context]  # (T,)
        cache.clear()
        hidden = model.hidden(window, cache)  # (T, D)
        nll = model.nll(hidden[:-1], window[1:])  # (T - 1,)
        if not np.isfinite(nll).all():
            raise LatticeqError(
                f"window {w} has likelihoods that are not finite; the model's weights are damaged, "
                "or out of the range of float32: run `latticeq verify` on the folder"
            )
        all_means[w] = nll.mean()
        half_means[w] = nll[half:].mean()
        if report is not None:
            report((float(all_means[w]), float(half_means[w])))
        bar.set_postfix_str(f"{np.exp(all_means[: w + 1].mean()):.3f}", refresh=False)
    value = float(np.exp(all_means.mean()))
    deviation = float(all_means.std(ddof=1)) if n_windows > 1 else math.nan
    return Perplexity(
        perplexity=value,
        stderr=value * deviation / math.sqrt(n_windows),
        perplexity_second_half=float(np.exp(half_means.mean())),
        tokens=n_windows * (context - 1),
        windows=n_windows,
        bits_per_weight=model.bits_per_weight,
        window_losses=tuple(map(float, all_means)),
    )


def _tokenized(model: Scorer, text: str) -> list[int]:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise InputError("this model has no tokenizer; give token ids instead of text")
    ids: list[int] = tokenizer.tokenize(text)
    return ids
