"""The options that say how tokens are chosen, of every verb that generates."""

from __future__ import annotations

import argparse

__all__ = ["add_sampling_arguments"]


def add_sampling_arguments(
    parser: argparse.ArgumentParser, *, max_tokens: int, temperature: float
) -> None:
    """Declare ``--max-tokens``, ``--temperature`` and ``--top-p`` with a verb's defaults."""
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=int,
        default=max_tokens,
        help="stop after N tokens (default %(default)s: a paragraph has about 100)",
    )
    parser.add_argument(
        "--temperature",
        metavar="X",
        type=float,
        default=temperature,
        help="0 takes the most likely token each time, so that runs can be compared; 0.7 is "
        "livelier (default %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=float,
        default=0.95,
        help="sample only from the most likely tokens of total probability P (default %(default)s: "
        "drops the tail of nonsense; no effect at temperature 0)",
    )
