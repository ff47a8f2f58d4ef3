"""A job that is killed at random moments, and resumed until it is done: the same bytes."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from latticeq.model.job import partial_folder
from tests.tiny_model import byte_config, write_byte_model

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals")

KILLS = int(os.environ.get("LATTICEQ_KILLS", "0"))
"""How many the long test does: 200 take some minutes."""


def command(source: Path, out: Path) -> list[str]:
    text = source / "calibration.txt"
    words = ["--regime", "w+kv+a", "--calibration", text, "--calibration-tokens", 256, "--resume"]
    return [sys.executable, "-m", "latticeq", "quantize", *map(str, [source, out, *words])]


def listing(folder: Path) -> list[tuple[str, int]]:
    """Return what is in a folder, and in those inside: what changes as a job goes on."""
    found = []
    for path, _, names in os.walk(folder):  # which passes over what is gone meanwhile
        found.append((path, 0))
        for name in names:
            with suppress(FileNotFoundError):
                found.append((f"{path}/{name}", Path(path, name).stat().st_size))
    return sorted(found)


def killed(words: list[str], folder: Path, rng: random.Random) -> bool:
    """Run a command and kill it, most often just as it writes; return whether it was done before.

    ``folder`` holds nothing but the output and what is beside it while it is made.
    """
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + (rng.uniform(0, 2) if rng.random() < 0.2 else 60)
        count, seen, before = rng.randint(1, 25), 0, listing(folder)
        while process.poll() is None and time.monotonic() < until and seen < count:
            time.sleep(0.001)
            if (now := listing(folder)) != before:
                before, seen = now, seen + 1
        time.sleep(rng.choice([0, rng.uniform(0, 0.05)]))
        process.kill()
        error = process.communicate()[1].decode()
    finally:
        process.kill()
    return process.returncode != -9 and is_done(process.returncode, error)


def is_done(code: int, error: str) -> bool:
    """Tell whether a job is done; fail if it ended otherwise."""
    # A process that was killed as it cleaned up behind the finished output has left it finished.
    is_late = code == 2 and "exists already; choose another folder" in error
    assert code == 0 or is_late, error
    return True


def finish(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert is_done(done.returncode, done.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_and_resume(tmp_path: Path, kills: int) -> None:
    """Kill jobs this many times; every output has the bytes of a job that nothing disturbed."""
    source = write_byte_model(tmp_path / "source", byte_config("tied", num_hidden_layers=3))
    (source / "calibration.txt").write_text("The quick brown fox, and the lazy dog. " * 9)
    finish(command(source, tmp_path / "undisturbed"))
    wanted = contents(tmp_path / "undisturbed")
    rng = random.Random(7)
    folder, jobs = tmp_path / "jobs", 0
    while kills:
        jobs += 1
        words = command(source, folder / str(jobs) / "out")
        (folder / str(jobs)).mkdir(parents=True)
        in_job = rng.randint(1, 20)  # or it might be killed for ever before its first part
        while kills and in_job and not killed(words, folder / str(jobs), rng):
            kills, in_job = kills - 1, in_job - 1
        finish(words)
        out = folder / str(jobs) / "out"
        assert not partial_folder(out).exists()
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        found = contents(out)
        assert sorted(found) == sorted(wanted)
        assert [name for name in wanted if found[name] != wanted[name]] == []


def test_a_killed_job_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 3)
    assert list(tmp_path.glob("jobs/*/out/config.json"))


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="set LATTICEQ_KILLS to how often to kill")
def test_many_killed_jobs_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, KILLS)
    assert list(tmp_path.glob("jobs/*/out/config.json"))
