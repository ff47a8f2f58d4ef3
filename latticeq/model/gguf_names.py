"""What llama.cpp calls the tensors of a model, and in which order it keeps their rows.

For ``llama`` files llama.cpp rotates neighbouring pairs of entries (2i, 2i+1) of a head where HF
rotates (i, i + K/2), so its converter interleaves the rows of q_proj and k_proj, and their biases;
`unpermute_rows` undoes that. For ``qwen2`` files it rotates as HF does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError
from latticeq.storage.gguf import GGUFTensor

__all__ = [
    "ARCHITECTURES",
    "ROPE_FACTORS",
    "Architecture",
    "hf_names",
    "interleaved_heads",
    "unpermute_rows",
]

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies: Llama 3's scaling, as llama.cpp keeps it."""


@dataclass(frozen=True)
class Architecture:
    """What a ``general.architecture`` is in Hugging Face's terms.

    Attributes
    ----------
    name, model_type : str
        As in ``config.json``.
    is_interleaved : bool
        Whether the rows of q_proj and k_proj are llama.cpp's.
    """

    name: str
    model_type: str
    is_interleaved: bool


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", True),  # Mistral's files say llama, too
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", False),
}
"""By the value of ``general.architecture``."""

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def unpermute_rows(rows: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of the rows of q_proj or k_proj.

    Within a head of K rows, llama.cpp's row 2i + j is HF's row i + j K/2, for j in {0, 1}.

    Parameters
    ----------
    rows : (n_heads K, N) or (n_heads K,) float32
        A weight or a bias.
    n_heads : int
        Heads of this projection: H for q_proj, G for k_proj.

    Returns
    -------
    array of the same shape

    Examples
    --------
    >>> unpermute_rows(np.arange(6, dtype=np.float32), n_heads=1)
    array([0., 2., 4., 1., 3., 5.], dtype=float32)
    """
    pairs = rows.reshape(n_heads, len(rows) // n_heads // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def interleaved_heads(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the modules whose rows `unpermute_rows` puts in order, and their heads."""
    kinds = [a for a in ARCHITECTURES.values() if a.model_type == config["model_type"]]
    if not kinds[0].is_interleaved:
        return {}
    return {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }


def hf_names(tensors: Mapping[str, GGUFTensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Return llama.cpp's name to HF's of every tensor; all are there, known and in shape.

    Parameters
    ----------
    tensors : mapping of str to GGUFTensor
    config : mapping
        The content of ``config.json``.

    Raises
    ------
    FormatError
        Naming the tensor that is missing, unknown or of another shape.
    """
    names = dict(_NAMES)
    if config["tie_word_embeddings"]:
        del names["output.weight"]
    layer_names = _layer_names(config)
    for layer in range(config["num_hidden_layers"]):
        for name, hf_name in layer_names.items():
            gguf_name = f"blk.{layer}.{name}"
            if gguf_name not in tensors:  # before the next layer: layer counts may be absurd
                raise FormatError(f"tensor {gguf_name} is missing")
            names[gguf_name] = f"model.layers.{layer}.{hf_name}"
    if "output_norm.weight" not in tensors:
        raise FormatError("tensor output_norm.weight is missing")
    for name, tensor in tensors.items():
        if name == ROPE_FACTORS:
            continue
        if name not in names:
            raise FormatError(f"tensor {name} has no place in a {config['architectures'][0]}")
        expected = _shape(names[name], config)
        if tensor.shape != expected:
            raise FormatError(f"tensor {name} has shape {tensor.shape}; it must be {expected}")
    return names


def _layer_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a layer's tensors, without what they begin with."""
    names = {f"{name}.weight": f"{hf_name}.weight" for name, hf_name in _NORMS.items()}
    for name, hf_name in _LINEARS.items():
        names[f"{name}.weight"] = f"{hf_name}.weight"
        if name.startswith("ffn"):
            has_bias = config["mlp_bias"]
        else:
            is_qkv = config["model_type"] == "qwen2" and name != "attn_output"
            has_bias = config["attention_bias"] or is_qkv
        if has_bias:
            names[f"{name}.bias"] = f"{hf_name}.bias"
    return names


def _shape(hf_name: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    q_rows = config["num_attention_heads"] * config["head_dim"]
    kv_rows = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "q_proj": (q_rows, hidden),
        "k_proj": (kv_rows, hidden),
        "v_proj": (kv_rows, hidden),
        "o_proj": (hidden, q_rows),
        "gate_proj": (wide, hidden),
        "up_proj": (wide, hidden),
        "down_proj": (hidden, wide),
        "embed_tokens": (config["vocab_size"], hidden),
        "lm_head": (config["vocab_size"], hidden),
    }
    module, kind = hf_name.split(".")[-2:]
    shape = shapes.get(module, (hidden,))  # the rest are norms
    return shape[:1] if kind == "bias" else shape
