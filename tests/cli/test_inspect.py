"""The verb ``inspect`` counts what is there, packed or float."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from latticeq.model.loader import load
from latticeq.storage.checkpoint import read_packed
from latticeq.storage.safetensors import TensorFolder
from tests.tiny_model import latticeq

UP = "model.layers.0.mlp.up_proj.weight"


def test_a_packed_folder(packed: Path) -> None:
    done = latticeq("inspect", packed)
    assert done.code == 0, done.err
    result, model = done.result, load(packed)
    assert (result["method"], result["regime"]) == ("nestquant", "w")
    assert result["bits_per_weight"] == pytest.approx(model.bits_per_weight)
    assert result["nbytes"] == (packed / "model.safetensors").stat().st_size
    matrices = [tensor for tensor in result["tensors"] if len(tensor["shape"]) == 2]
    assert sum(tensor["nbytes"] for tensor in matrices) == model.nbytes
    assert len(matrices) == 15
    assert result["calibration"]["tokens"] == 512
    for words in (
        "nestquant, regime w, format version 1",
        "512 tokens of text.txt in windows of 256",
        "Hadamard 48 = 12 x 4; Hadamard 80 = 20 x 4",
        "numpy ",
        "layers.*.mlp.up_proj",
        "q=16 k=4",
    ):
        assert words in done.err
    assert UP not in done.err


def test_what_runs_and_what_entropy_coding_would_save(packed: Path) -> None:
    done = latticeq("inspect", packed)
    result = done.result
    assert result["bits_per_weight"] - 0.25 < result["entropy_coded_bits_per_weight"]
    assert result["entropy_coded_bits_per_weight"] <= result["bits_per_weight"]
    cache = load(packed).new_cache(1)
    assert result["cache_nbytes_per_token"] == cache.nbytes_per_token
    assert (result["cache_bits"], result["activation_bits"]) == (16, 32)
    assert f"{cache.nbytes_per_token} bytes a token" in done.err


def test_the_use_of_scales_is_that_of_the_digits(packed: Path) -> None:
    shares = latticeq("inspect", packed).result["scale_shares"]
    assert len(shares) == 7
    config = json.loads((packed / "config.json").read_text("utf-8"))
    entries = config["quantization_config"]["tensors"]
    with TensorFolder(packed) as folder:
        index = [
            read_packed(folder, name, entries[name]).unpack().scale_index
            for name in (UP, UP.replace(".0.", ".1."))
        ]
    counts = np.bincount(np.concatenate(index).reshape(-1), minlength=4)
    assert shares["layers.*.mlp.up_proj"] == pytest.approx(counts / counts.sum())


def test_every_tensor_on_request(packed: Path) -> None:
    done = latticeq("inspect", packed, "--tensors")
    assert all(tensor["name"] in done.err for tensor in done.result["tensors"])
    assert UP in done.err


def test_a_float_folder(source: Path) -> None:
    done = latticeq("inspect", source)
    assert done.code == 0, done.err
    assert done.result["bits_per_weight"] == 32
    assert done.result["method"] is None
    assert done.result["scale_shares"] == {}
    assert "none: float weights" in done.err


def test_what_cannot_be_inspected(packed: Path, tmp_path: Path) -> None:
    done = latticeq("inspect", tmp_path / "missing")
    assert (done.code, done.out) == (1, "")
    assert "config.json: is missing" in done.err
    broken = tmp_path / "broken"
    shutil.copytree(packed, broken)
    config = json.loads((broken / "config.json").read_text("utf-8"))
    config["quantization_config"]["format_version"] = 99
    (broken / "config.json").write_text(json.dumps(config), "utf-8")
    done = latticeq("inspect", broken)
    assert (done.code, done.out) == (1, "")
    assert "has format version 99" in done.err
