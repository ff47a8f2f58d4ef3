"""Every family of models that people have: its file is read, and its logits are transformers'."""

import json
from pathlib import Path

import numpy as np
import pytest

import reference.llama
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.model.config import LlamaConfig
from latticeq.model.loader import expected_tensors, load
from tests.model_families import FAMILIES, WINDOWED
from tests.tiny_llama import checksum, random_ids, random_weights, tensor_shapes, write_folder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/family_logits.json").read_text("utf-8"))
TOKENS = GOLDEN["provenance"]["tokens"]

# Two layers of float32 leave the error of some hundred roundings, relative to the largest number.
ROUNDINGS = 200 * 2.0**-24

needs_jit = pytest.mark.skipif(not IS_JIT, reason="a hundred tokens in plain Python take minutes")


def distance(actual, expected):
    """Return the largest difference over the largest number that is expected."""
    return np.abs(actual - np.asarray(expected)).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_hugging_faces(name):
    config = FAMILIES[name]
    assert expected_tensors(LlamaConfig.from_dict(config)) == tensor_shapes(config)


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_a_file_that_transformers_wrote_anew_says_the_same(name):
    published = WINDOWED if name == "windowed" else FAMILIES[name]
    saved = GOLDEN["models"][name]["saved_config"]
    assert "rope_parameters" in saved
    assert LlamaConfig.from_dict(saved) == LlamaConfig.from_dict(published)


@needs_jit
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_transformers(name, tmp_path):
    golden, config = GOLDEN["models"][name], FAMILIES[name]
    weights = random_weights(config)
    assert checksum(weights) == golden["weights_sha256"]
    model = load(write_folder(tmp_path, config, weights))
    ids = random_ids(config, TOKENS)
    logits = model.logits(ids)
    assert distance(logits[golden["rows"]], golden["logits"]) < ROUNDINGS
    assert np.abs(logits).mean() == pytest.approx(golden["mean_abs"], rel=1e-5)
    cache = model.new_cache(TOKENS)
    model.prefill(ids[:-1], cache)
    step = model.decode_step(int(ids[-1]), cache)
    assert distance(step, golden["logits"][-1]) < ROUNDINGS


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("llama-2", {"rope_theta": 500000.0}),
        ("llama-3", {"rope_theta": 10000.0}),
        ("llama-3.1", {"rope_scaling": None}),
        ("llama-3.2", {"rope_scaling": FAMILIES["llama-3.1"]["rope_scaling"]}),
        ("smollm2", {"rope_theta": 10000.0}),
        ("mistral-v0.3", {"rms_norm_eps": 1e-3}),
        ("qwen2", {"rope_theta": 10000.0}),
    ],
)
def test_the_frozen_logits_would_show_a_field_that_is_ignored(name, change):
    golden, config = GOLDEN["models"][name], FAMILIES[name]
    weights, ids = random_weights(config), random_ids(config, TOKENS)
    right = reference.llama.logits(ids, weights, config)[golden["rows"]]
    wrong = reference.llama.logits(ids, weights, config | change)[golden["rows"]]
    assert distance(right, golden["logits"]) < ROUNDINGS
    assert distance(wrong, golden["logits"]) > 10 * ROUNDINGS


def test_the_frozen_logits_would_show_biases_that_are_ignored():
    golden, config = GOLDEN["models"]["qwen2"], FAMILIES["qwen2"]
    ids, weights = random_ids(config, TOKENS), random_weights(config)
    for part in ("q_proj", "k_proj", "v_proj"):
        lost = {n: w * (0 if n.endswith(f"{part}.bias") else 1) for n, w in weights.items()}
        wrong = reference.llama.logits(ids, lost, config)[golden["rows"]]
        assert distance(wrong, golden["logits"]) > 10 * ROUNDINGS


def test_a_window_is_as_long_as_in_transformers(tmp_path):
    golden, window = GOLDEN["models"]["windowed"], WINDOWED["sliding_window"]
    first, last, slid = golden["logits"]
    assert golden["rows"] == [0, window - 1, window]
    weights, ids = random_weights(WINDOWED), random_ids(WINDOWED, TOKENS)
    model = load(write_folder(tmp_path, WINDOWED, weights))
    found = model.logits(ids[:window])
    assert distance(found[[0, -1]], [first, last]) < ROUNDINGS
    # The next token no longer sees the first one, which is why it is refused.
    whole = reference.llama.logits(ids[: window + 1], weights, WINDOWED)
    assert distance(whole[window], slid) > 10 * ROUNDINGS
    with pytest.raises(InputError, match="sliding_window"):
        model.logits(ids[: window + 1])
