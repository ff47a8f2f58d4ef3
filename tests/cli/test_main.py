"""The command line: quick help, exit codes, messages without tracebacks, JSON on the last line."""

import argparse
import errno
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.cli import console, main
from latticeq.cli import machine as machine_module
from latticeq.errors import FormatError, InputError, VerificationError

Run = Callable[[argparse.Namespace], dict[str, Any]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Put a verb named ``act`` on the command line for one test."""

    def install(run: Run) -> None:
        module = types.ModuleType("latticeq.cli.act")
        vars(module).update(HELP="act", add_arguments=lambda parser: None, run=run)
        monkeypatch.setitem(sys.modules, "latticeq.cli.act", module)
        monkeypatch.setitem(main.VERBS, "act", "act")
        monkeypatch.setattr(main, "limit_threads", lambda count: count or 1)

    return install


def raising(error: BaseException) -> Run:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        raise error

    return run


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FormatError("model.safetensors: truncated"), 1, "model.safetensors: truncated"),
        (InputError("--q 1: q is 2 to 63"), 2, "--q 1: q is 2 to 63"),
        (VerificationError("layer 3: checksum"), 3, "layer 3: checksum"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), 1, "a/b: No such file"),
        (OSError(errno.ENOSPC, "No space", "a/b"), 1, "the disk is full while writing a/b: free"),
        (MemoryError(), 1, "out of memory: close other programs"),
    ],
)
def test_errors_become_exit_codes_and_one_line(
    verb: Callable[[Run], None], capsys: Capture, error: Exception, code: int, message: str
) -> None:
    verb(raising(error))
    assert main.main(["act"]) == code
    written = capsys.readouterr()
    assert written.err.startswith(f"latticeq: error: {message}")
    assert written.err.count("\n") == 1
    assert written.out == ""
    assert main.main(["act", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(verb: Callable[[Run], None]) -> None:
    verb(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main.main(["act"])


def test_interrupt_says_how_to_go_on(
    verb: Callable[[Run], None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_hint", "")
    verb(raising(KeyboardInterrupt()))
    assert main.main(["act"]) == 130
    assert "Run the same command" in capsys.readouterr().err
    console.on_interrupt("Go on with --resume.")
    assert main.main(["act"]) == 130
    assert "Go on with --resume." in capsys.readouterr().err


def test_json_is_the_last_line_of_stdout(verb: Callable[[Run], None], capsys: Capture) -> None:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        console.show("a generated text")
        console.say("words for people")
        return {"count": np.int64(3), "rate": np.float32(0.5), "bad": np.inf, "list": np.arange(2)}

    verb(run)
    assert main.main(["act", "--json"]) == 0
    written = capsys.readouterr()
    expected = {"count": 3, "rate": 0.5, "bad": None, "list": [0, 1]}
    assert json.loads(written.out.splitlines()[-1]) == expected
    assert written.err == "words for people\n"
    assert main.main(["act"]) == 0
    assert capsys.readouterr().out == "a generated text\n"


def test_json_turns_what_it_does_not_know_into_text() -> None:
    value = {"path": Path("a"), "nested": {1: (True, None, -np.inf)}}
    assert json.loads(console.json_line(value)) == {
        "path": "a",
        "nested": {"1": [True, None, None]},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quantise"], "there is no verb 'quantise': did you mean 'quantize'?"),
        (["zzz"], "the verbs are pull, quantize"),
        (["--json", "env"], "option --json belongs after a verb"),
        (["env", "--threads", "0"], "'0' is not a whole number from 1 to 1024"),
        (["env", "--seed", "-1"], "'-1' is not a whole number from 0"),
        (["env", "--seed", "x"], "'x' is not a whole number"),
        (["env", "--thread", "1"], "unrecognized arguments: --thread"),
        ([], "usage: latticeq VERB"),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys: Capture, words: list[str], message: str) -> None:
    assert main.main(words) == 2
    written = capsys.readouterr()
    assert message in written.err
    assert written.out == ""


def test_help_and_version_go_to_stdout(capsys: Capture) -> None:
    assert main.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in main.VERBS)
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("latticeq ")
    assert main.main(["env", "--help"]) == 0
    assert "--threads N" in capsys.readouterr().out


QUICK = """
import sys
from latticeq.cli.main import main
code = main(sys.argv[1:])
heavy = {"numpy", "numba", "scipy", "tokenizers", "safetensors"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""


@pytest.mark.parametrize("words", [["--help"], ["quantise"], ["--version"]])
def test_the_overview_is_quick(words: list[str]) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        done = command("-c", QUICK, *words)
        assert done.returncode in (0, 2), done.stderr
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", main.VERBS)
def test_usage_errors_of_a_verb_import_nothing_heavy(name: str) -> None:
    done = command("-c", QUICK, name, "--no-such-option")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", main.VERBS)
def test_the_table_and_the_verb_say_the_same(name: str, capsys: Capture) -> None:
    assert main.main([name, "--help"]) == 0
    assert " ".join(capsys.readouterr().out.split()).find(main.VERBS[name]) > 0


THREADS = """
import os, sys
from latticeq.cli import machine
machine.limit_threads({count})
import numba
print(numba.get_num_threads(), os.environ["OMP_WAIT_POLICY"], os.environ["OPENBLAS_NUM_THREADS"])
"""


def test_threads_are_set_before_the_libraries_load() -> None:
    script = THREADS.format(count=1)
    assert command("-c", script, NUMBA_NUM_THREADS="2").stdout == "1 passive 1\n"
    script = THREADS.format(count=None)
    assert command("-c", script, NUMBA_NUM_THREADS="1", OPENBLAS_NUM_THREADS="3").stdout == (
        "1 passive 3\n"
    )


def test_threads_of_a_program_that_has_loaded_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticeq import jit

    before = jit.threads()
    for variable in (*machine_module.THREAD_VARIABLES, "OMP_WAIT_POLICY"):
        monkeypatch.setenv(variable, os.environ.get(variable, "1"))
    try:
        assert machine_module.limit_threads(1) == jit.threads() == 1
    finally:
        jit.set_threads(before)


def test_a_reader_that_leaves_is_not_an_error() -> None:
    script = "import sys; from latticeq.cli.main import main; sys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1


def test_env_reports_this_machine(cache_folder: Path) -> None:
    (cache_folder / "file").write_bytes(b"12345")
    done = command("-m", "latticeq", "env", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["threads"] == 1
    assert result["cache_folder"] == str(cache_folder)
    assert result["cache_bytes"] >= 5
    assert 1 <= result["physical_cores"] <= result["logical_cores"]
    assert result["kernels"] in done.stderr
    assert all(
        f"extra     {extra}: {'installed' if there else 'not installed: pip install'}"
        in done.stderr
        for extra, there in result["extras"].items()
    )
