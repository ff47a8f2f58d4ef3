"""How fast a model runs: prompts, decoding after them, and decoding with a long past."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from latticeq.cli.console import say
from latticeq.cli.tables import duration
from latticeq.errors import InputError

if TYPE_CHECKING:
    from latticeq.model.llama import Llama

__all__ = [
    "DecodeSpeed",
    "Speed",
    "block_weights",
    "bytes_per_token",
    "measure",
    "measure_contexts",
]

_GROUP = 8
"""Tokens that are timed together where the cache is long: few, so that it stays about that long."""

_CHUNK = 512
"""Tokens of a prompt taken in at a time, as in `latticeq.model.generate`."""


@dataclass(frozen=True)
class Speed:
    """Measured speeds, one number a repeat.

    Parameters
    ----------
    prefill, decode : list of float
        Tokens a second.
    first : list of float
        Seconds until the first token.
    warmup_s : float
        What the first, uncounted run took.
    """

    prefill: list[float]
    decode: list[float]
    first: list[float]
    warmup_s: float


@dataclass(frozen=True)
class DecodeSpeed:
    """Speeds of decoding after a long past, one number a group of tokens.

    Parameters
    ----------
    context : int
        Tokens in the cache before the first group.
    decode : list of float
        Tokens a second.
    """

    context: int
    decode: list[float]

    def of(self, other: DecodeSpeed) -> list[float]:
        """Return these speeds over those of another context that were measured in turn."""
        return [mine / its for mine, its in zip(self.decode, other.decode, strict=True)]


def measure(
    model: Llama,
    prompt_tokens: int,
    decode_tokens: int,
    repeats: int,
    seed: int,
    *,
    progress: bool = False,
) -> Speed:
    """Run a random prompt and greedy decoding some times, after one run that is not counted.

    Parameters
    ----------
    model : Llama
    prompt_tokens, decode_tokens, repeats : int
        All at least 1.
    seed : int
        Of the prompt.
    progress : bool
        Show a bar on stderr.

    Raises
    ------
    InputError
        If a number is below 1, or the tokens do not fit the model's context.
    """
    import numpy as np
    from tqdm import tqdm

    for name, value in (
        ("prompt-tokens", prompt_tokens),
        ("decode-tokens", decode_tokens),
        ("repeats", repeats),
    ):
        if value < 1:
            raise InputError(f"--{name} is {value}; it must be at least 1")
    if prompt_tokens + decode_tokens > model.context:
        raise InputError(
            f"{prompt_tokens} prompt tokens and {decode_tokens} to decode are more than the "
            f"model's context of {model.context}; give fewer"
        )
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, model.config.vocab_size, prompt_tokens).tolist()
    prefill, decode, first, warmup_s = [], [], [], 0.0
    for number in tqdm(range(repeats + 1), "measure", disable=not progress, leave=False):
        to_first, after = _times(model, prompt, decode_tokens)
        if number == 0:
            warmup_s = to_first + after
            continue
        first.append(to_first)
        prefill.append(prompt_tokens / to_first)
        decode.append(decode_tokens / after)
    return Speed(prefill, decode, first, warmup_s)


def _times(model: Llama, prompt: list[int], decode_tokens: int) -> tuple[float, float]:
    """Return the seconds to the first token, and from there through `decode_tokens` more."""
    from latticeq.model.generate import generate

    start = time.perf_counter()
    tokens = generate(model, prompt, max_tokens=decode_tokens + 1)
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return first - start, time.perf_counter() - first


def measure_contexts(
    model: Llama, contexts: Sequence[int], groups: int, seed: int, speed: Speed
) -> list[DecodeSpeed]:
    """Measure decoding, greedy, with so many tokens in the cache, filled as a prompt is.

    Every context has a cache of its own, and they take turns, so that a machine whose speed changes
    changes it for all of them. Contexts that the model has no room for are left out, and that is
    said.

    Parameters
    ----------
    model : Llama
    contexts : sequence of int
        In tokens, at least 1.
    groups : int
        How many groups of 8 tokens to time at each.
    seed : int
        Of the tokens.
    speed : Speed
        What `measure` found, to tell how long it takes: at least so long, since attention over a
        long past takes time of its own.

    Raises
    ------
    InputError
        If a context is below 1.
    """
    import numpy as np
    from tqdm import tqdm

    from latticeq.model.sampling import Sampling

    if any(context < 1 for context in contexts):
        raise InputError(f"--contexts has {min(contexts)}; contexts are at least 1 token")
    decoded = _GROUP * (groups + 1)  # the first group is not counted
    starts = _starts(sorted(set(contexts)), decoded, model.context)
    if not starts:
        return []
    seconds = sum(starts) / statistics.median(speed.prefill)
    seconds += decoded * len(starts) / statistics.median(speed.decode)
    say(f"contexts up to {starts[-1]} tokens: this takes {duration(seconds)} or more")
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.config.vocab_size, starts[-1] + decoded).tolist()
    caches = [model.new_cache(start + decoded) for start in starts]
    with tqdm(total=sum(starts), unit="token", desc="contexts", leave=False) as bar:
        for start, cache in zip(starts, caches, strict=True):
            while cache.length < start:
                step = min(_CHUNK, start - cache.length)
                model.prefill(tokens[cache.length : cache.length + step], cache)
                bar.update(step)
    found, greedy = [DecodeSpeed(start, []) for start in starts], Sampling()
    for number in tqdm(range(groups + 1), "contexts in turn", leave=False):
        for context, cache in zip(found, caches, strict=True):
            began = time.perf_counter()
            for _ in range(_GROUP):
                model.next_token([tokens[cache.length]], cache, greedy)
            if number > 0:
                context.decode.append(_GROUP / (time.perf_counter() - began))
    return found


def _starts(contexts: Sequence[int], decoded: int, longest: int) -> list[int]:
    """Return where to start decoding for each context that the model has room for."""
    if left_out := ", ".join(str(context) for context in contexts if context > longest):
        say(f"the model's context is {longest}; left out: {left_out}")
    # The longest context itself is full: its last tokens are those that are decoded.
    room = longest - decoded
    starts = {min(context, room) for context in contexts if context <= longest}
    return sorted(start for start in starts if start >= 1)


def bytes_per_token(model: Llama) -> int:
    """Return the bytes of weights that one decode step reads: all matrices but the embeddings.

    A tied head is the embeddings' matrix and is read as the head.
    """
    linears = [linear for block in model.blocks for linear in block.linears.values()]
    return sum(linear.run_nbytes for linear in [*linears, model.head])


def block_weights(model: Llama) -> int:
    """Return how many weights each token of a prompt is multiplied by: those of all blocks.

    The head sees only the last token of a prompt.
    """
    linears = (linear for block in model.blocks for linear in block.linears.values())
    return sum(linear.in_features * linear.out_features for linear in linears)
