"""A Qwen2 with its biases and a Llama 3.1 with its scaling, quantized in every regime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latticeq.model.llama import OneToken
from latticeq.model.loader import load
from latticeq.model.quantize import quantize
from latticeq.storage.checkpoint import verify
from tests.model_families import FAMILIES
from tests.tiny_llama import Weights, random_ids, random_weights, write_folder
from tests.tiny_model import write_byte_tokenizer

SMALL: dict[str, Any] = {"calibration_tokens": 1024, "calibration_context": 64, "feedback": "ldlq"}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 256,
    "eos_token_id": 0,
}
CONFIGS = {name: FAMILIES[name] | SIZES for name in ("qwen2", "llama-3.1")}
REGIMES = ("w", "w+kv", "w+kv+a")
IDS = random_ids(SIZES, 48)


def weights_of(name: str) -> Weights:
    """Return random weights; Qwen2's biases of queries and keys are several times what W x is."""
    return {
        key: 10 * w if key.endswith(("q_proj.bias", "k_proj.bias")) else w
        for key, w in random_weights(CONFIGS[name]).items()
    }


@pytest.fixture(scope="module", params=list(CONFIGS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and what every regime makes of it, at four bits and at six."""
    folder = tmp_path_factory.mktemp("families") / request.param
    source = write_folder(folder / "source", CONFIGS[request.param], weights_of(request.param))
    write_byte_tokenizer(source)
    for regime in REGIMES:
        for q in (16, 48):
            quantize(source, folder / f"{regime} {q}", regime=regime, q=q, **SMALL)
    return folder


def distance(made: Path, out: Path, **options: Any) -> float:
    """Return the relative error of the logits."""
    wanted, found = load(made / "source").logits(IDS), load(out, **options).logits(IDS)
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("runtime", ["packed", "int8", "float32"])
def test_logits_are_near_and_come_nearer_with_more_bits(
    made: Path, regime: str, runtime: str
) -> None:
    coarse, fine = (distance(made, made / f"{regime} {q}", runtime=runtime) for q in (16, 48))
    # Random weights have no margin: what a block loses, the next one multiplies.
    assert coarse < 0.3
    # Nine times fewer squares of errors, had nothing but the code an error.
    assert fine < coarse / 5


@pytest.mark.parametrize("regime", REGIMES)
def test_folders_are_whole_and_say_what_they_are(made: Path, regime: str) -> None:
    out = made / f"{regime} 16"
    assert verify(out)["tensors"] > 0
    assert load(out).config == load(made / "source").config
    biases = [name for name in load_file(out / "model.safetensors") if name.endswith(".bias")]
    assert len(biases) == (6 if made.name == "qwen2" else 0)


@pytest.mark.parametrize("made", ["qwen2"], indirect=True)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_each_bias_matters(made: Path, tmp_path: Path, regime: str, part: str) -> None:
    out = made / f"{regime} 48"
    arrays = load_file(out / "model.safetensors")
    for name, array in arrays.items():
        if name.endswith(f"{part}.bias"):
            array[:] = 0
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((out / "config.json").read_bytes())
    assert distance(made, tmp_path) > 4 * distance(made, out)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("runtime", ["packed", "int8"])
def test_one_token_with_biases_is_the_same_both_ways(
    made: Path, regime: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(has_short_path: bool) -> list[Any]:
        model = load(made / f"{regime} 16", runtime=runtime)
        cache = model.new_cache(len(IDS))
        model.prefill(IDS[:40], cache)
        found = [model.decode_step(int(token), cache) for token in IDS[40:]]
        for block in model.blocks:
            assert (block._one_token is not None) == has_short_path
        return found

    short = steps(has_short_path=regime != "w+kv+a")  # coded inputs have none
    monkeypatch.setattr(OneToken, "fits", staticmethod(lambda block: False))
    np.testing.assert_array_equal(short, steps(has_short_path=False))
