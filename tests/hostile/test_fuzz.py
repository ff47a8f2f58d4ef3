"""A short run of every fuzz target: `tests.hostile.fuzz` is the long one."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import FormatError, LatticeqError
from tests.hostile.fuzz import MEMORY, Desk, Peak, Tally, attempt, fuzz
from tests.hostile.readers import READERS, Files, Reader


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_an_error_or_a_result(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path / "valid")
    desk, peak, tally = Desk(), Peak(), Tally()
    for files in reader.valid:  # compiles, too
        desk.lay(files)
        reader.read(desk.folder)

    @given(st.integers(0, 2**32 - 1))
    def run(seed: int) -> None:
        attempt(reader, desk, seed, tally, peak)
        assert tally.findings == []

    try:
        run()
    finally:
        peak.close()
        desk.close()
    assert 0 < tally.read < tally.inputs


def reader_that(does: object) -> Reader:
    def read(folder: Path) -> None:
        if isinstance(does, LatticeqError):
            raise type(does)(f"{folder}/a: {does}")
        if isinstance(does, BaseException):
            raise does
        if callable(does):
            does()

    def make(_: object) -> Files:
        return {"a": b"x"}

    return Reader("test", make, read, [])


def nameless() -> None:
    raise FormatError("it is damaged")


def deep(n: int) -> int:
    return deep(n + 1) + 1


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


class PanicError(BaseException):
    """What some libraries raise so that nothing catches it."""


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (None, None),
        (FormatError("it is damaged"), None),
        (LatticeqError("so it is"), None),
        (nameless, "the error names no file: it is damaged"),
        (ValueError("unseen"), "ValueError: unseen"),
        (PanicError("no Exception"), "PanicError: no Exception"),
        (lambda: deep(1), "RecursionError: "),
        (lambda: burn(1.1), "took 1.1 s"),
    ],
)
def test_the_fuzzer_sees_what_is_no_error_of_ours(
    tmp_path: Path, does: object, words: str | None
) -> None:
    tally = fuzz(reader_that(does), tmp_path / "log", seconds=60, seed=7, inputs=2)
    assert tally.inputs == 2
    found = [(finding.seed, words in finding.what) for finding in tally.findings if words]
    assert found == ([(7, True), (8, True)] if words else [])


def test_the_fuzzer_sees_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's VmHWM")
    for size, count in ((MEMORY // 2, 0), (MEMORY + 2**22, 1), (2**40, 1)):
        reader = reader_that(lambda size=size: len(bytearray(b"x") * size))
        tally = fuzz(reader, tmp_path / "log", seconds=60, inputs=1)
        assert len(tally.findings) == count


def test_the_long_run_prints_how_many_inputs(tmp_path: Path) -> None:
    words = ["--seconds", "20", "--reader", "safetensors", "--reader", "index", "--inputs", "50"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.fuzz", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["safetensors", "50"]
    assert done.stdout.splitlines()[-1] == "100 inputs, 0 findings"
