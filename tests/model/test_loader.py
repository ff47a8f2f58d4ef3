"""A folder loads in every dtype and spelling; a wrong one is refused by tensor and file."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from latticeq.errors import FormatError, InputError
from latticeq.model.config import LlamaConfig
from latticeq.model.loader import Weights, expected_tensors, load, load_config, sanitize
from tests.tiny_llama import CONFIGS, random_ids, random_weights, tensor_shapes, write_folder

CONFIG = CONFIGS["llama"]
IDS = random_ids(CONFIG, 5)
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("name", CONFIGS)
def test_expected_tensors_are_hugging_faces(name):
    config = CONFIGS[name]
    assert expected_tensors(LlamaConfig.from_dict(config)) == tensor_shapes(config)


def test_float16_weights_stay_float16(tmp_path):
    weights = random_weights(CONFIG)
    halves = {name: w.astype(np.float16) for name, w in weights.items()}
    half = load(write_folder(tmp_path / "half", CONFIG, halves))
    wide = {name: w.astype(np.float32) for name, w in halves.items()}
    full = load(write_folder(tmp_path / "wide", CONFIG, wide))
    assert (half.dtype, half.bits_per_weight) == ("float16", 16)
    assert 2 * half.nbytes == full.nbytes
    np.testing.assert_allclose(half.logits(IDS), full.logits(IDS), atol=1e-4)
    np.testing.assert_allclose(half.logits(IDS[:1]), full.logits(IDS[:1]), atol=1e-4)


def test_matrices_stay_in_the_file(tmp_path):
    model = load(write_folder(tmp_path, CONFIG, random_weights(CONFIG)))
    stored = model.blocks[0].linears["mlp.up_proj"]._stored
    base = stored
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"


def test_foreign_names_are_mended(tmp_path):
    config = CONFIGS["tied"]
    weights = random_weights(config)
    expected = load(write_folder(tmp_path / "plain", config, weights)).logits(IDS)
    foreign = dict(weights)
    foreign["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    foreign["lm_head.weight"] = np.ones_like(weights["model.embed_tokens.weight"])
    stored = load(write_folder(tmp_path / "stored", config, foreign)).logits(IDS)
    np.testing.assert_array_equal(stored, expected)
    bare = {name.removeprefix("model."): w for name, w in weights.items()}
    bare_logits = load(write_folder(tmp_path / "bare", config, bare)).logits(IDS)
    np.testing.assert_array_equal(bare_logits, expected)


def test_sanitize_keeps_an_untied_head():
    config = LlamaConfig.from_dict(CONFIG)
    names = ["lm_head.weight", "model.norm.weight", "layers.0.input_layernorm.weight"]
    assert sanitize(names, config) == {
        "lm_head.weight": "lm_head.weight",
        "model.norm.weight": "model.norm.weight",
        "model.layers.0.input_layernorm.weight": "layers.0.input_layernorm.weight",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({UP: None}, rf"tensor {UP} of shape \(80, 48\) is missing"),
        ({"lm_head.weight": None}, "lm_head.weight .*is missing; set tie_word_embeddings"),
        ({UP: (48, 80)}, rf"tensor {UP} has shape \(48, 80\); config.json makes it \(80, 48\)"),
        ({"model.layers.2.mlp.up_proj.weight": (80, 48)}, "layers.2.mlp.up_proj.weight has no"),
        ({"model.layers.0.mlp.up_proj.bias": (80,)}, "mlp.up_proj.bias has no place"),
    ],
)
def test_tensors_must_be_those_of_the_config(tmp_path, change, message):
    weights = random_weights(CONFIG)
    for name, shape in change.items():
        weights.pop(name, None)
        if shape:
            weights[name] = np.zeros(shape, np.float32)
    with pytest.raises(FormatError, match=message):
        load(write_folder(tmp_path, CONFIG, weights))


@pytest.mark.parametrize("dtype", [np.int8, np.uint16])
def test_a_weight_must_be_floating_point(tmp_path, dtype):
    weights = random_weights(CONFIG)
    weights[UP] = weights[UP].astype(dtype)
    with pytest.raises(FormatError, match=f"tensor {UP} has dtype"):
        load(write_folder(tmp_path, CONFIG, weights))


def test_norms_must_be_finite(tmp_path):
    weights = random_weights(CONFIG)
    weights["model.norm.weight"][3] = np.nan
    with pytest.raises(FormatError, match=r"model.norm.weight holds NaN"):
        load(write_folder(tmp_path, CONFIG, weights))


def test_config_must_be_there_and_json(tmp_path):
    with pytest.raises(FormatError, match=r"config.json: is missing"):
        load_config(tmp_path)
    for text in ("{", "[]", "\x00"):
        (tmp_path / "config.json").write_text(text, "utf-8")
        with pytest.raises(FormatError, match=r"config.json: (cannot be read as|is not a) JSON"):
            load_config(tmp_path)


def test_a_bad_config_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"hidden_act": "relu"}), "utf-8")
    with pytest.raises(InputError, match=r"config.json: hidden_act is 'relu'"):
        load_config(tmp_path)


def test_foreign_quantization_is_refused(tmp_path):
    quantized = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "config.json").write_text(json.dumps(quantized), "utf-8")
    with pytest.raises(
        FormatError, match=r"quantized by 'gptq' \(quantization_config\); give the folder of the"
    ):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, r"'awq' \(quantization_config\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"quantization_config": {"bits": 4}}, r"'quantization_config' \(quantization_config\)"),
        ({"quantization_config": 4}, r"4 \(quantization_config\)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, r"'quantization' \(quantization\)"),
        ({"quantization": {"quant_method": "latticeq"}}, r"'latticeq' \(quantization\)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ],
)
def test_every_foreign_quantization_is_refused_by_name(tmp_path, given, words):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | given), "utf-8")
    with pytest.raises(FormatError, match=f"quantized by .*{words}.*; give the folder of the fl"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | dict.fromkeys(given)), "utf-8")
    assert load_config(tmp_path).vocab_size == CONFIG["vocab_size"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.0.mlp.up_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.mlp.up_proj.scales", "MLX"),
    ],
)
def test_tensors_of_other_quantizers_are_named(tmp_path, name, words):
    weights = random_weights(CONFIG) | {name: np.zeros(4, np.float32)}
    with pytest.raises(FormatError, match=rf"tensor {name} is of weights quantized by .*{words}"):
        load(write_folder(tmp_path, CONFIG, weights))


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(FormatError, match=r"holds an adapter .* merge it into its base model"):
        load_config(tmp_path)


def test_a_window_bounds_the_context(tmp_path):
    config = CONFIGS["mistral"] | {"sliding_window": 16}
    folder = write_folder(tmp_path, config, random_weights(config))
    with pytest.raises(InputError, match=r"context is 17; .* 1 to 16, the model's sliding_window"):
        load(folder, 17)
    model = load(folder)
    assert model.context == 16
    assert len(model.generate([1, 2, 3], max_tokens=100)) == 14  # a full window, and one more
    with pytest.raises(InputError, match=r"prompt has 16 tokens; .* 1 to 15, .*sliding_window"):
        model.generate(list(range(16)))
    with pytest.raises(InputError, match=r"context is 17; .*sliding_window"):
        model.logits(np.arange(17))
    with pytest.raises(InputError, match=r"from 1 to 7, .*: the context that was asked for"):
        load(folder, 8).generate(list(range(8)))


def test_within_its_window_a_model_is_the_one_without(tmp_path):
    config = CONFIGS["mistral"] | {"sliding_window": 16}
    weights = random_weights(config)
    windowed = load(write_folder(tmp_path / "a", config, weights))
    plain = load(write_folder(tmp_path / "b", config | {"sliding_window": None}, weights))
    ids = random_ids(config, 16)
    np.testing.assert_array_equal(windowed.logits(ids), plain.logits(ids))


def test_context_is_checked_before_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    with pytest.raises(InputError, match="context is 257; it must be from 1 to 256"):
        load(tmp_path, 257)


def test_bfloat16_is_read_as_its_bits(tmp_path):
    weights = random_weights(CONFIG)
    cut = {name: w.view(np.uint32) & np.uint32(0xFFFF0000) for name, w in weights.items()}
    wide = {name: w.view(np.float32) for name, w in cut.items()}
    expected = load(write_folder(tmp_path / "wide", CONFIG, wide)).logits(IDS)
    bits = {name: (w >> np.uint32(16)).astype(np.uint16) for name, w in cut.items()}
    folder = write_folder(tmp_path / "bits", CONFIG, bits)
    # NumPy has no bfloat16 to save, so the header's dtype is changed; the lengths stay equal.
    path = folder / "model.safetensors"
    data = path.read_bytes().replace(b'"dtype":"U16"', b'"dtype":"BF16"')
    length = int.from_bytes(data[:8], "little")
    grown = length + data.count(b'"dtype":"BF16"')
    path.write_bytes(grown.to_bytes(8, "little") + data[8:])
    model = load(folder)
    assert (model.dtype, model.bits_per_weight) == ("bfloat16", 16)
    np.testing.assert_allclose(model.logits(IDS), expected, atol=1e-4)


def test_weights_know_their_names(tmp_path):
    folder = write_folder(tmp_path, CONFIG, random_weights(CONFIG))
    save_file({}, tmp_path / "unrelated.safetensors")
    weights = Weights(folder, load_config(folder))
    assert UP in weights
    assert "model.layers.0.mlp.up_proj.bias" not in weights
