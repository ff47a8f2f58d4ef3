"""The forward pass equals the reference and Hugging Face, however a sequence is fed to it."""

import json
from pathlib import Path

import numpy as np
import pytest

import reference.llama
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.model import llama
from latticeq.model.calibrate import STAGES, Stream
from latticeq.model.kv.cache import FloatCache
from latticeq.model.loader import Weights, load, load_block, load_config, load_embedding
from tests.tiny_llama import CONFIGS, checksum, random_ids, random_weights, write_folder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tiny_logits.json").read_text("utf-8"))

# Two layers of float32 leave the error of some hundred roundings, relative to the largest number.
ROUNDINGS = 200 * 2.0**-24
TOKENS = 70 if IS_JIT else 9


def assert_close(actual, expected):
    """Assert equality up to float32's rounding, relative to the largest expected number."""
    largest = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDINGS * largest)


@pytest.fixture(params=list(CONFIGS))
def tiny(request, tmp_path):
    """Return a model, its configuration and its weights."""
    config = CONFIGS[request.param]
    weights = random_weights(config)
    return load(write_folder(tmp_path, config, weights)), config, weights


@pytest.fixture
def model(tmp_path):
    """Return one model, where any would do."""
    return load(write_folder(tmp_path, CONFIGS["llama"], random_weights(CONFIGS["llama"])))


def test_logits_equal_the_reference(tiny):
    model, config, weights = tiny
    ids = random_ids(config, TOKENS)
    expected = reference.llama.logits(ids, weights, config)
    assert np.abs(expected).max() > 0.5
    assert_close(model.logits(ids), expected)


def test_steps_equal_the_reference(tiny):
    model, config, weights = tiny
    ids = random_ids(config, TOKENS)
    expected = reference.llama.logits(ids, weights, config)
    cache = model.new_cache()
    half = TOKENS // 2
    assert_close(model.prefill(ids[:half], cache), expected[half - 1])
    for position in range(half, TOKENS):
        step = model.decode_step(int(ids[position]), cache)
        assert_close(step, expected[position])


def test_likelihoods_equal_the_reference(tiny, monkeypatch):
    model, config, weights = tiny
    monkeypatch.setattr(llama, "_LOGITS_BYTES", 4 * 97 * 7)  # chunks of 7 rows
    ids = random_ids(config, TOKENS)
    nll = model.nll(model.hidden(ids, model.new_cache())[:-1], ids[1:])
    assert_close(nll, reference.llama.nll(ids, weights, config))


@pytest.mark.skipif(not IS_JIT, reason="a hundred tokens in plain Python take minutes")
@pytest.mark.parametrize("name", GOLDEN["models"])
def test_logits_equal_transformers(name, tmp_path):
    golden, config = GOLDEN["models"][name], CONFIGS[name]
    weights = random_weights(config)
    assert checksum(weights) == golden["weights_sha256"]
    ids = random_ids(config, GOLDEN["provenance"]["tokens"])
    logits = load(write_folder(tmp_path, config, weights)).logits(ids)
    assert_close(logits[golden["rows"]], golden["logits"])
    assert np.abs(logits).mean() == pytest.approx(golden["mean_abs"], rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 5, 8])
def test_prefill_in_chunks_equals_one_prefill(model, chunk):
    ids = random_ids(CONFIGS["llama"], 16)
    whole = model.hidden(ids, model.new_cache())
    cache = model.new_cache(16)
    parts = [model.hidden(ids[i : i + chunk], cache) for i in range(0, 16, chunk)]
    assert cache.length == 16
    assert_close(np.concatenate(parts), whole)


def test_the_future_does_not_matter(model):
    ids = random_ids(CONFIGS["llama"], 12)
    other = ids.copy()
    other[8:] = (other[8:] + 1) % CONFIGS["llama"]["vocab_size"]
    before, after = model.logits(ids), model.logits(other)
    np.testing.assert_array_equal(before[:8], after[:8])
    assert not np.array_equal(before[8:], after[8:])


def test_a_cleared_cache_forgets(model):
    ids = random_ids(CONFIGS["llama"], 10)
    cache = model.new_cache(10)
    first = model.prefill(ids, cache)
    cache.clear()
    np.testing.assert_array_equal(model.prefill(ids, cache), first)


def test_blocks_run_alone_stage_by_stage(tmp_path):
    config = CONFIGS["biased"]
    weights = random_weights(config)
    folder = write_folder(tmp_path, config, weights)
    checked = Weights(folder, load_config(folder))
    embedded = load_embedding(checked).rows(random_ids(config, 6))
    block = load_block(checked, 0)
    stream = Stream(checked.config, [embedded.copy()])
    cache = FloatCache(checked.config, 6, layers=1)
    seen = []
    for stage in range(len(STAGES)):
        stream.advance(block, stage, cache)
        seen += stream.inputs
    stream.advance(block, len(STAGES), cache)
    assert [given.shape for given in seen] == [(6, 48), (6, 48), (6, 48), (6, 80)]
    expected = reference.llama.block(embedded.astype(np.float64), weights, "model.layers.0", config)
    assert_close(stream.hidden[0], expected)
    norm = reference.llama.rms_norm(
        embedded, weights["model.layers.0.input_layernorm.weight"], config["rms_norm_eps"]
    )
    assert_close(seen[0], norm)
    # Attention's share is what o_proj made of its input, and down_proj made the rest.
    middle = embedded + block.linears["self_attn.o_proj"](seen[1])
    last = middle + block.linears["mlp.down_proj"](seen[3])
    assert_close(last, stream.hidden[0])


def test_sizes_are_counted_once(tiny):
    model, _, weights = tiny
    matrices = [w.nbytes for name, w in weights.items() if w.ndim == 2]
    assert model.nbytes == sum(matrices)
    assert model.bits_per_weight == 32
    assert model.dtype == "float32"


def test_a_full_context_is_an_error(model):
    cache = model.new_cache(5)
    model.prefill([1, 2, 3, 4], cache)
    with pytest.raises(InputError, match=r"4 tokens are in the cache and 2 more.*context is 5"):
        model.prefill([5, 6], cache)
    model.decode_step(5, cache)
    with pytest.raises(InputError, match="the context is 5"):
        model.decode_step(6, cache)
    with pytest.raises(InputError, match="from 1 to 256"):
        model.new_cache(257)


@pytest.mark.parametrize("ids", [[], [[1, 2]], [0.5], [-1], [97]])
def test_wrong_ids_are_an_error(model, ids):
    with pytest.raises(InputError, match="ids"):
        model.logits(ids)


def test_targets_must_match(model):
    hidden = model.hidden([1, 2, 3], model.new_cache())
    with pytest.raises(InputError, match="3 hidden states and 2 targets"):
        model.nll(hidden, [2, 3])


def test_a_token_costs_its_keys_and_values(model):
    config = CONFIGS["llama"]
    expected = 2 * 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * 8
    assert model.new_cache(7).nbytes_per_token == expected
