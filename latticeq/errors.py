"""The errors a user can meet.

Every message says what was given, what is allowed and what to do. Lower layers raise the cause; the
caller that knows the tensor, the file or the argument adds it with `context`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "FormatError",
    "InputError",
    "LatticeqError",
    "MissingDependencyError",
    "VerificationError",
    "context",
]


class LatticeqError(Exception):
    """Base of every error that latticeq raises on purpose."""


class InputError(LatticeqError, ValueError):
    """An argument is wrong: its shape, its range, its type or its values."""


class FormatError(LatticeqError):
    """A file is not what it should be: truncated, hostile, of another version, or incomplete."""


class VerificationError(LatticeqError):
    """Bytes on disk differ from the checksum that was written with them."""


class MissingDependencyError(LatticeqError, ImportError):
    """An optional library is needed; the message names the extra that installs it."""


@contextmanager
def context(where: str) -> Iterator[None]:
    """Prefix any `LatticeqError` raised inside with where it happened.

    Parameters
    ----------
    where : str
        A file, a tensor or an argument, as the user knows it.

    Raises
    ------
    LatticeqError
        The same class as the error raised inside, its message prefixed with ``where``.
    """
    try:
        yield
    except LatticeqError as error:
        raise type(error)(f"{where}: {error}") from error
