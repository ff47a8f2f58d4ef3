"""What the sanitizer's run makes of what its processes write: only what ran and found nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.gpu import sanitize
from tests.gpu.sanitize import Outcome, dealt, outcome


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("3 passed in 1.00s\n========= ERROR SUMMARY: 0 errors\n", Outcome(0, 3)),
        ("= 3 passed in 1.00s =\n========= ERROR SUMMARY: 2 errors\n", Outcome(2, 3)),
        ("3 passed in 1s\n= RACECHECK SUMMARY: 1 hazard displayed (1 error)\n", Outcome(1, 3)),
        ("1 failed, 2 passed in 1.00s\n= ERROR SUMMARY: 0 errors\n", Outcome(0, None)),
        ("2 passed, 1 skipped in 1.00s\n= ERROR SUMMARY: 0 errors\n", Outcome(0, None)),
        ("3 passed in 1.00s\n", Outcome(None, 3)),
        ("= Internal Sanitizer Error: lost\n3 passed in 1s\n= ERROR SUMMARY: 0", Outcome(None, 3)),
        ("..\nstopped after 9 s\n", Outcome(None, None)),
    ],
)
def test_what_was_written_is_read(log: str, found: Outcome) -> None:
    assert outcome(log) == found
    assert found.is_clean(3) == (found == Outcome(0, 3))
    assert not found.is_clean(4)


def test_tests_are_dealt_out() -> None:
    assert dealt(list("abcde"), 2) == [["a", "c", "e"], ["b", "d"]]
    assert dealt(list("ab"), 3) == [["a"], ["b"]]


@pytest.mark.parametrize(("summary", "code"), [("0 errors", 0), ("1 error", 1)])
def test_findings_make_the_exit_code(
    summary: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a sanitizer that runs what it is given."""
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\n"
        f"words = sys.argv[sys.argv.index({sys.executable!r}):]\n"
        f"subprocess.run(words)\nprint('= ERROR SUMMARY: {summary}')\n"
    )
    sanitizer.chmod(0o755)
    tests = tmp_path / "test_some.py"
    tests.write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "@pytest.mark.parametrize('n', range(3))\ndef test_it(n): assert n < 3\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sanitize.TOOLS, "memcheck", ())  # there may be no device
    monkeypatch.chdir(tmp_path)
    words = [tests.name, "--tool", "memcheck", "--processes", "2", "--logs", "logs"]
    assert sanitize.main(words) == code
    out = capsys.readouterr().out
    assert "2 of 2 tests passed" in out
    assert f"{0 if code else 2} of 2 processes clean, 3 tests" in out
    logs = [tmp_path / "logs" / f"memcheck-{part}.log" for part in range(2)]
    before = [log.stat().st_mtime_ns for log in logs]
    assert sanitize.main([*words, "--resume"]) == code
    again = [log.stat().st_mtime_ns != at for log, at in zip(logs, before, strict=True)]
    assert again == [code == 1] * 2  # what was clean has not run again
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="compute-sanitizer is not on the PATH"):
        sanitize.run("memcheck", ["a"], tmp_path / "log", 9)
