"""Give every reader damaged files: ``python -m tests.hostile.fuzz --seconds N [--reader NAME]``.

For each input a reader ends, or raises a `LatticeqError` that names the file, within a second, and
in memory of at most four times the input and 64 MiB. Anything else is a finding, which is printed
with the seed of its input: ``--seed`` with ``--inputs 1`` and the reader's name repeats it. Prints
how many inputs each reader took, and how many of them it read to the end.

The memory is what Linux says that the process has held at most since the input came (VmHWM); on
other systems it is not looked at. A reader that does not come back at all is stopped after a minute
with a traceback, and the file that is named at the start says which input it was.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from latticeq.errors import LatticeqError
from tests.hostile.readers import READERS, Files, Reader

SECONDS = 1.0
MEMORY = 64 * 2**20
HANG_SECONDS = 60
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
DATA_BYTES = 2**30  # that may be allocated at all, touched or not


@dataclass(frozen=True)
class Finding:
    """An input that a reader did not take as it should."""

    reader: str
    seed: int
    what: str
    where: str


@dataclass
class Tally:
    """How a reader fared."""

    inputs: int = 0
    read: int = 0
    slowest: float = 0.0
    largest: int = 0
    findings: list[Finding] = field(default_factory=list)


class Peak:
    """The most memory that was resident since it was last asked, in bytes; 0 where unknown."""

    def __init__(self) -> None:
        self._status = self._clear = -1
        if STATUS.exists() and os.access(CLEAR, os.W_OK):
            self._status, self._clear = os.open(STATUS, os.O_RDONLY), os.open(CLEAR, os.O_WRONLY)
        self._before = 0

    def start(self) -> None:
        """Begin anew."""
        if self._clear >= 0:
            os.pwrite(self._clear, b"5", 0)
            self._before = self._field(b"VmRSS:")

    def grown(self) -> int:
        """Return by how much memory had grown at most since `start`."""
        return self._field(b"VmHWM:") - self._before if self._clear >= 0 else 0

    def data(self) -> int:
        """Return the bytes of all private memory, touched or not."""
        return self._field(b"VmData:")

    def close(self) -> None:
        """Close the system's files."""
        for number in (self._status, self._clear):
            if number >= 0:
                os.close(number)

    def _field(self, name: bytes) -> int:
        text = os.pread(self._status, 4096, 0)
        return 1024 * int(text[text.index(name) :].split(maxsplit=2)[1])


class Desk:
    """A folder whose files are written only where they differ from the last input's."""

    def __init__(self) -> None:
        fast = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=fast if fast.is_dir() else None))
        self._files: Files = {}

    def lay(self, files: Files) -> None:
        """Let the folder hold these files and no others."""
        for name in self._files.keys() - files.keys():
            (self.folder / name).unlink()
        for name, data in files.items():
            if self._files.get(name) is not data:
                (self.folder / name).write_bytes(data)
        self._files = files

    def close(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder)


def attempt(reader: Reader, desk: Desk, seed: int, tally: Tally, peak: Peak) -> None:
    """Give a reader the input of a seed, and note how it went."""
    files = reader.make(Random(seed))
    desk.lay(files)
    what = ""
    peak.start()
    start = time.process_time()
    try:
        reader.read(desk.folder)
        tally.read += 1
    except LatticeqError as error:
        if str(desk.folder) not in str(error):
            what, where = f"the error names no file: {error}"[:300], _place(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic in a library is no Exception
        what = f"{type(error).__name__}: {error}"[:300]
        where = _place(error)
    seconds = time.process_time() - start
    grown = peak.grown()
    tally.inputs += 1
    tally.slowest, tally.largest = max(tally.slowest, seconds), max(tally.largest, grown)
    if not what and seconds > SECONDS:
        what, where = f"took {seconds:.1f} s", "time"
    if not what and grown > 4 * sum(map(len, files.values())) + MEMORY:
        what, where = f"took {grown / 2**20:.0f} MiB", "memory"
    if what:
        tally.findings.append(Finding(reader.name, seed, what, where))


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "latticeq" in frame.filename] or list(frames)
    return f"{type(error).__name__} {Path(inside[-1].filename).name}:{inside[-1].lineno}"


@contextmanager
def limited(peak: Peak) -> Iterator[None]:
    """Let the process allocate only so much more than it has: absurd sizes fail at once."""
    if not STATUS.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (peak.data() + DATA_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def fuzz(
    reader: Reader, log: Path, seconds: float, seed: int = 0, inputs: int | None = None
) -> Tally:
    """Give a reader inputs for some time, or so many of them.

    Parameters
    ----------
    reader : Reader
    log : Path
        Keeps the seed of the input that is being read.
    seconds : float
        Of the wall clock.
    seed : int
        Of the first input; the others' follow it.
    inputs : int, optional
        The most inputs.
    """
    tally, peak, desk = Tally(), Peak(), Desk()
    number = os.open(log, os.O_RDWR | os.O_CREAT)
    for files in reader.valid:  # compiles and imports
        desk.lay(files)
        reader.read(desk.folder)
    until = time.monotonic() + seconds
    try:
        with limited(peak):
            while time.monotonic() < until and (inputs is None or tally.inputs < inputs):
                if tally.inputs % 64 == 0:
                    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
                os.lseek(number, 0, os.SEEK_SET)
                os.write(number, f"{reader.name} {seed + tally.inputs}\n".encode())
                attempt(reader, desk, seed + tally.inputs, tally, peak)
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(number)
        peak.close()
        desk.close()
    return tally


def main() -> int:
    """Fuzz, print, and return 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="in all, shared by the readers")
    parser.add_argument(
        "--reader", action="append", choices=READERS, help="only this one; may be given again"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--inputs", type=int, help="the most inputs of a reader")
    args = parser.parse_args()
    log = Path(tempfile.mkstemp(suffix=".seed")[1])
    print(f"the input being read is named in {log}", file=sys.stderr)
    found: list[Finding] = []
    total = 0
    chosen = args.reader or list(READERS)
    print(f"{'reader':<22}{'inputs':>10}{'read':>10}{'slowest':>10}{'memory':>10}{'found':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            reader = READERS[name](Path(folder) / name)
            tally = fuzz(reader, log, args.seconds / len(chosen), args.seed, args.inputs)
            total += tally.inputs
            found += tally.findings
            print(
                f"{name:<22}{tally.inputs:>10}{tally.read:>10}{tally.slowest:>8.2f} s"
                f"{tally.largest / 2**20:>6.0f} MiB{len(tally.findings):>8}",
                flush=True,
            )
    log.unlink()
    print(f"{total} inputs, {len(found)} findings")
    for where in sorted({(finding.reader, finding.where) for finding in found}):
        same = [f for f in found if (f.reader, f.where) == where]
        first = f"seed {same[0].seed}: {same[0].what}"
        print(f"{where[0]}: {where[1]}: {len(same)} times, such as {first}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
