"""``latticeq bench accuracy``: rows that can be measured, figures kept, a report of them."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from latticeq import PVQ, NestQuant
from latticeq.cli import bench_accuracy, bench_distortion
from latticeq.cli.accuracy_grid import GRID, QUICK, chosen_rows
from latticeq.cli.comparison import Comparison
from latticeq.errors import InputError
from latticeq.gpu.device import missing
from latticeq.model.options import Options
from tests.tiny_llama import random_weights
from tests.tiny_model import byte_config, latticeq, write_byte_model

TEXT = "".join(chr(97 + i * i % 26) for i in range(4000))
PAIRS = "kv-nest-ldlq,kv-nest-ldlq-values-plain,a-nest,a-nest-fitted"
ROWS = f"float32,w-nest-none,w-int4-none,{PAIRS},a-nest-plain-none"


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """Return a command that measures a tiny model."""
    config = byte_config("tied", num_hidden_layers=1)
    source = write_byte_model(tmp_path / "source", config)
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    options = ("--context", 64, "--windows", 2, "--calibration-tokens", 256)
    where = ("--text", text, "--calibration", text, "--work", tmp_path / "work")
    return ["bench", "accuracy", source, *options, *where]


def test_every_row_can_be_quantized() -> None:
    assert len({row.name for row in GRID}) == len(GRID)
    for row in GRID:
        Options(**row.options).quantizer()
    assert set(QUICK) <= {row.name for row in GRID}


def test_patterns_choose_rows() -> None:
    assert [row.name for row in chosen_rows(["w-nest-*", "float32"])] == [
        "float32",
        "w-nest-none",
        "w-nest-ldlq",
        "w-nest-qa-ldlq",
        "w-nest-fitted-qa-ldlq",
    ]
    with pytest.raises(InputError, match="no row is called 'w-nest'"):
        chosen_rows(["w-nest"])


def test_rows_are_measured_once_and_reported(words: list[object], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first = latticeq(*words, "--rows", "float32,w-nest-none", "--full")
    assert first.code == 0, first.err
    kept = tmp_path / "work/results/w-nest-none.json"
    figures = json.loads(kept.read_text("utf-8"))
    assert len(figures["perplexity"]["window_losses"]) == 2
    whole = json.loads((tmp_path / "work/results/float32.json").read_text("utf-8"))
    assert len(whole["perplexity"]["window_losses"]) == 4000 // 64  # a headline row
    assert not list((tmp_path / "work/models").iterdir())  # measured, and no longer needed
    stamp = kept.stat().st_mtime_ns

    report = tmp_path / "accuracy.md"
    done = latticeq(*words, "--rows", ROWS, "--report", report)
    assert done.code == 0, done.err
    assert kept.stat().st_mtime_ns == stamp
    assert "6 of 8 rows to measure" in done.err
    written = report.read_text("utf-8")
    for row in ROWS.split(",")[1:]:
        assert f"`{row}`" in written
        perplexity = done.result["rows"][row]["perplexity"]["perplexity"]
        assert f"| {perplexity:.3f} |" in written
    assert f"| {done.result['rows']['kv-nest-ldlq']['cache_bits']:.3f} |" in written
    assert "## What fitted scales gain" in written
    assert "| weights, cache and activations | " in written
    assert "## Rotating values" in written
    assert (tmp_path / "accuracy-perplexity.svg").read_text("utf-8").startswith("<?xml")


def test_the_report_has_rates_lengths_and_splits(
    words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    few = [("NestQuant", "NestQuant", NestQuant()), ("PVQ", "PVQ", PVQ())]
    monkeypatch.setattr(bench_distortion, "methods", lambda: few)
    work = tmp_path / "work"
    work.mkdir()
    for name, given in (("lengths", [words[2], "--group", 8]), ("distortion", ["--size", 128])):
        measured = latticeq("bench", name, *given)
        assert measured.code == 0, measured.err
        (work / f"{name}.json").write_text(measured.out, "utf-8")
    report = tmp_path / "accuracy.md"
    done = latticeq(*words, "--rows", "float32,w-pvq2-ldlq,w-pvq5-ldlq", "--report", report)
    assert done.code == 0, done.err
    written = report.read_text("utf-8")
    rates = written[written.index("## PVQ at any rate") :]
    bits = [done.result["rows"][f"w-pvq{n}-ldlq"]["bits_per_weight"] for n in (2, 5)]
    assert 2 < bits[0] < bits[1]
    assert rates.index(f"| {bits[0]:.3f} |") < rates.index(f"| {bits[1]:.3f} |")
    assert "| `mlp.down_proj` |" in written
    assert "| 4.25 | 58 |" in written[written.index("## How PVQ splits its bits") :]
    for name in ("lengths", "distortion"):
        assert (tmp_path / f"accuracy-{name}.svg").read_text("utf-8").startswith("<?xml")
    for content in ("", "no JSON", '{"rows": []}'):
        (work / "distortion.json").write_text(content, "utf-8")
        done = latticeq(*words, "--rows", "float32", "--report", report)
        assert (done.code, done.out) == (1, "")
        assert "make it again: latticeq bench distortion --json" in done.err


def test_figures_of_another_text_are_not_mixed(words: list[object], tmp_path: Path) -> None:
    assert latticeq(*words, "--rows", "float32").code == 0
    (tmp_path / "text.txt").write_text(TEXT[1:], "utf-8")
    done = latticeq(*words, "--rows", "float32")
    assert done.code == 2
    assert "was measured with text_sha256" in done.err


def figures_of(folder: Path, row: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"work/results/{row}.json").read_text("utf-8"))
    return found


def test_more_windows_are_measured_of_what_was_kept(words: list[object], tmp_path: Path) -> None:
    row, whole = "w-published-ldlq", 4000 // 64
    assert latticeq(*words, "--rows", row, "--keep").code == 0
    first = figures_of(tmp_path, row)
    assert first["perplexity"]["windows"] == 2
    again = latticeq(*words, "--rows", row, "--full")
    assert again.code == 0, again.err
    assert "which was kept" in again.err
    more = figures_of(tmp_path, row)
    assert more["quantize"] == first["quantize"]
    losses = more["perplexity"]["window_losses"]
    assert (len(losses), losses[:2]) == (whole, first["perplexity"]["window_losses"])
    assert (tmp_path / f"work/models/{row}").is_dir()  # it was kept, and stays
    for extra in ([], ["--full"]):  # the whole text is enough for either
        done = latticeq(*words, "--rows", row, *extra)
        assert "rows to measure" not in done.err
    assert figures_of(tmp_path, row) == more


@pytest.mark.parametrize("row", ["float32", "w-nest-none"])
def test_measured_windows_outlast_an_interruption(
    words: list[object], tmp_path: Path, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert latticeq(*words, "--rows", row).code == 0
    whole = figures_of(tmp_path, row)["perplexity"]["window_losses"]
    kept = tmp_path / f"work/results/{row}.json"
    kept.unlink()

    def interrupted(self: object, window: tuple[float, float]) -> None:
        add(self, window)
        raise KeyboardInterrupt

    add = bench_accuracy._Begun.add
    with monkeypatch.context() as patch:
        patch.setattr(bench_accuracy._Begun, "add", interrupted)
        done = latticeq(*words, "--rows", row)
    assert (done.code, kept.exists()) == (130, False)
    begun = json.loads((tmp_path / f"work/models/{row}.json").read_text("utf-8"))
    assert [mean for mean, _ in begun["windows"]] == whole[:1]
    elsewhere = bench_accuracy._Begun(
        tmp_path / f"work/models/{row}.json", begun["settings"], ["another"]
    )
    assert (elsewhere.windows, elsewhere.quantize) == ([], begun["quantize"])

    measured: list[object] = []
    monkeypatch.setattr(
        bench_accuracy._Begun,
        "add",
        lambda self, window: (measured.append(window), add(self, window)),
    )
    done = latticeq(*words, "--rows", row)
    assert done.code == 0, done.err
    assert len(measured) == 1
    assert figures_of(tmp_path, row)["perplexity"]["window_losses"] == whole
    assert not list((tmp_path / "work/models").iterdir())


@pytest.mark.parametrize("damage", ["options", "bytes", "gone"])
def test_what_was_kept_must_be_the_row(words: list[object], tmp_path: Path, damage: str) -> None:
    row, folder = "w-nest-none", tmp_path / "work/models/w-nest-none"
    assert latticeq(*words, "--rows", row, "--keep").code == 0
    first = figures_of(tmp_path, row)
    if damage == "options":
        path = tmp_path / "work/results/w-nest-none.json"
        assert latticeq(*words, "--rows", "w-int4-none", "--keep").code == 0
        shutil.rmtree(folder)
        (folder.parent / "w-int4-none").rename(folder)
        assert path.is_file()
    elif damage == "bytes":
        (folder / "model.safetensors").write_bytes(b"no weights")
    else:
        shutil.rmtree(folder)
    done = latticeq(*words, "--rows", row, "--windows", 3)
    assert done.code == 0, done.err
    assert "which was kept" not in done.err
    found = figures_of(tmp_path, row)
    assert found["perplexity"]["windows"] == 3
    assert found["perplexity"]["window_losses"][:2] == first["perplexity"]["window_losses"]


def test_source_models_are_not_mixed(words: list[object], tmp_path: Path) -> None:
    assert latticeq(*words, "--rows", "float32").code == 0
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "source", moved)
    os.utime(moved / "model.safetensors", (1, 1))
    words[2] = moved
    done = latticeq(*words, "--rows", "float32")
    assert (done.code, "rows to measure" in done.err) == (0, False)

    other = byte_config("tied", num_hidden_layers=1)
    save_file(random_weights(other, seed=5), moved / "model.safetensors")
    done = latticeq(*words, "--rows", "w-nest-none")
    assert done.code == 2
    assert "was measured with model" in done.err

    path = tmp_path / "work/results/float32.json"
    figures = figures_of(tmp_path, "float32")
    figures["settings"]["source"] = figures["settings"].pop("model")[::-1]
    path.write_text(json.dumps(figures), "utf-8")
    assert latticeq(*words, "--rows", "float32").code == 0  # nothing is known of its contents
    for weights in moved.glob("*.safetensors"):
        weights.unlink()
    done = latticeq(*words, "--rows", "float32")
    assert (done.code, "has no weights" in done.err) == (1, True)


def test_what_is_missing_is_said(words: list[object], tmp_path: Path) -> None:
    done = latticeq(*words, "--rows", "nothing")
    assert (done.code, "no row is called 'nothing'" in done.err) == (2, True)
    if missing():
        done = latticeq(*words, "--rows", "float32", "--device", "gpu")
        assert (done.code, missing() in done.err) == (1, True)
        assert not (tmp_path / "work").exists()
    (tmp_path / "text.txt").unlink()
    done = latticeq(*words, "--rows", "float32")
    assert (done.code, "cannot be read" in done.err) == (2, True)


def test_rows_that_no_gpu_runs_are_refused_before_any_is_quantized(
    words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_accuracy, "_devices", lambda args: ["a GPU"])
    rows = "w-nest-none,w-int4-none,kv-nest-ldlq,kv-pvq-ldlq,a-mxfp4-none"
    done = latticeq(*words, "--rows", rows, "--device", "gpu")
    assert (done.code, "cannot measure the rows kv-pvq-ldlq, a-mxfp4-none (" in done.err) == (
        2,
        True,
    )
    assert not (tmp_path / "work/models").exists()


@pytest.mark.gpu
@pytest.mark.skipif(missing() is not None, reason="there is no GPU")
def test_a_gpu_measures_what_the_cpu_does(words: list[object], tmp_path: Path) -> None:
    rows = ["float32", "w-nest-none", "w-int4-none", "w-pvq-none", "kv-nest-ldlq", "a-nest"]
    done = latticeq(*words, "--rows", ",".join(rows), "--device", "gpu", "--keep")
    assert done.code == 0, done.err
    assert all(done.result["rows"][row]["devices"] for row in rows)
    for row in rows:
        (tmp_path / f"work/results/{row}.json").unlink()
    on_cpu = latticeq(*words, "--rows", ",".join(rows))
    assert on_cpu.code == 0, on_cpu.err
    assert on_cpu.err.count("which was kept") == len(rows) - 1
    for row in rows:
        found, wanted = (some.result["rows"][row]["perplexity"] for some in (done, on_cpu))
        is_coded = row in ("kv-nest-ldlq", "a-nest")  # a digit that tips counts more
        assert found["perplexity"] == pytest.approx(
            wanted["perplexity"], rel=1e-2 if is_coded else 1e-4
        )


def test_gaps_are_paired() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(3, 0.5, 20)
    own = wanted + 0.1 + rng.normal(0, 0.01, 20)
    found = Comparison(list(own), list(wanted))
    assert math.isclose(found.perplexity, math.exp(own.mean()))
    assert math.isclose(found.gap, math.exp(own.mean()) - math.exp(wanted.mean()))
    error = (own - wanted).std(ddof=1) / math.sqrt(20)
    assert math.isclose(found.stderr, found.perplexity * error)
    assert found.stderr < 0.1 * found.perplexity * own.std() / math.sqrt(20)
