"""Pyramid codes from the command line: every verb on one model, and an index that names no word."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tiny_model import latticeq

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantize a tiny model at a rate that is no whole number."""
    out = tmp_path_factory.mktemp("pvq") / "made"
    options = ("--method", "pvq", "--bits", 3.25, "--group", 8, "--regime", "w+kv")
    calibration = ("--calibration", text, "--calibration-tokens", 512)
    done = latticeq("quantize", source, out, *options, *calibration)
    assert done.code == 0, done.err
    assert (
        3.25 < done.result["bits_per_weight"] < 3.9
    )  # rows of 48 numbers have scales of their own
    return out


def test_a_dry_run_shows_how_bits_are_split(source: Path, tmp_path: Path) -> None:
    options = ("--method", "pvq", "--bits", 3.25, "--gain-bits", 2, "--dry-run")
    done = latticeq("quantize", source, tmp_path / "out", *options)
    assert done.code == 0, done.err
    assert "pvq group=16 pulses=30 (50 bits), gains 2 bits" in done.err


def test_every_verb_takes_the_folder(made: Path, text: Path) -> None:
    assert latticeq("verify", made).code == 0
    shown = latticeq("inspect", made)
    assert "pvq group=8 pulses=" in shown.err
    assert "bits 3.25, gain_bits None" in shown.err
    assert "shaping" not in shown.err
    losses = []
    for runtime in ("packed", "int8", "float32"):
        measured = ("--text", text, "--context", 64, "--windows", 2, "--runtime", runtime)
        done = latticeq("perplexity", made, *measured)
        assert done.code == 0, done.err
        losses.append(done.result["perplexity"])  # of a random model: large
    assert np.ptp(np.log(losses)) < 0.03 * np.log(losses[0])
    auto = latticeq("generate", made, "--prompt", "the ", "--max-tokens", 4)
    assert auto.code == 0, auto.err
    assert "runtime int8: pvq is not run as stored" in auto.err
    few = ("--prompt-tokens", 8, "--decode-tokens", 4, "--repeats", 1, "--no-peaks")
    bench = latticeq("bench", made, *few)
    assert bench.code == 0, bench.err


def test_an_index_that_names_no_word_is_an_error_with_the_tensor(
    made: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    for path in made.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    arrays = load_file(made / "model.safetensors")
    arrays[f"{DOWN}.index"][0, 3] = 255
    save_file(arrays, bad / "model.safetensors")
    done = latticeq("generate", bad, "--prompt", "the ")
    assert (done.code, done.out) == (1, "")
    assert f"tensor {DOWN}" in done.err
    assert "group 3 names no word" in done.err
