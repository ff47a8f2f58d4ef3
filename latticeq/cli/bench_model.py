"""What ``latticeq bench DIR`` measures: how fast a model runs here, and how fast it could.

Prefill, taking in a prompt, multiplies many tokens at once and is bound by arithmetic. Decoding
reads every weight for each token and is bound by memory: its speed is shown beside the bandwidth
that the same run measured. Both go through the generation loop of `latticeq generate`. The first
run compiles kernels, or loads them from the cache, and brings the weights into memory; its time is
shown apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli import machine
from latticeq.cli.console import say
from latticeq.cli.contents import read_config, run_bits, run_words
from latticeq.cli.env import versions
from latticeq.cli.tables import duration, megabytes, table
from latticeq.errors import InputError

if TYPE_CHECKING:
    from latticeq.model.llama import Llama

__all__ = ["Speed", "add_arguments", "measure", "run"]


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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder, packed or float")
    parser.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=int,
        default=512,
        help="length of the prompt (default %(default)s: a page)",
    )
    parser.add_argument(
        "--decode-tokens",
        metavar="N",
        type=int,
        default=64,
        help="tokens to generate after it (default %(default)s: a few seconds)",
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=5,
        help="how often (default %(default)s: enough for a median and a spread)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load, warm up, measure, and compare with the memory's bandwidth."""
    from latticeq.cli.bandwidth import read_bandwidth
    from latticeq.cli.progress import compile_notice
    from latticeq.model.loader import load

    start = time.perf_counter()
    model = load(args.folder)
    load_s = time.perf_counter() - start
    compile_notice()
    speed = measure(
        model, args.prompt_tokens, args.decode_tokens, args.repeats, args.seed, progress=True
    )
    peak = machine.peak_rss_mib()  # before the bandwidth measurement takes memory of its own
    bandwidth = read_bandwidth()
    read = bytes_per_token(model)
    decode = statistics.median(speed.decode)
    result = {
        "load_s": round(load_s, 3),
        "warmup_s": round(speed.warmup_s, 3),
        "prefill_tokens_per_s": statistics.median(speed.prefill),
        "decode_tokens_per_s": decode,
        "time_to_first_token_s": statistics.median(speed.first),
        "prefill_spread": [min(speed.prefill), max(speed.prefill)],
        "decode_spread": [min(speed.decode), max(speed.decode)],
        "peak_rss_mib": peak,
        "threads": args.threads,
        "read_bandwidth_gb_s": bandwidth / 1e9,
        "bytes_per_token": read,
        "bandwidth_fraction": read * decode / bandwidth,
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        "repeats": args.repeats,
        "dtype": model.dtype,
        "bits_per_weight": model.bits_per_weight,
        **run_bits(read_config(args.folder)),
        "cpu": machine.cpu_name(),
        "versions": versions(),
    }
    _report(result, speed)
    return result


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


def bytes_per_token(model: Llama) -> int:
    """Return the bytes of weights that one decode step reads: all matrices but the embeddings.

    A tied head is the embeddings' matrix and is read as the head.
    """
    is_tied = model.head is model.embedding
    return model.nbytes - (0 if is_tied else model.embedding.nbytes)


def _report(result: dict[str, Any], speed: Speed) -> None:
    say(f"{result['cpu']}, {result['threads']} threads")
    say(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    say(
        f"weights {result['dtype']}, {result['bits_per_weight']:.3f} bits in the linears; "
        f"{result['prompt_tokens']} prompt tokens, {result['decode_tokens']} decoded, "
        f"{result['repeats']} repeats"
    )
    say(f"{run_words(result)}\n")
    rows: list[tuple[object, ...]] = [("", "median", "lowest", "highest")]
    for name, values in (
        ("prefill, tokens/s", speed.prefill),
        ("decode, tokens/s", speed.decode),
        ("first token, s", speed.first),
    ):
        numbers = (statistics.median(values), min(values), max(values))
        rows.append(
            (name, *(f"{number:.3g}" if number < 100 else f"{number:.0f}" for number in numbers))
        )
    say(table(rows))
    say(
        f"\nload {duration(result['load_s'])}; first run, with compiling and reading the weights, "
        f"{duration(result['warmup_s'])}"
    )
    if result["peak_rss_mib"] is not None:
        say(f"peak memory {result['peak_rss_mib']:.0f} MiB, the mapped weights included")
    say(
        f"memory reads {result['read_bandwidth_gb_s']:.1f} GB/s; a token reads "
        f"{megabytes(result['bytes_per_token'])} of weights: decoding reaches "
        f"{result['bandwidth_fraction']:.0%} of it"
    )
