"""A GGUF model becomes an HF folder with the same function."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latticeq.errors import FormatError, InputError
from latticeq.model.chat_template import ChatTemplate
from latticeq.model.config import LlamaConfig
from latticeq.model.conversation import one_turn, stop_ids
from latticeq.model.gguf_import import import_gguf
from latticeq.model.gguf_names import unpermute_rows
from latticeq.model.loader import load
from latticeq.model.quantize import quantize
from latticeq.model.tokenizer import Tokenizer
from latticeq.storage.safetensors import TensorFolder
from tests import tiny_gguf
from tests.chat_templates import CHATML
from tests.tiny_gguf import D, F, G, H, K, llama3_divisors, write_gguf, write_tiny_model


def convert(tmp_path: Path, source: Path) -> Path:
    return import_gguf(source, tmp_path / "out", progress=False)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def rotate_neighbours(x: NDArray[np.float64], position: int) -> NDArray[np.float64]:
    """RoPE as llama.cpp has it for Llama: entries 2i and 2i + 1 turn together."""
    angle = position * 10000.0 ** (-np.arange(0, len(x), 2) / len(x))
    out = np.empty_like(x)
    out[0::2] = x[0::2] * np.cos(angle) - x[1::2] * np.sin(angle)
    out[1::2] = x[0::2] * np.sin(angle) + x[1::2] * np.cos(angle)
    return out


def rotate_halves(x: NDArray[np.float64], position: int) -> NDArray[np.float64]:
    """RoPE as HF has it: entries i and i + K/2 turn together."""
    half = len(x) // 2
    angle = position * 10000.0 ** (-np.arange(0, len(x), 2) / len(x))
    low, high = x[:half], x[half:]
    return np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), low * np.sin(angle) + high * np.cos(angle)]
    )


def test_attention_scores_are_the_same_after_unpermuting(rng: np.random.Generator) -> None:
    q_gguf, k_gguf = rng.standard_normal((2, H * K, D)).astype(np.float32)
    q_hf, k_hf = unpermute_rows(q_gguf, H), unpermute_rows(k_gguf, H)
    x, y = rng.standard_normal((2, D))
    for head in range(H):
        rows = slice(head * K, (head + 1) * K)
        here = rotate_neighbours(q_gguf[rows] @ x, 11) @ rotate_neighbours(k_gguf[rows] @ y, 5)
        there = rotate_halves(q_hf[rows] @ x, 11) @ rotate_halves(k_hf[rows] @ y, 5)
        np.testing.assert_allclose(here, there, rtol=1e-12)
        wrong = rotate_halves(q_gguf[rows] @ x, 11) @ rotate_halves(k_gguf[rows] @ y, 5)
        assert abs(wrong - here) > 1e-3  # the permutation matters


def test_unpermuting_undoes_the_converter(rng: np.random.Generator) -> None:
    hf = rng.standard_normal((G * K, D)).astype(np.float32)
    gguf = np.empty_like(hf)
    for head in range(G):
        for i in range(K // 2):
            gguf[head * K + 2 * i] = hf[head * K + i]
            gguf[head * K + 2 * i + 1] = hf[head * K + i + K // 2]
    np.testing.assert_array_equal(unpermute_rows(gguf, G), hf)


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "tokenizer.chat_template.default"])
def test_the_chat_template_comes_along_and_works(
    tmp_path: Path, rng: np.random.Generator, key: str
) -> None:
    pairs = tiny_gguf.metadata() | {"tokenizer.chat_template": CHATML}
    pairs[key] = pairs.pop("tokenizer.chat_template")
    folder = convert(tmp_path, write_gguf(tmp_path / "m.gguf", pairs, tiny_gguf.tensors(rng)))
    template, tokenizer = ChatTemplate.from_folder(folder), Tokenizer.from_folder(folder)
    ids = one_turn(tokenizer, template, "hello")
    assert tokenizer.detokenize(ids) == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 2, 1)  # the marks are tokens
    assert stop_ids(tokenizer, template) == {2}


def test_whole_model(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = tiny_gguf.tensors(rng)
    source = write_gguf(tmp_path / "m.gguf", tiny_gguf.metadata(), arrays)
    folder = convert(tmp_path, source)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    n_vocab = len(tiny_gguf.vocabulary())
    assert read(folder, "config.json") == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": 2,
        "num_attention_heads": H,
        "num_key_value_heads": G,
        "head_dim": K,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "vocab_size": n_vocab,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert read(folder, "generation_config.json") == generation
    tensors = TensorFolder(folder)
    assert len(tensors.names) == 2 + 2 * 9
    assert "lm_head.weight" not in tensors
    pairs = {
        "model.embed_tokens.weight": arrays["token_embd.weight"],
        "model.norm.weight": arrays["output_norm.weight"],
        "model.layers.0.input_layernorm.weight": arrays["blk.0.attn_norm.weight"],
        "model.layers.1.post_attention_layernorm.weight": arrays["blk.1.ffn_norm.weight"],
        "model.layers.1.self_attn.q_proj.weight": unpermute_rows(arrays["blk.1.attn_q.weight"], H),
        "model.layers.0.self_attn.k_proj.weight": unpermute_rows(arrays["blk.0.attn_k.weight"], G),
        "model.layers.0.self_attn.v_proj.weight": arrays["blk.0.attn_v.weight"],
        "model.layers.0.self_attn.o_proj.weight": arrays["blk.0.attn_output.weight"],
        "model.layers.1.mlp.gate_proj.weight": arrays["blk.1.ffn_gate.weight"],
        "model.layers.1.mlp.up_proj.weight": arrays["blk.1.ffn_up.weight"],
        "model.layers.1.mlp.down_proj.weight": arrays["blk.1.ffn_down.weight"],
    }
    for name, array in pairs.items():
        assert tensors.info(name).dtype == "F32"
        np.testing.assert_array_equal(tensors.raw(name), array)


def test_untied_head(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = tiny_gguf.tensors(rng)
    arrays["output.weight"] = arrays["token_embd.weight"] * 2
    source = write_gguf(tmp_path / "m.gguf", tiny_gguf.metadata(), arrays)
    folder = convert(tmp_path, source)
    assert read(folder, "config.json")["tie_word_embeddings"] is False
    head = TensorFolder(folder).raw("lm_head.weight")
    np.testing.assert_array_equal(head, arrays["output.weight"])


def test_every_end_token_is_a_stop(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_tiny_model(tmp_path / "m.gguf", rng, tokenizer__ggml__eot_token_id=0)
    folder = convert(tmp_path, source)
    assert read(folder, "generation_config.json")["eos_token_id"] == [2, 0]
    assert read(folder, "config.json")["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}, 4.0),
        ({"llama__rope__scaling__factor": 4.0}, 4.0),  # as llama.cpp reads a bare factor
        ({"llama__rope__scale_linear": 2.0}, 2.0),  # as files of 2023 have it
        ({"llama__rope__scale_linear": 1.0}, None),
        ({"llama__rope__scaling__type": "none", "llama__rope__scaling__factor": 4.0}, None),
        ({"llama__rope__scaling__type": "linear"}, None),
    ],
)
def test_linear_rope_scaling(
    tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], factor: float | None
) -> None:
    source = write_tiny_model(tmp_path / "m.gguf", rng, **changes)
    scaling = read(convert(tmp_path, source), "config.json")["rope_scaling"]
    assert scaling == (None if factor is None else {"rope_type": "linear", "factor": factor})


@pytest.mark.parametrize(("theta", "factor"), [(500000.0, 8.0), (500000.0, 32.0), (30000.0, 8.0)])
def test_llama3_rope_scaling(
    tmp_path: Path, rng: np.random.Generator, theta: float, factor: float
) -> None:
    arrays = tiny_gguf.tensors(rng)
    arrays["rope_freqs.weight"] = llama3_divisors(factor, theta, 8192)
    pairs = tiny_gguf.metadata() | {"llama.rope.freq_base": theta}
    folder = convert(tmp_path, write_gguf(tmp_path / "m.gguf", pairs, arrays))
    assert read(folder, "config.json")["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_other_rope_factors_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = tiny_gguf.tensors(rng)
    arrays["rope_freqs.weight"] = np.array([1, 2, 3, 4], np.float32)
    source = write_gguf(tmp_path / "m.gguf", tiny_gguf.metadata(), arrays)
    with pytest.raises(FormatError, match=r"m\.gguf.* tensor rope_freqs\.weight"):
        convert(tmp_path, source)


def test_two_rope_scalings_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = tiny_gguf.tensors(rng)
    arrays["rope_freqs.weight"] = llama3_divisors(8.0, 100000.0, 8192)
    pairs = tiny_gguf.metadata() | {"llama.rope.scaling.factor": 2.0}
    source = write_gguf(tmp_path / "m.gguf", pairs, arrays)
    with pytest.raises(
        FormatError, match=r"scaling\.factor and tensor rope_freqs\.weight; only one"
    ):
        convert(tmp_path, source)


def test_qwen2_keeps_its_rows_and_has_biases(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = tiny_gguf.tensors(rng) | tiny_gguf.biases(rng, tiny_gguf.ATTENTION)
    pairs = tiny_gguf.metadata("qwen2") | {"tokenizer.ggml.pre": "qwen2"}
    folder = convert(tmp_path, write_gguf(tmp_path / "m.gguf", pairs, arrays))
    config = LlamaConfig.from_dict(read(folder, "config.json"))
    assert config.architecture == "Qwen2ForCausalLM"
    assert (config.qkv_bias, config.o_bias, config.sliding_window) == (True, False, None)
    tensors = TensorFolder(folder)
    for module in ("q", "k", "v"):
        for kind in ("weight", "bias"):
            found = tensors.raw(f"model.layers.1.self_attn.{module}_proj.{kind}")
            np.testing.assert_array_equal(found, arrays[f"blk.1.attn_{module}.{kind}"])


def test_biases_of_a_llama_have_their_weights_rows(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    attention = (*tiny_gguf.ATTENTION, "attn_output")
    arrays = tiny_gguf.tensors(rng) | tiny_gguf.biases(rng, attention)
    folder = convert(tmp_path, write_gguf(tmp_path / "m.gguf", tiny_gguf.metadata(), arrays))
    config = read(folder, "config.json")
    assert (config["attention_bias"], config["mlp_bias"]) == (True, False)
    tensors = TensorFolder(folder)
    key = tensors.raw("model.layers.0.self_attn.k_proj.bias")
    np.testing.assert_array_equal(key, unpermute_rows(arrays["blk.0.attn_k.bias"], G))
    assert not np.array_equal(key, arrays["blk.0.attn_k.bias"])
    value = tensors.raw("model.layers.0.self_attn.v_proj.bias")
    np.testing.assert_array_equal(value, arrays["blk.0.attn_v.bias"])


@pytest.mark.parametrize(
    ("architecture", "biased", "words"),
    [
        ("qwen2", ("attn_q", "attn_v"), r"tensor blk\.0\.attn_k\.bias is missing"),
        (
            "qwen2",
            (*tiny_gguf.ATTENTION, "attn_output"),
            "attn_output.bias has no place in a Qwen2",
        ),
        ("llama", tiny_gguf.ATTENTION, r"tensor blk\.0\.attn_output\.bias is missing"),
        ("llama", ("ffn_up",), r"tensor blk\.0\.ffn_gate\.bias is missing"),
    ],
)
def test_biases_are_whole(
    tmp_path: Path,
    rng: np.random.Generator,
    architecture: str,
    biased: tuple[str, ...],
    words: str,
) -> None:
    arrays = tiny_gguf.tensors(rng) | tiny_gguf.biases(rng, biased)
    source = write_gguf(tmp_path / "m.gguf", tiny_gguf.metadata(architecture), arrays)
    with pytest.raises(FormatError, match=words):
        convert(tmp_path, source)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_window_is_kept(tmp_path: Path, rng: np.random.Generator, architecture: str) -> None:
    biased = tiny_gguf.ATTENTION if architecture == "qwen2" else ()
    arrays = tiny_gguf.tensors(rng) | tiny_gguf.biases(rng, biased)
    pairs = tiny_gguf.metadata(architecture) | {f"{architecture}.attention.sliding_window": 64}
    folder = convert(tmp_path, write_gguf(tmp_path / "m.gguf", pairs, arrays))
    assert LlamaConfig.from_dict(read(folder, "config.json")).longest_context == 64


def test_a_qwen2_file_can_be_quantized(tmp_path: Path, rng: np.random.Generator) -> None:
    pairs, arrays = tiny_gguf.variants()["qwen2"]
    source = write_gguf(tmp_path / "m.gguf", pairs, arrays)
    quantize(source, tmp_path / "out", feedback="none")
    ids = rng.integers(0, len(tiny_gguf.vocabulary()), 20)
    wanted, found = load(convert(tmp_path / "float", source)), load(tmp_path / "out")
    assert found.config == wanted.config
    error = found.logits(ids) - wanted.logits(ids)
    assert 0 < np.square(error).sum() < 0.3 * np.square(wanted.logits(ids)).sum()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general__architecture": "falcon"}, "'falcon'; supported are llama, qwen2"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn'; supported are"),
        ({"llama__rope__dimension_count": 4}, "rotates 4 of 8"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
        ({"llama__block_count": 1 << 31}, "is missing"),
        ({"llama__block_count": 1}, r"tensor blk\.1\..* has no place"),
        ({"llama__block_count": 0}, "one positive number is needed"),
        ({"llama__embedding_length": "wide"}, "llama.embedding_length is 'wide'"),
        ({"llama__feed_forward_length": 32}, r"has shape \(.*\); it must be"),
        ({"llama__attention__head_count_kv": [2, 1]}, "one positive number"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "one positive number"),
        ({"tokenizer__ggml__eos_token_id": None}, "would never stop"),
        ({"tokenizer__ggml__eos_token_id": 1 << 20}, "must be a token id"),
    ],
)
def test_what_is_not_supported(
    tmp_path: Path, rng: np.random.Generator, changes: dict[str, Any], words: str
) -> None:
    source = write_tiny_model(tmp_path / "m.gguf", rng, **changes)
    with pytest.raises(FormatError, match=words) as caught:
        convert(tmp_path, source)
    assert str(source) in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_one_kv_count_per_layer_is_fine_if_equal(tmp_path: Path, rng: np.random.Generator) -> None:
    source = write_tiny_model(tmp_path / "m.gguf", rng, llama__attention__head_count_kv=[2, 2])
    assert read(convert(tmp_path, source), "config.json")["num_key_value_heads"] == 2


def test_existing_folder_is_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path, write_tiny_model(tmp_path / "m.gguf", rng))
