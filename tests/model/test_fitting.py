"""Scales fitted to a model: better on what is coded, the same each time, and in the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latticeq.codes.nested import NestedCode
from latticeq.errors import InputError
from latticeq.model.fitting import fit_to
from latticeq.model.loader import Weights, load, load_config
from latticeq.model.options import Options
from latticeq.model.quantize import quantize
from latticeq.quantizers.betas import mean_squared_error, tuned_betas
from tests.tiny_llama import random_weights
from tests.tiny_model import byte_config, write_byte_model

CONFIG = byte_config(
    "tied", hidden_size=64, intermediate_size=96, num_attention_heads=2, head_dim=32
) | {"num_key_value_heads": 1}
FITTED: dict[str, Any] = {
    "calibration_tokens": 256,
    "calibration_context": 64,
    "regime": "w+kv+a",
    "feedback": "ldlq",
    "betas": "fitted",
}
TUNED = tuned_betas(16, 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model whose down projections are all but empty: their blocks differ much in size."""
    folder = write_byte_model(tmp_path_factory.mktemp("fitting") / "source", CONFIG)
    weights = random_weights(CONFIG)
    for name in weights:
        if "down_proj" in name:
            weights[name] *= np.random.default_rng(0).uniform(size=weights[name].shape) < 0.02
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "out"
    quantize(source, out, **FITTED)
    return out


def quantization_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return dict(found["quantization_config"])


def test_each_kind_has_a_set_of_its_own(made: Path) -> None:
    sets = quantization_of(made)["scales"]
    assert set(sets) == set(Options(**FITTED).scale_kinds)
    assert len(set(map(tuple, sets.values()))) == len(sets)
    for betas in sets.values():
        assert len(betas) == 4
        assert betas == sorted(betas)
        np.testing.assert_allclose(betas, TUNED, rtol=0.5)
    assert tuple(sets["mlp.down_proj"]) != TUNED


def test_the_checkpoint_is_read_with_them(made: Path) -> None:
    found = quantization_of(made)
    sets = found["scales"]
    assert found["parameters"]["betas"] == "fitted"
    assert found["activations"]["betas"] == sets["activations"]
    assert found["kv_cache"]["keys"]["betas"] == sets["keys"]
    assert found["kv_cache"]["values"]["betas"] == sets["values"]
    weights = Weights(made, load_config(made))
    for name in weights.entries:
        kind = name.split(".", 3)[-1].removesuffix(".weight")
        if kind in sets:
            assert list(weights.packed(name).unpack().code.betas) == sets[kind]
    assert np.isfinite(load(made).logits(np.arange(9))).all()


@pytest.mark.parametrize("regime", ["w", "w+kv"])
def test_only_what_is_coded_has_scales(source: Path, tmp_path: Path, regime: str) -> None:
    options = FITTED | {"regime": regime, "feedback": "none", "key_offset": False}
    quantize(source, tmp_path / "out", **options)
    found = quantization_of(tmp_path / "out")
    assert set(found["scales"]) == set(Options(**options).scale_kinds)
    assert (found["calibration"] is None) == (regime == "w")


def test_the_same_bytes_come_again_and_after_an_interruption(
    source: Path, made: Path, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stops(wanted: str, count: int) -> Any:
        left = [count]

        def report(event: str, value: object) -> None:
            left[0] -= event == wanted
            if not left[0]:
                raise StopError(value)

        return report

    out = tmp_path / "out"
    for event, count in (("fit", 1), ("fit", 8), ("layer", 3), ("stage", 6)):
        with pytest.raises(StopError):
            quantize(source, out, resume=True, report=stops(event, count), **FITTED)
    quantize(source, out, resume=True, **FITTED)
    for name in ("config.json", "model.safetensors"):
        assert (out / name).read_bytes() == (made / name).read_bytes()


def test_without_fitting_there_are_no_sets(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", feedback="none")
    assert quantization_of(tmp_path / "out")["scales"] is None
    quantize(source, tmp_path / "int4", feedback="none", method="int4", betas="fitted")
    assert quantization_of(tmp_path / "int4")["scales"] is None


@pytest.mark.parametrize("shape", ["Gaussian", "heavy", "box", "few", "none", "alike"])
def test_no_set_is_worse_than_the_tuned_one(shape: str) -> None:
    rng = np.random.default_rng(1)
    blocks = {
        "Gaussian": rng.normal(size=(4096, 8)),
        "heavy": rng.standard_t(3, size=(4096, 8)),
        "box": rng.uniform(-1.7, 1.7, size=(4096, 8)),
        "few": rng.normal(size=(3, 8)),
        "none": np.empty((0, 8)),
        "alike": np.ones((100, 8)),
    }[shape].astype(np.float32)
    found = fit_to(blocks, Options())
    assert list(found) == sorted(set(found))
    if not len(blocks):
        assert found == NestedCode(16, TUNED).betas
        return
    errors = [mean_squared_error(NestedCode(16, betas), blocks) for betas in (found, TUNED)]
    assert errors[0] <= errors[1]
    if shape in {"heavy", "box"}:
        assert errors[0] < 0.97 * errors[1]


def test_sets_may_be_given_for_each_kind(source: Path, tmp_path: Path, made: Path) -> None:
    sets = {kind: tuple(betas) for kind, betas in quantization_of(made)["scales"].items()}
    quantize(source, tmp_path / "out", **(FITTED | {"betas": sets}))
    tensors = [load_file(folder / "model.safetensors") for folder in (made, tmp_path / "out")]
    assert all(np.array_equal(array, tensors[1][name]) for name, array in tensors[0].items())
    del sets["keys"]
    with pytest.raises(InputError, match="betas has no set for 'keys'"):
        Options(**(FITTED | {"betas": sets})).run_coding()


def test_values_are_coded_as_they_are_if_asked_for(source: Path, tmp_path: Path) -> None:
    options = FITTED | {"regime": "w+kv", "rotate_values": False}
    quantize(source, tmp_path / "out", **options)
    cache = quantization_of(tmp_path / "out")["kv_cache"]
    assert (cache["rotate_keys"], cache["rotate_values"]) == (True, False)
    kv = load(tmp_path / "out").kv
    assert kv is not None
    assert not kv.rotate_values
