"""Generation: token ids in, token ids out. Knows no text.

Tokens are chosen as `latticeq.model.sampling` says, by the host or where the model runs. A seed
makes a run repeatable on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Literal

import numpy as np

from latticeq.errors import InputError
from latticeq.model.sampling import Sampling
from latticeq.model.token_cache import Decoder, TokenCache

__all__ = ["StopReason", "check_sampling", "generate"]

StopReason = Literal["stop", "length", "context", "interrupted"]
"""Why a generation ended: a stop id, ``max_tokens``, a full context, or its caller's wish."""

_PREFILL_TOKENS = 512  # at a time: bounds the memory of activations, and shows progress


def generate(
    model: Decoder,
    prompt: Sequence[int],
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | np.random.Generator | None = None,
    stop_ids: Collection[int] = (),
    progress: bool = False,
    cache: TokenCache | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Generator[int, None, StopReason]:
    """Yield the tokens that follow a prompt.

    Parameters
    ----------
    model : Decoder
    prompt : sequence of int
        At least one token.
    max_tokens : int
        The most tokens to yield.
    temperature : float
        0 always takes the most likely token; 1 samples from the model's own distribution.
    top_p : float
        Sample only from the nucleus of this probability, in (0, 1]; 1 is everything.
    seed : int or numpy.random.Generator, optional
        For repeatable samples; without it each run differs. A generator goes on drawing.
    stop_ids : collection of int
        Tokens that end the text; they are not yielded.
    progress : bool
        Show a bar on stderr while a long prompt is taken in.
    cache : TokenCache, optional
        Of this model and its context, from an earlier call: what it has in common with the prompt
        is not taken in again. It then holds the prompt and what was yielded, perhaps but the last.
    interrupted : callable
        Asked between tokens, and between parts of a long prompt; True ends the generation.

    Returns
    -------
    StopReason
        As the generator's return value.

    Raises
    ------
    InputError
        At the call, before any work: if an argument is out of range or the prompt leaves no room
        in the model's context.
    LatticeqError
        While running: if the model's logits are not numbers.
    """
    check_sampling(max_tokens, temperature, top_p)
    if not 1 <= len(prompt) < model.context:
        limit = getattr(model, "context_limit", "what the model takes")
        raise InputError(
            f"the prompt has {len(prompt)} tokens; it must have from 1 to {model.context - 1}, one "
            f"less than the context: {limit}"
        )
    sampling = Sampling(temperature, top_p, np.random.default_rng(seed))
    if cache is None:
        cache = TokenCache(model, min(model.context, len(prompt) + max_tokens - 1))
    # The last token yielded is never fed back, hence the 1.
    room = model.context - len(prompt) + 1
    return _generate(
        cache,
        list(prompt),
        max_tokens=max_tokens,
        room=room,
        sampling=sampling,
        stop_ids=stop_ids,
        progress=progress,
        interrupted=interrupted,
    )


def check_sampling(max_tokens: int, temperature: float, top_p: float) -> None:
    """Make sure that the arguments of `generate` that are no prompt are in range.

    Raises
    ------
    InputError
        If they are not.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
    if not (np.isfinite(temperature) and temperature >= 0):
        raise InputError(f"temperature is {temperature}; it must be 0 (greedy) or above")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; it must be above 0 and at most 1")


def _generate(
    cache: TokenCache,
    prompt: list[int],
    *,
    max_tokens: int,
    room: int,
    sampling: Sampling,
    stop_ids: Collection[int],
    progress: bool,
    interrupted: Callable[[], bool],
) -> Generator[int, None, StopReason]:
    from tqdm import tqdm

    starts = range(cache.keep(prompt), len(prompt), _PREFILL_TOKENS)
    for first in tqdm(starts, "prompt", disable=not progress or len(starts) == 1, leave=False):
        part = prompt[first : first + _PREFILL_TOKENS]
        if first == starts[-1]:
            token = cache.next_token(part, sampling)
        else:
            cache.prefill(part)
        if interrupted():
            return "interrupted"
    for n_yielded in range(1, max_tokens + 1):
        if token in stop_ids:
            return "stop"
        yield token
        if n_yielded == max_tokens:
            break
        if interrupted():
            return "interrupted"
        if n_yielded == room:
            return "context"
        token = cache.next_token([token], sampling)
    return "length"
