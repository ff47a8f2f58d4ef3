"""``bench DIR --threads-list`` and ``--against``: fresh processes, a llama-bench."""

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from latticeq.cli import bench_against
from latticeq.cli.bench_process import Finished, own_result, run_process
from latticeq.errors import InputError, LatticeqError
from tests.tiny_model import latticeq

SIZES = ("--prompt-tokens", 8, "--decode-tokens", 4)

FAKE = """#!{python}
import json, os, sys
assert not {{"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}} & set(os.environ)
words = sys.argv[1:]
options = dict(zip(words[::2], words[1::2]))
assert options["-r"] == "1" and options["-o"] == "json"
speed = 100.0 * int(options["-t"])
same = {{"model_type": "llama 1B Q4_0", "n_threads": int(options["-t"]), "build_commit": "abc"}}
tests = []
for depth in map(int, options["-d"].split(",")):
    same["n_depth"] = depth
    part = 1 if depth else 2
    tests.append(same | {{"n_prompt": int(options["-p"]), "n_gen": 0, "avg_ts": 2 * part * speed}})
    tests.append(same | {{"n_prompt": 0, "n_gen": int(options["-n"]), "avg_ts": part * speed}})
print(json.dumps(tests, indent=2))
"""


def _program(path: Path, text: str) -> Path:
    path.write_text(text.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    if os.name == "nt":
        pytest.skip("a script with a first line that names its interpreter")
    return _program(tmp_path / "llama-bench", FAKE)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(96))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let our own runs be made up; return the words they were asked with."""
    asked: list[list[str]] = []

    def run(words: list[str], show_errors: bool = True) -> tuple[dict[str, Any], Finished]:
        asked.append(words)
        speed = 150.0 * int(words[words.index("--threads") + 1]) + len(asked) % 2
        numbers = {"prefill_tokens_per_s": 5 * speed, "decode_tokens_per_s": speed}
        return numbers | {"time_to_first_token_s": 0.25}, Finished(0, "", "", 64.0)

    monkeypatch.setattr(bench_against, "own_result", run)
    return asked


def test_in_turn_with_another_program(
    packed: Path, fake: Path, gguf: Path, quick: list[list[str]]
) -> None:
    words = ("--against", fake, "--gguf", gguf, "--threads-list", "1,2", "--repeats", 1)
    done = latticeq("bench", packed, *words, *SIZES)
    assert done.code == 0, done.err
    assert len(quick) == 1 + 2 * bench_against.MIN_ALTERNATIONS
    assert all("--no-peaks" in asked for asked in quick)
    one, two = done.result["runs"]
    assert (one["threads"], two["threads"]) == (1, 2)
    assert len(two["ours"]["decode"]["runs"]) == 5
    assert two["theirs"]["decode"]["median"] == 200
    assert two["theirs"]["first"]["median"] == 8 / 800
    assert two["ratios"]["decode"] == pytest.approx(1.5, abs=0.01)
    assert two["ratios"]["first"] == pytest.approx(0.25 / (8 / 800))
    assert two["ours"]["decode"]["lowest"] <= two["ours"]["decode"]["median"]
    assert two["theirs"]["peak_rss_mib"]["median"] > 1
    assert done.result["gguf_bytes"] == 100
    assert done.result["against"] == {"model_type": "llama 1B Q4_0", "build_commit": "abc"}
    for said in ("llama.cpp", "ratio", "2 threads", "5 of 5", "llama 1B Q4_0"):
        assert said in done.err


def test_one_real_run_of_ours(packed: Path, fake: Path) -> None:
    words = ["bench", str(packed), "--no-peaks", "--repeats", "1", *map(str, SIZES)]
    result, done = own_result([*words, "--threads", "1"], show_errors=False)
    assert result["threads"] == 1
    assert "read_bandwidth_gb_s" not in result
    assert done.peak_rss_mib is None or done.peak_rss_mib > 50
    with pytest.raises(LatticeqError, match="no/model"):
        own_result(["bench", "no/model"], show_errors=False)


def test_several_numbers_of_threads(packed: Path) -> None:
    done = latticeq("bench", packed, *SIZES, "--threads-list", "1", "--repeats", 1)
    assert done.code == 0, done.err
    (run,) = done.result["runs"]
    assert (run["threads"], run["prompt_tokens"], run["repeats"]) == (1, 8, 1)
    assert run["int8_fraction"] > 0
    assert "of int8 peak" in done.err


OTHER_OUTPUT = [
    ("error: unknown argument: -o\n", "JSONDecodeError"),
    ("[]\n", "KeyError"),
    (json.dumps([{"n_prompt": 8, "n_gen": 0, "avg_ts": 3.0}]), "KeyError"),
    (json.dumps([{"n_prompt": 8, "n_gen": 0}, {"n_prompt": 0, "n_gen": 4}]), "KeyError"),
    (json.dumps({"n_prompt": 8}), "TypeError"),
    (
        json.dumps(
            [{"n_prompt": p, "n_gen": 4 - p // 2, "n_depth": 8 - p, "avg_ts": 0.0} for p in (8, 0)]
        ),
        "speeds of zero",
    ),
    ("", r"\(nothing\)"),
]


@pytest.mark.parametrize(("out", "message"), OTHER_OUTPUT)
def test_output_that_is_not_understood(out: str, message: str) -> None:
    done = Finished(0, out, "", None)
    with pytest.raises(LatticeqError, match=f"(?s)llama-bench is not understood.*{message}") as e:
        bench_against.parse_llama_bench(done, 8, 4)
    assert out[:20].strip() in str(e.value)


def test_lines_before_the_list_are_passed_over() -> None:
    tests = [
        {"n_prompt": 8, "n_gen": 0, "n_depth": 0, "avg_ts": 3},
        {"n_prompt": 0, "n_gen": 4, "n_depth": 8, "avg_ts": 2},
    ]
    out = "found 1 device [cpu]:\n" + json.dumps(tests, indent=2)
    assert bench_against.parse_llama_bench(Finished(0, out, "", None), 8, 4) == (3, 2, {})


def test_a_program_that_fails(
    packed: Path, tmp_path: Path, gguf: Path, fake: Path, quick: list[list[str]]
) -> None:
    bad = _program(tmp_path / "bad", "#!{python}\nimport sys\nsys.exit('no such model')\n")
    done = latticeq("bench", packed, "--against", bad, "--gguf", gguf)
    assert done.code == 1
    assert "bad ended with exit code 1; it wrote\nno such model" in done.err
    noise = tmp_path / "noise"
    noise.write_bytes(b"\x7fELF, but no program")
    noise.chmod(0o755)
    assert latticeq("bench", packed, "--against", noise, "--gguf", gguf).code == 2


def test_refusals(packed: Path, tmp_path: Path, fake: Path, gguf: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    for words, message in (
        (("--against", fake), "--against is given without --gguf"),
        (("--gguf", gguf), "--gguf is given without --against"),
        (("--against", tmp_path / "none", "--gguf", gguf), "none: there is no such file"),
        (("--against", plain, "--gguf", gguf), "plain: it is not executable"),
        (("--against", fake, "--gguf", tmp_path / "none"), "none: there is no such file"),
        (("--against", fake, "--gguf", plain), "plain: it is not a GGUF file"),
        (("--threads-list", "1,x"), "is not a list of whole numbers"),
    ):
        done = latticeq("bench", packed, *words)
        assert (done.code, done.out) == (2, ""), words
        assert message in done.err


def test_processes(tmp_path: Path) -> None:
    done = run_process([sys.executable, "-c", "import sys; print(1); sys.exit('two')"])
    assert (done.code, done.out.strip(), done.err.strip()) == (1, "1", "two")
    with pytest.raises(InputError, match="cannot be run"):
        run_process([str(tmp_path / "missing")])
