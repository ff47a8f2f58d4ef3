"""The verb ``quantize``: its numbers, its promises to write nothing or everything, its refusals."""

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latticeq.cli import machine, quantize
from latticeq.cli.main import _parser
from latticeq.model import quantize as library
from latticeq.model.gguf_import import import_gguf
from latticeq.model.loader import load
from latticeq.model.options import Options
from latticeq.model.source import _all_finite
from latticeq.storage.safetensors import SafetensorsWriter
from tests.tiny_gguf import write_tiny_model
from tests.tiny_llama import random_weights, write_folder
from tests.tiny_model import (
    Outcome,
    byte_config,
    latticeq,
    write_byte_model,
    write_byte_tokenizer,
)

Words = tuple[object, ...]


@pytest.fixture
def words(text: Path) -> Words:
    return ("--calibration", text, "--calibration-tokens", 512)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model folder that a test may break."""
    return write_byte_model(tmp_path / "model")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_defaults_are_those_of_the_library() -> None:
    args = _parser("quantize", quantize).parse_args(["src", "out"])
    assert quantize._options(args, longest=8192) == Options()
    given = {field.name for field in fields(Options)} - {"calibration_context"}
    assert given <= set(vars(args))


def test_the_result_counts_real_bytes(quantized: Outcome, packed: Path) -> None:
    result = quantized.result
    model = load(packed)
    assert result["bits_per_weight"] == pytest.approx(model.bits_per_weight)
    assert result["nbytes"] == (packed / "model.safetensors").stat().st_size
    assert result["folder_bytes"] == sum(path.stat().st_size for path in packed.iterdir())
    assert result["seconds"] > 0
    assert len(result["layers"]) == 14
    for layer in result["layers"]:
        assert 0 < layer["proxy_loss"] < 2 * layer["proxy_loss_plain"]
        assert 0 < layer["proxy_loss_rtn"] < 1
    mean = [np.mean([layer[key] for layer in result["layers"]]) for key in layer_losses()]
    assert mean[0] < mean[1] < mean[2]


def layer_losses() -> tuple[str, str, str]:
    return "proxy_loss", "proxy_loss_plain", "proxy_loss_rtn"


def test_people_see_the_cost_first_and_a_line_for_each_linear(quantized: Outcome) -> None:
    before, _, after = quantized.err.partition("layers.0.self_attn.q_proj")
    assert "estimates: " in before
    assert "of memory" in before
    assert "of disk" in before
    assert "loss " in after
    assert all(f"layers.1.{name} " in after for name in ("mlp.up_proj", "self_attn.o_proj"))
    assert "weights as" in after
    assert "Q4_0" in after
    assert quantized.out.count("\n") == 1


def test_dry_run_writes_nothing_and_predicts_the_bytes(
    model: Path, tmp_path: Path, words: Words, quantized: Outcome, packed: Path
) -> None:
    before = listing(tmp_path)
    done = latticeq("quantize", model, tmp_path / "out", *words, "--dry-run")
    assert done.code == 0, done.err
    assert listing(tmp_path) == before
    assert done.result["bits_per_weight"] == pytest.approx(quantized.result["bits_per_weight"])
    assert done.result["nbytes"] == load(packed).nbytes
    assert done.result["estimated_seconds"] >= 0
    assert done.result["estimated_memory_bytes"] > 10**8
    for part in ("layers.*.mlp.down_proj", "48 x 80", "Hadamard 80", "embed_tokens", "int8"):
        assert part in done.err


def test_dry_run_shows_where_the_rotation_is_only_in_blocks(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model", byte_config(intermediate_size=184))
    done = latticeq("quantize", model, tmp_path / "out", "--dry-run", "--feedback", "none")
    assert "block-diagonal Hadamard" in done.err


def test_resume_goes_on_to_the_same_bytes(
    source: Path, tmp_path: Path, words: Words, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(library, "quantize_block", interrupted_at(1))
        done = latticeq("quantize", source, out, *words)
    assert done.code == 130
    assert "with --resume to go on" in done.err
    assert not out.exists()
    assert (tmp_path / "out.partial").is_dir()

    done = latticeq("quantize", source, out, *words)
    assert done.code == 2
    assert "unfinished job; give --resume" in done.err
    done = latticeq("quantize", source, out, *words, "--resume", "--q", "14")
    assert done.code == 2
    assert "was started with options" in done.err

    with monkeypatch.context() as patch:
        patch.setattr(library, "quantize_block", only_block(1))
        done = latticeq("quantize", source, out, *words, "--resume")
    assert done.code == 0, done.err
    assert listing(tmp_path) == sorted(["out", *(f"out/{path.name}" for path in packed.iterdir())])
    assert (out / "model.safetensors").read_bytes() == (packed / "model.safetensors").read_bytes()


def interrupted_at(stop: int) -> Callable[..., Any]:
    original = library.quantize_block

    def quantize_block(index: int, *rest: Any) -> Any:
        if index == stop:
            raise KeyboardInterrupt
        return original(index, *rest)

    return quantize_block


def only_block(wanted: int) -> Callable[..., Any]:
    original = library.quantize_block

    def quantize_block(index: int, *rest: Any) -> Any:
        assert index == wanted
        return original(index, *rest)

    return quantize_block


def test_a_gguf_file_is_quantized_like_its_folder(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, text: Path
) -> None:
    source = write_tiny_model(tmp_path / "tiny.gguf", rng)
    words = ("--calibration", text, "--calibration-tokens", 256)
    folder = import_gguf(source, tmp_path / "folder", progress=False)
    assert latticeq("quantize", folder, tmp_path / "expected", *words).code == 0
    before = listing(tmp_path)
    dry = latticeq("quantize", source, tmp_path / "out", *words, "--dry-run")
    assert dry.code == 0, dry.err
    assert listing(tmp_path) == before

    with monkeypatch.context() as patch:
        patch.setattr(library, "quantize_block", interrupted_at(1))
        assert latticeq("quantize", source, tmp_path / "out", *words).code == 130
    kept = [path.name for path in tmp_path.iterdir() if path.name.startswith(".out.float32-")]
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr("latticeq.model.source.import_gguf", None)  # the conversion is used again
        done = latticeq("quantize", source, tmp_path / "out", *words, "--resume")
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny.gguf",
        "folder",
        "expected",
        "out",
    }
    got, expected = (tmp_path / name / "model.safetensors" for name in ("out", "expected"))
    assert got.read_bytes() == expected.read_bytes()


def test_a_refused_gguf_job_leaves_no_conversion(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_tiny_model(tmp_path / "tiny.gguf", rng)
    done = latticeq("quantize", source, tmp_path / "out", "--calibration", tmp_path / "no.txt")
    assert done.code == 2
    assert listing(tmp_path) == ["tiny.gguf"]


def test_signs_are_random_only_with_a_seed(source: Path, tmp_path: Path) -> None:
    seeds = []
    for name, words in (("plain", ()), ("signs", ("--seed", 0))):
        done = latticeq("quantize", source, tmp_path / name, "--feedback", "none", *words)
        assert done.code == 0, done.err
        config = json.loads((tmp_path / name / "config.json").read_text())
        entries = config["quantization_config"]["tensors"].values()
        seeds.append({entry["seed"] for entry in entries if entry["format"] == "voronoi"})
    assert seeds == [{None}, {0}]


def test_options_reach_the_file(source: Path, tmp_path: Path) -> None:
    words = ["--embedding", "keep", "--q", 6, "--k", 2, "--betas", "2.5,3.5", "--rotate", "none"]
    words += ["--selection", "first", "--feedback", "none"]
    done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 0, done.err
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    parameters = config["parameters"]
    assert (parameters["q"], parameters["k"], parameters["betas"]) == (6, 2, [2.5, 3.5])
    assert (parameters["selection"], parameters["rotate"]) == ("first", "none")
    assert "model.embed_tokens.weight" not in config["tensors"]
    assert done.result["layers"][0]["proxy_loss"] is None


def test_force_replaces_a_model_and_nothing_else(
    source: Path, tmp_path: Path, packed: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    done = latticeq("quantize", source, out, "--feedback", "none", "--force")
    assert done.code == 0, done.err
    assert done.result["layers"][0]["proxy_loss"] is None
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    done = latticeq("quantize", source, tmp_path / "letters", "--feedback", "none", "--force")
    assert done.code == 2
    assert "is no model folder" in done.err
    assert (tmp_path / "letters" / "mine.txt").read_text() == "dear"


def test_the_source_is_never_the_output(model: Path) -> None:
    before = listing(model.parent)
    for out in (model, model.parent):
        done = latticeq("quantize", model, out, "--feedback", "none", "--force")
        assert done.code == 2
    assert listing(model.parent) == before


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) - 1000])


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def weights_edited(edit: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def breaks(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        edit(weights)
        save_file(weights, folder / "model.safetensors")

    return breaks


def config_changed(**changes: object) -> Callable[[Path], None]:
    def breaks(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return breaks


def odd_columns(folder: Path) -> None:
    config = byte_config(intermediate_size=84)
    write_folder(folder, config, random_weights(config))
    write_byte_tokenizer(folder)


UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"

BROKEN: list[tuple[Callable[[Path], None], int, str]] = [
    (no_config, 1, "config.json: is missing"),
    (no_weights, 1, "model.safetensors"),
    (truncated, 1, "model.safetensors"),
    (no_tokenizer, 1, "tokenizer.json is missing"),
    (weights_edited(lambda w: w.update({UP: w[UP][:-1]})), 1, f"tensor {UP} has shape (79, 48)"),
    (weights_edited(lambda w: w.pop(UP)), 1, f"tensor {UP} of shape (80, 48) is missing"),
    (weights_edited(lambda w: np.put(w[UP], 99, np.nan)), 1, f"tensor {UP} holds NaN or infinite"),
    (weights_edited(lambda w: np.put(w[UP], 99, np.inf)), 1, f"tensor {UP} holds NaN or infinite"),
    (weights_edited(lambda w: np.put(w[NORM], 3, np.nan)), 1, f"tensor {NORM} holds NaN"),
    (config_changed(architectures=["GPT2LMHeadModel"]), 2, "GPT2LMHeadModel"),
    (config_changed(quantization_config={"quant_method": "gptq"}), 1, "gptq"),
    (odd_columns, 2, "needs a multiple of 8"),
]


@pytest.mark.parametrize(("breaks", "code", "message"), BROKEN)
def test_a_broken_source_is_refused(
    model: Path,
    tmp_path: Path,
    words: Words,
    breaks: Callable[[Path], None],
    code: int,
    message: str,
) -> None:
    breaks(model)
    before = listing(tmp_path)
    done = latticeq("quantize", model, tmp_path / "out", *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert listing(tmp_path) == before


def test_bfloat16_that_is_no_number_is_seen() -> None:
    bits = np.array([0x3F80, 0xFF7F, 0x0001, 0x8000], np.uint16)
    assert _all_finite(bits)
    for bad in (0x7F80, 0xFF80, 0x7FC0, 0xFFFF):
        assert not _all_finite(np.append(bits, np.uint16(bad)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--q", "99"], "q = 99"),
        (["--k", "0"], "k is 0"),
        (["--method", "pvq", "--bits", "9"], "bits is 9.0; it must be a number above 0, up to 8"),
        (["--method", "pvq", "--group", "32"], "this method codes blocks of 32"),
        (["--method", "pvq", "--gain-bits", "-1"], "gain_bits is -1"),
        (["--method", "gptq"], "invalid choice: 'gptq'"),
        (["--regime", "w+k"], "invalid choice: 'w+k'"),
        (["--betas", "3,x"], "'3,x' is neither 'tuned'"),
        (["--betas", "3,4"], "2 betas were given for k = 4"),
        (["--damping", "-1"], "damping is -1.0"),
        (["--rotate", "none", "--seed", "1"], "takes no seed"),
        (["--calibration-tokens", "1"], "calibration tokens"),
        (["--calibration-tokens", "100000"], "99840 were asked for"),
        (["--calibration", "no-such.txt"], "no-such.txt: cannot be read"),
    ],
)
def test_wrong_options_are_refused(
    model: Path, tmp_path: Path, words: Words, options: list[str], message: str
) -> None:
    before = listing(tmp_path)
    done = latticeq("quantize", model, tmp_path / "out", *words, *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert listing(tmp_path) == before


def test_what_is_no_model_is_refused(
    source: Path, packed: Path, text: Path, tmp_path: Path
) -> None:
    for given, code, message in (
        (tmp_path / "missing", 1, "config.json: is missing"),
        (tmp_path / "missing.gguf", 1, "missing.gguf"),
        (text, 2, "is a file; give a Hugging Face model folder or a .gguf"),
        (packed, 2, "is quantized already"),
    ):
        done = latticeq("quantize", given, tmp_path / "out")
        assert done.code == code
        assert message in done.err
    assert listing(tmp_path) == []


def test_an_existing_output_is_kept(source: Path, tmp_path: Path, words: Words) -> None:
    (tmp_path / "out").mkdir()
    done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 2
    assert "exists already; choose another folder or give --force" in done.err
    assert listing(tmp_path) == ["out"]


def test_a_small_disk_is_refused_before_it_is_full(
    source: Path, tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 1
    assert "has 1 MB free; the job needs" in done.err
    assert listing(tmp_path) == []


def test_a_full_disk_leaves_a_job_to_resume(
    source: Path, tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SafetensorsWriter.write

    def write(self: SafetensorsWriter, name: str, array: np.ndarray) -> None:
        if name.startswith("model.layers.1.mlp."):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, name, array)

    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsWriter, "write", write)
        done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 1
    assert "the disk is full" in done.err
    assert not (tmp_path / "out").exists()
    parts = {path.name for path in (tmp_path / "out.partial").iterdir()}
    assert parts == {"job.json", "ends", "block-0000"}
    assert latticeq("quantize", source, tmp_path / "out", *words, "--resume").code == 0


def test_too_little_memory_is_refused_early(
    source: Path, tmp_path: Path, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**8)
    done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 1
    assert "100.0 MB are available" in done.err
    assert listing(tmp_path) == []
    assert latticeq("quantize", source, tmp_path / "out", *words, "--dry-run").code == 0
    done = latticeq("quantize", source, tmp_path / "out", *words, "--force")
    assert done.code == 0, done.err
