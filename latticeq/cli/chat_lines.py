"""Where a chat's lines come from: a person at a terminal, with history and editing, or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from latticeq.errors import InputError

__all__ = ["line_reader"]

PROMPT = "> "


def line_reader() -> Callable[[], str]:
    """Return a function that returns the next line, without its end.

    It raises EOFError after the last one, or at Ctrl-D, and KeyboardInterrupt at Ctrl-C. Lines are
    kept for the session only: what a person types is written to no file.
    """
    if not sys.stdin.isatty():
        return _piped_lines()
    if not sys.stdout.isatty():  # replies go to a file or a program, prompts should not
        return _typed_lines
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory
    except ImportError:
        with suppress(ImportError):  # not on Windows; where it is, `input` edits lines, too
            import readline  # noqa: F401
        return lambda: input(PROMPT)
    session: PromptSession[str] = PromptSession(history=InMemoryHistory())
    return lambda: session.prompt(PROMPT)


def _typed_lines() -> str:
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return _line()


def _piped_lines() -> Callable[[], str]:
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:  # whatever the locale is
        reconfigure(encoding="utf-8", errors="strict")

    return _line


def _line() -> str:
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise InputError(
            f"what came from stdin is not UTF-8 text ({error}); convert it first"
        ) from error
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")
