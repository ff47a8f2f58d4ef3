"""The verb ``latticeq generate``: continue a prompt."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from latticeq.cli.console import say
from latticeq.cli.device import add_device_argument, load_model
from latticeq.cli.runtime import add_runtime_argument
from latticeq.cli.sampling import add_sampling_arguments
from latticeq.cli.streaming import Pace, stream
from latticeq.errors import InputError

__all__ = ["HELP", "add_arguments", "run"]

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
        "--chat",
        action="store_true",
        help="give the prompt as a user's message, in the chat template that came with the model; "
        "models made to chat answer only so",
    )
    add_sampling_arguments(parser, max_tokens=128, temperature=0.0)
    add_runtime_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stream the continuation to stdout, then report the speed on stderr."""
    from latticeq.model.chat_template import ChatTemplate
    from latticeq.model.conversation import one_turn, stop_ids
    from latticeq.model.generate import generate
    from latticeq.model.tokenizer import Tokenizer

    if not args.prompt:
        raise InputError("the prompt is empty; give at least one character")
    tokenizer = Tokenizer.from_folder(args.folder)
    prompt, stops = tokenizer.tokenize_prompt(args.prompt), tokenizer.stop_ids
    if args.chat:
        template = ChatTemplate.from_folder(args.folder)
        prompt = one_turn(tokenizer, template, args.prompt)
        stops = stop_ids(tokenizer, template)
    model, runtime = load_model(args)
    tokens = generate(
        model,
        prompt,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        stop_ids=stops,
        progress=True,
    )
    start = time.perf_counter()
    text, times, reason = stream(tokens, tokenizer.stream())
    pace = Pace(start, times)
    waited = f", the first after {pace.first_s:.2f} s" if pace.first_s is not None else ""
    said = f", then {pace.speed:.1f} tokens/s" if pace.speed is not None else ""
    say(f"{len(times)} tokens ({_ENDINGS[reason]}){waited}{said}; weights {model.dtype}")
    return {
        "text": text,
        "prompt_tokens": len(prompt),
        **pace.as_dict(),
        "finish_reason": reason,
        "dtype": model.dtype,
        "runtime": runtime,
    }
