"""Measurements in processes of their own, one after the other and never two at once.

A fresh process starts with the number of threads it is given, and its peak memory is that of what
it ran. This process imports neither NumPy nor Numba meanwhile: it takes no core, and little memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from latticeq.cli.machine import rss_mib
from latticeq.errors import InputError, LatticeqError

__all__ = ["Finished", "own_result", "run_process"]


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Parameters
    ----------
    code : int
        Its exit code; below zero it is the signal that ended it.
    out, err : str
        What it wrote.
    peak_rss_mib : float or None
        The most memory it had, mapped files included; None where the system does not say.
    """

    code: int
    out: str
    err: str
    peak_rss_mib: float | None


def run_process(
    command: Sequence[str],
    show_errors: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a program to its end.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments; no shell reads them.
    show_errors : bool
        Let its stderr through, where there is progress to see, instead of returning it.
    environment : mapping of str to str, optional
        Its environment; without it, that of this process.

    Raises
    ------
    InputError
        If it cannot be started.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=None if show_errors else err,
                env=environment,
            )
        except OSError as error:
            raise InputError(f"{command[0]} cannot be run: {error.strerror or error}") from error
        try:
            peak = _wait(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return Finished(process.returncode, _read(out), _read(err), peak)


def own_result(words: Sequence[str], show_errors: bool = True) -> tuple[dict[str, Any], Finished]:
    """Run the command line in a fresh process; return what ``--json`` printed, and the process.

    Parameters
    ----------
    words : sequence of str
        Those after ``latticeq``, without ``--json``.
    show_errors : bool
        As for `run_process`.

    Raises
    ------
    LatticeqError
        If it fails.
    """
    command = [sys.executable, "-m", "latticeq", *words, "--json"]
    done = run_process(command, show_errors)
    if done.code:
        reason = "" if show_errors else f": {done.err.strip()[-2000:]}"
        raise LatticeqError(f"'latticeq {' '.join(words)}' failed{reason}")
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return found, done


def _wait(process: subprocess.Popen[bytes]) -> float | None:
    """Wait for a process; return its peak memory in MiB."""
    if not hasattr(os, "wait4"):
        process.wait()
        return None
    # wait4 says what this one process used. (From its parent a process inherits the peak until it
    # starts its program, which is why the parent must be smaller than what it measures.)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return rss_mib(usage.ru_maxrss)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
