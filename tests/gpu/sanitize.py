"""The tests marked `gpu` under compute-sanitizer: ``python -m tests.gpu.sanitize [--help]``.

The tests are dealt out to processes, each under one tool of compute-sanitizer, which comes with
CUDA's toolkit: memcheck, where arrays have memory of their own (`tests.gpu.plain_memory`), and
racecheck. A process is clean if its tests all ran and passed and the tool found nothing; one line
says so for each, and the exit code for all. Kernels have to be compiled for the tool in each
process; what else is compiled is kept, so run the tests without it first.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TOOLS = {
    "memcheck": ("-p", "tests.gpu.plain_memory"),
    "racecheck": (),
}
"""And what pytest is told under it."""

PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:xdist", "-p", "no:benchmark",
          "-p", "no:cacheprovider")  # fmt: skip

SUMMARY = re.compile(
    r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard|(Internal Sanitizer Error)"
)
PASSED = re.compile(r"^(?:=+ )?(\d+) passed(?:, \d+ warnings?)? in ", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes
    ----------
    findings : int or None
        What the tool counted; None if it did not come to its end.
    passed : int or None
        Tests that passed; None if any did not.
    """

    findings: int | None
    passed: int | None

    def is_clean(self, tests: int) -> bool:
        return self.findings == 0 and self.passed == tests


def outcome(log: str) -> Outcome:
    """Read what a process wrote: its tests are all there only if no other kind is counted."""
    found = SUMMARY.findall(log)
    counts = [int(errors or hazards) for errors, hazards, broken in found if not broken]
    is_whole = counts and not any(broken for *_, broken in found)
    passed = PASSED.findall(log)
    return Outcome(sum(counts) if is_whole else None, int(passed[-1]) if passed else None)


def collected(paths: Sequence[str]) -> list[str]:
    """Return the marked tests of some paths below the folder that this runs in."""
    words = (*PYTEST, "--collect-only", "-q", *paths)
    listed = subprocess.run(words, capture_output=True, text=True)
    tests = [line for line in listed.stdout.splitlines() if re.match(r"\S+\.py::", line)]
    if listed.returncode or not tests:
        sys.exit(f"no tests were collected:\n{listed.stdout[-2000:]}{listed.stderr}")
    return tests


def command(tool: str, tests: Sequence[str]) -> tuple[str, ...]:
    """Return what runs tests under a tool."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        sys.exit("compute-sanitizer is not on the PATH; it comes with CUDA's toolkit")
    # Backtraces of the host keep Python's frames, and all that they hold, alive.
    return (program, "--tool", tool, "--target-processes", "all", "--print-limit", "20",
            "--show-backtrace", "device", *PYTEST, "-q", "--durations=0", *TOOLS[tool],
            *tests)  # fmt: skip


def run(
    tool: str, tests: Sequence[str], log: Path, limit: float, resume: bool = False
) -> tuple[Outcome, float]:
    """Run tests under a tool: how that ended, and the seconds it took.

    The log begins with the command. With `resume`, one of the same command that ended clean is
    taken for the run.
    """
    words = command(tool, tests)
    head = f"{shlex.join(words)}\n"
    if resume and log.exists():
        earlier = log.read_text("utf-8", "replace")
        if earlier.startswith(head) and outcome(earlier).is_clean(len(tests)):
            return outcome(earlier), 0.0
    # Python's own threads would fight for cores that other processes have.
    environment = os.environ | dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    start = time.perf_counter()
    with log.open("w") as file:
        file.write(head)
        file.flush()
        try:
            subprocess.run(words, stdout=file, stderr=file, timeout=limit, env=environment)
        except subprocess.TimeoutExpired:
            file.write(f"\nstopped after {limit:.0f} s\n")
    return outcome(log.read_text("utf-8", "replace")), time.perf_counter() - start


def dealt(tests: Sequence[str], parts: int) -> list[Sequence[str]]:
    """Deal tests out: neighbours, which take about as long, go to different parts."""
    return [tests[part::parts] for part in range(min(parts, len(tests)))]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "paths", nargs="*", default=["tests"], help="of tests (default %(default)s)"
    )
    parser.add_argument("--tool", choices=TOOLS, action="append", help="one alone (default both)")
    parser.add_argument("--processes", type=int, default=4, help="at once (default %(default)s)")
    parser.add_argument("--limit", type=float, default=3600, help="seconds of one process")
    parser.add_argument(
        "--resume", action="store_true", help="leave out processes that were clean in these logs"
    )
    parser.add_argument(
        "--logs", type=Path, default=Path("build/sanitizer"), help="folder of their output"
    )
    args = parser.parse_args(words)
    tests = collected(args.paths)
    args.logs.mkdir(parents=True, exist_ok=True)
    jobs = [
        (tool, part, mine)
        for part, mine in enumerate(dealt(tests, args.processes))
        for tool in args.tool or TOOLS
    ]
    start = time.perf_counter()

    def job(given: tuple[str, int, Sequence[str]]) -> bool:
        tool, part, mine = given
        log = args.logs / f"{tool}-{part}.log"
        found, seconds = run(tool, mine, log, args.limit, args.resume)
        is_clean = found.is_clean(len(mine))
        print(
            f"{tool} {part}: {'clean' if is_clean else f'NOT CLEAN, see {log}'}; {found.findings} "
            f"findings, {found.passed} of {len(mine)} tests passed, {seconds:.0f} s",
            flush=True,
        )
        return is_clean

    with ThreadPoolExecutor(args.processes) as pool:
        clean = list(pool.map(job, jobs))
    seconds = time.perf_counter() - start
    print(f"{sum(clean)} of {len(jobs)} processes clean, {len(tests)} tests, {seconds:.0f} s")
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
