"""What the commands write, and where: words for people on stderr, results on stdout."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["json_line", "on_interrupt", "resume_hint", "say", "show", "silence_broken_pipe"]

_hint = ""


def say(text: str = "") -> None:
    """Write a line for a person to stderr."""
    print(text, file=sys.stderr, flush=True)


def show(text: str, end: str = "\n") -> None:
    """Write a result, such as generated text, to stdout at once."""
    print(text, end=end, flush=True)


def on_interrupt(text: str) -> None:
    """Set what a person is told when they press Ctrl-C from now on: how to go on later."""
    global _hint  # noqa: PLW0603  # the signal can arrive anywhere, so the words must wait here
    _hint = text


def resume_hint() -> str:
    """Return what `on_interrupt` was last given, or an empty string."""
    return _hint


def json_line(result: Mapping[str, Any]) -> str:
    """Return one line of JSON: NumPy numbers as plain ones, no NaN or infinity (null instead).

    Examples
    --------
    >>> json_line({"perplexity": float("nan"), "tokens": 3})
    '{"perplexity": null, "tokens": 3}'
    """
    return json.dumps(_plain(result), allow_nan=False)


def silence_broken_pipe() -> None:
    """Let the interpreter's last flush go nowhere, after the reader of stdout has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(value: Any) -> Any:
    """Turn a value into what JSON knows, without importing NumPy to recognise its types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # a NumPy number or array
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
