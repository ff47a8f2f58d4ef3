"""The verb ``latticeq verify``: whether all bytes are those that were written."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from latticeq.cli.console import say
from latticeq.cli.progress import verify_bar
from latticeq.cli.tables import duration, megabytes

__all__ = ["HELP", "add_arguments", "run"]

HELP = "re-read a quantized model and check every checksum"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="a folder that `latticeq quantize` wrote"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Read everything and compare; what differs is an error that names it."""
    from latticeq.storage.checkpoint import verify

    bar = verify_bar(args.folder)
    start = time.perf_counter()
    found = verify(args.folder, bar)
    seconds = time.perf_counter() - start
    say(
        f"{args.folder}: {found['tensors']} tensors ({megabytes(found['nbytes'])}) and "
        f"{found['files']} files are as they were written ({duration(seconds)})"
    )
    return {"folder": str(args.folder), **found, "seconds": round(seconds, 3)}
