"""The verb ``latticeq perplexity``: how well a model predicts a text."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

from latticeq.cli.console import say
from latticeq.cli.device import add_device_argument, load_model
from latticeq.cli.runtime import add_runtime_argument
from latticeq.errors import InputError

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure the perplexity of a model on a text file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        required=True,
        help="UTF-8 text, used as it is; evaluate on a text that the quantizer was not "
        "calibrated on",
    )
    parser.add_argument(
        "--context",
        metavar="N",
        type=int,
        default=2048,
        help="tokens in a window (default %(default)s, which most published numbers use; a smaller "
        "one gives a higher perplexity)",
    )
    parser.add_argument(
        "--windows",
        metavar="N",
        type=int,
        help="use only the first N windows (default: all; 10 show a gap of 0.1 between two models)",
    )
    add_runtime_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, say the protocol, and return the numbers."""
    from latticeq.model.perplexity import perplexity
    from latticeq.model.tokenizer import Tokenizer

    data = args.text.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{args.text} is not UTF-8 text ({error}); convert it first") from error
    tokenizer = Tokenizer.from_folder(args.folder)
    model, runtime = load_model(args, args.context)
    say(
        f"{args.text.name} (sha256 {sha256[:16]}), windows of {args.context} without overlap, "
        f"tail dropped, no BOS, weights {model.dtype}, runtime {runtime}"
    )
    start = time.perf_counter()
    ids = tokenizer.tokenize(text)
    result = perplexity(model, ids, context=args.context, windows=args.windows, progress=True)
    say(
        f"perplexity {result.perplexity:.3f} ± {result.stderr:.3f} over {result.windows} windows "
        f"({result.tokens} targets); second half only: {result.perplexity_second_half:.3f}; "
        f"{result.bits_per_weight:.3f} bits per weight in the linears"
    )
    return {
        **result.as_dict(),
        "text_sha256": sha256,
        "text_tokens": len(ids),
        "context": args.context,
        "bos": False,
        "dtype": model.dtype,
        "runtime": runtime,
        "seconds": round(time.perf_counter() - start, 3),
    }
