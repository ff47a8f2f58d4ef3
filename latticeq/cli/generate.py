"""The verb ``latticeq generate``: continue a prompt."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.console import say, show
from latticeq.cli.contents import read_config
from latticeq.cli.runtime import add_runtime_argument, chosen_runtime
from latticeq.errors import InputError

if TYPE_CHECKING:
    from latticeq.model.generate import StopReason
    from latticeq.model.tokenizer import StreamDecoder

__all__ = ["HELP", "add_arguments", "run", "stream"]

HELP = "continue a prompt with a model"

_ENDINGS = {
    "stop": "the model ended the text",
    "length": "--max-tokens reached",
    "context": "the context is full",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the text to continue")
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=128,
        help="stop after N tokens (default %(default)s: a paragraph)",
    )
    parser.add_argument(
        "--temperature",
        metavar="X",
        type=float,
        default=0.0,
        help="0 takes the most likely token each time, so that runs can be compared (default); "
        "0.7 is livelier",
    )
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=0.95,
        help="sample only from the most likely tokens of total probability P (default %(default)s: "
        "drops the tail of nonsense; no effect at temperature 0)",
    )
    add_runtime_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stream the continuation to stdout, then report the speed on stderr."""
    from latticeq.model.generate import generate
    from latticeq.model.loader import load
    from latticeq.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(args.folder)
    runtime = chosen_runtime(args.folder, args.runtime, read_config(args.folder))
    model = load(args.folder, runtime=runtime)
    prompt = tokenizer.tokenize_prompt(args.prompt)
    if not prompt:
        raise InputError("the prompt is empty; give at least one character")
    tokens = generate(
        model,
        prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        stop_ids=tokenizer.stop_ids,
        progress=True,
    )
    start = time.perf_counter()
    text, times, reason = stream(tokens, tokenizer.stream())
    # The first token waits for the prompt; those after it are the decoding speed.
    first_s = times[0] - start if times else None
    speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
    waited = f", the first after {first_s:.2f} s" if first_s is not None else ""
    said = f", then {speed:.1f} tokens/s" if speed is not None else ""
    say(f"{len(times)} tokens ({_ENDINGS[reason]}){waited}{said}; weights {model.dtype}")
    return {
        "text": text,
        "prompt_tokens": len(prompt),
        "tokens": len(times),
        "finish_reason": reason,
        "time_to_first_token_s": first_s,
        "decode_tokens_per_s": speed,
        "dtype": model.dtype,
        "runtime": runtime,
    }


def stream(
    tokens: Generator[int, None, StopReason], decoder: StreamDecoder
) -> tuple[str, list[float], StopReason]:
    """Show tokens as they come; return the text, the time of each token, and why they ended."""
    pieces: list[str] = []
    times: list[float] = []
    while True:
        try:
            token = next(tokens)
        except StopIteration as end:
            reason: StopReason = end.value
            break
        times.append(time.perf_counter())
        pieces.append(decoder.push(token))
        show(pieces[-1], end="")
    pieces.append(decoder.finish())
    show(pieces[-1])
    return "".join(pieces), times, reason
