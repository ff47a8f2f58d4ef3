"""How much memory a process has that no file backs, and a limit to it. Linux only.

Pages of a mapped file can be dropped and read again, so they cost nothing where memory is short;
what counts is the rest, which Linux calls anonymous.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SMAPS = Path("/proc/self/smaps_rollup")


@dataclass(frozen=True)
class Measured:
    """A process that has ended: exit code, seconds, stderr, and the most bytes that were seen."""

    code: int
    seconds: float
    error: str
    anonymous: int
    resident: int


def measure(words: list[str], limit: int | None = None, every: float = 0.02) -> Measured:
    """Run a command to its end and look at its memory every few milliseconds.

    Parameters
    ----------
    words : list of str
    limit : int, optional
        Of its data, RLIMIT_DATA: the heap and every private mapping that may be written, touched or
        not; mapped files are not counted.
    every : float
        Seconds.
    """
    import resource

    start = time.monotonic()
    anonymous = resident = 0
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads fills, and the process waits
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=said)
        try:
            if limit is not None:
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))
            while process.poll() is None:
                seen = _rollup(process.pid)
                anonymous = max(anonymous, seen.get("Anonymous", 0))
                resident = max(resident, seen.get("Rss", 0))
                time.sleep(every)
        finally:
            process.kill()
        said.seek(0)
        error = said.read().decode()
    return Measured(process.returncode, time.monotonic() - start, error, anonymous, resident)


def _rollup(pid: int) -> dict[str, int]:
    """Return the sums over a process's mappings, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has ended
        return {}
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): 1024 * int(number) for name, number, *_ in fields}
