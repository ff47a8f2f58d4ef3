"""Tiny random Llama-family models: configurations, seeded weights, and folders that hold them.

Imports nothing of latticeq, so that the scripts that ask other libraries for golden numbers can use
it too, and so that the shapes here are a second opinion on the loader's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Weights = dict[str, NDArray[np.float32]]

_BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _BASE,
    "tied": _BASE | {"tie_word_embeddings": True},
    "mha": _BASE | {"num_key_value_heads": 6},
    "one_kv_head": _BASE | {"num_key_value_heads": 1},
    "biased": _BASE | {"attention_bias": True, "mlp_bias": True},
    "linear_rope": _BASE | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3_rope": _BASE | {"rope_scaling": _LLAMA3, "rope_theta": 500000.0},
    "wide_heads": _BASE | {"head_dim": 14},  # H K differs from D, and K is no multiple of 4
    "mistral": _BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    "qwen2": _BASE
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model in Hugging Face's names."""
    d, f = config["hidden_size"], config["intermediate_size"]
    h, g = config["num_attention_heads"], config["num_key_value_heads"]
    k = config.get("head_dim") or d // h
    o_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    qkv_bias = o_bias or config["model_type"] == "qwen2"
    linears = {
        "self_attn.q_proj": (h * k, d, qkv_bias),
        "self_attn.k_proj": (g * k, d, qkv_bias),
        "self_attn.v_proj": (g * k, d, qkv_bias),
        "self_attn.o_proj": (d, h * k, o_bias),
        "mlp.gate_proj": (f, d, mlp_bias),
        "mlp.up_proj": (f, d, mlp_bias),
        "mlp.down_proj": (d, f, mlp_bias),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], d),
        "model.norm.weight": (d,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (d,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (d,)
        for name, (rows, columns, has_bias) in linears.items():
            shapes[f"{prefix}.{name}.weight"] = (rows, columns)
            if has_bias:
                shapes[f"{prefix}.{name}.bias"] = (rows,)
    return shapes


def random_weights(config: Mapping[str, Any], seed: int = 1) -> Weights:
    """Return weights, drawn in the order of the tensors' names.

    Matrices are scaled so that activations stay of order one, norms scatter around 1.
    """
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(tensor_shapes(config).items()):
        values = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif name.endswith(".bias"):
            values = 0.3 * values
        elif "embed_tokens" not in name:
            values = 1.5 * values / np.sqrt(shape[1])
        weights[name] = values.astype(np.float32)
    return weights


def random_ids(config: Mapping[str, Any], n_tokens: int, seed: int = 2) -> NDArray[np.int64]:
    """Return token ids drawn from the whole vocabulary."""
    return np.random.default_rng(seed).integers(0, config["vocab_size"], n_tokens)


def write_folder(folder: Path, config: Mapping[str, Any], weights: Weights) -> Path:
    """Write a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(weights, folder / "model.safetensors")
    return folder


def checksum(weights: Weights) -> str:
    """Return the SHA-256 of all weights in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    return digest.hexdigest()
