"""Folders that appear whole or not at all, and operating-system errors in words.

Whatever takes long to write is written into a hidden sibling of its final name and renamed when it
is complete: an interruption, a full disk or an error leaves nothing half-written under the final
name. A rename within one folder is atomic, so of two processes that race, one wins whole.

What a name stands for is on the disk before the name is, so a power cut leaves nothing half-written
under it either. A process that is killed leaves its hidden sibling: `clear_leftovers` deletes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latticeq.errors import InputError, LatticeqError

__all__ = ["clear_leftovers", "disk_errors", "flush", "move_folder", "new_folder"]

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space or choose another disk",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another disk",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the file system is read-only; choose a folder that you may write to",
}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised inside into a `LatticeqError` that names the path.

    Parameters
    ----------
    path : Path
        What was being written; used where the operating system does not name a file itself.

    Raises
    ------
    LatticeqError
        With the path, what went wrong and, for a full disk or a missing permission, what to do.

    Examples
    --------
    >>> with disk_errors(Path("model")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    latticeq.errors.LatticeqError: model: the disk is full; free some space or choose another disk
    """
    try:
        yield
    except OSError as error:
        known = _ADVICE.get(error.errno or 0)
        raise LatticeqError(f"{error.filename or path}: {known or error.strerror or error}") from (
            error
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that becomes `path` when the block ends well.

    Parameters
    ----------
    path : Path
        The final folder. It must not exist, neither now nor when the block ends.

    Yields
    ------
    Path
        An empty folder on the same disk. It is deleted if the block raises.

    Raises
    ------
    InputError
        If `path` exists already.
    LatticeqError
        If the operating system refuses, naming the path.
    """
    if path.exists():
        raise InputError(f"{path} exists already; remove it or choose another name")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile.mkdtemp, whose folders nobody else may read: this one is going to stay.
        temporary = path.with_name(f"{_leftover(path)}{secrets.token_hex(4)}")
        temporary.mkdir()
        try:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                flush(file)
            flush(temporary)
            move_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def move_folder(source: Path, path: Path) -> None:
    """Give a folder another name on the same disk, at once, so that it lasts through a power cut.

    Raises
    ------
    InputError
        If something of that name is there.
    """
    try:
        source.rename(path)
    except OSError as error:
        if path.exists():
            raise InputError(f"{path} appeared while it was being written") from error
        raise
    flush(path.parent)


def clear_leftovers(path: Path) -> None:
    """Delete what processes that were killed left of their `new_folder` of a path."""
    with suppress(FileNotFoundError):
        for folder in path.parent.iterdir():
            if folder.name.startswith(_leftover(path)):
                shutil.rmtree(folder, ignore_errors=True)


def _leftover(path: Path) -> str:
    return f".{path.name}.partial-"


def flush(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        return
    with suppress(OSError):  # Windows opens no folders, and some network disks flush none
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
