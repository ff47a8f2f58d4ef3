"""Every method in every regime: through the disk, and what its codes cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError, InputError
from latticeq.linear.coded import CodedLinear
from latticeq.model.builtin_text import heldout_text
from latticeq.model.loader import load
from latticeq.model.options import Options
from latticeq.model.quantize import quantize
from tests.tiny_llama import random_ids
from tests.tiny_model import byte_config, write_byte_model

SMALL: dict[str, Any] = {"calibration_tokens": 256, "calibration_context": 64}
CONFIG = byte_config(
    "tied", hidden_size=64, intermediate_size=96, num_attention_heads=2, head_dim=32
) | {"num_key_value_heads": 1}
IDS = random_ids(CONFIG, 48)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("regimes") / "source", CONFIG)


def distance(source: Path, out: Path) -> float:
    """Return the relative error of the logits."""
    wanted, found = load(source).logits(IDS), load(out).logits(IDS)
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("method", ["nestquant", "pvq", "int4", "nf4", "mxfp4", "nvfp4"])
def test_each_regime_costs_more_than_the_one_before(
    source: Path, tmp_path: Path, method: str
) -> None:
    lost = []
    for regime in ("w", "w+kv", "w+kv+a"):
        out = tmp_path / regime
        quantize(source, out, method=method, regime=regime, feedback="ldlq", **SMALL)
        lost.append(distance(source, out))
        model = load(out)
        assert (model.kv is not None) == (regime != "w")
        linears = model.blocks[0].linears.values()
        assert all(isinstance(f, CodedLinear) == (regime == "w+kv+a") for f in linears)
        cache = model.new_cache(48)
        assert cache.bits_per_entry < (33 if regime == "w" else 6)
        model.prefill(IDS, cache)
        steps = load(out)
        one = steps.new_cache(48)
        for token in IDS[:5]:
            last = steps.decode_step(int(token), one)
        wanted = model.logits(IDS[:5])[-1]
        # A token alone meets weights as int8, and a code may round a last bit to another point.
        assert np.square(last - wanted).sum() < 0.05 * np.square(wanted).sum()
    assert 0 < lost[0] < lost[2] < 1
    assert lost[1] < lost[2]


def test_what_is_coded_is_in_the_configuration(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize(source, out, regime="w+kv+a", q=14, betas="published", **SMALL)
    found = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]
    assert (found["activations"]["method"], found["activations"]["q"]) == ("nestquant", 14)
    wanted = [np.float32(s / 14) for s in (3.47, 4.74, 6.90, 18.11)]
    assert found["activations"]["betas"] == wanted
    cache = found["kv_cache"]
    assert cache["key_offset"] is True
    assert cache["keys"]["betas"] != cache["values"]["betas"]
    offset = load(out).kv
    assert offset is not None
    assert offset.key_offset is not None
    assert offset.key_offset.shape == (2, 1, 32)
    plain = quantize(source, tmp_path / "plain", regime="w+kv", key_offset=False, **SMALL)
    assert plain.bits_per_weight > 4
    kv = load(tmp_path / "plain").kv
    assert kv is not None
    assert kv.key_offset is None


@pytest.mark.parametrize("form", ["isotropic", "diagonal", "full", "general"])
def test_minding_the_activations_code_helps(source: Path, tmp_path: Path, form: str) -> None:
    options = SMALL | {"regime": "w+kv+a", "q": 8, "smoothing": 0.0, "calibration_tokens": 2048}
    quantize(source, tmp_path / "plain", feedback="none", **options)
    quantize(source, tmp_path / "aware", feedback="qa-ldlq", qa_form=form, **options)
    model = load(source)
    ids = model.tokenizer.tokenize(heldout_text()[:150])
    wanted = model.logits(ids)
    errors = [
        np.square(load(tmp_path / name).logits(ids) - wanted).sum() for name in ("plain", "aware")
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activations": {"method": "e9"}}, "activations.*method must be one of nestquant"),
        ({"activations": {"method": "nestquant", "q": 16, "betas": [-1]}}, "positive"),
        ({"activations": {"method": "nestquant", "q": True, "betas": [1]}}, "q is True"),
        ({"activations": {"method": "mxfp4", "group": 7}}, "activations"),
        ({"activations": {"method": "pvq", "group": 16, "pulses": 0, "levels": [1]}}, "pulses"),
        ({"activations": {"method": "pvq", "group": 16, "pulses": 9, "levels": [2, 1]}}, "rise"),
        ({"activations": {"method": "pvq", "group": 16, "pulses": 9}}, "levels"),
        ({"activations": [1]}, "activations"),
        ({"kv_cache": {"keys": {}}}, "kv_cache.*must have keys, values"),
        ({"kv_cache": 3}, "kv_cache"),
    ],
)
def test_a_lying_configuration_is_refused(
    source: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    out = tmp_path / "out"
    quantize(source, out, feedback="none")
    path = out / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["quantization_config"] |= change
    path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(FormatError, match=words):
        load(out).logits(IDS)


@pytest.mark.parametrize("value", ["missing", "extra", "shape", "NaN"])
def test_mean_keys_must_be_there(source: Path, tmp_path: Path, value: str) -> None:
    from safetensors.numpy import load_file, save_file

    out = tmp_path / "out"
    quantize(source, out, regime="w+kv", feedback="none", key_offset=value != "extra", **SMALL)
    name = "model.layers.1.self_attn.key_offset"
    arrays = load_file(out / "model.safetensors")
    if value == "missing":
        del arrays[name]
    elif value == "NaN":
        arrays[name] = np.full((1, 32), np.nan, np.float32)
    else:
        arrays[name] = np.zeros((1, 31), np.float32)
    save_file(arrays, out / "model.safetensors")
    with pytest.raises(FormatError, match="key_offset"):
        load(out)


@pytest.mark.parametrize(
    "options",
    [
        {"regime": "a"},
        {"method": "int3"},
        {"feedback": "gptq"},
        {"qa_form": "isotropic"},
        {"qa_strength": 1.5},
        {"smoothing": -0.1},
        {"smoothing": float("nan")},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(options)))):
        Options(**options)
