"""Convert a llama-architecture GGUF file into a Hugging Face model folder.

The folder gets ``config.json``, ``model.safetensors`` in float32, ``tokenizer.json``,
``tokenizer_config.json`` and ``generation_config.json``, with HF names throughout. llama.cpp
rotates neighbouring pairs of entries (2i, 2i+1) of a head where HF rotates (i, i + K/2), so its
converter interleaves the rows of q_proj and k_proj; that is undone here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, context
from latticeq.model.gguf_tokenizer import build_tokenizer, special_tokens, tokenizer_config
from latticeq.storage.disk import new_folder
from latticeq.storage.gguf import GGUFFile
from latticeq.storage.safetensors import SafetensorsWriter

__all__ = ["gguf_config", "import_gguf", "unpermute_rows"]

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_MAX_NUMBER = 1 << 40  # no size, angle or context of a model is larger
_ROPE_FACTORS = "rope_freqs.weight"


def unpermute_rows(weight: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of the rows of q_proj or k_proj.

    Within a head of K rows, llama.cpp's row 2i + j is HF's row i + j K/2, for j in {0, 1}.

    Parameters
    ----------
    weight : (n_heads K, N) float32
    n_heads : int
        Heads of this projection: H for q_proj, G for k_proj.

    Returns
    -------
    (n_heads K, N) float32

    Examples
    --------
    >>> unpermute_rows(np.arange(6, dtype=np.float32)[:, None], n_heads=1).ravel()
    array([0., 2., 4., 1., 3., 5.], dtype=float32)
    """
    n_rows, width = weight.shape
    pairs = weight.reshape(n_heads, n_rows // n_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(n_rows, width)


def gguf_config(source: Path) -> dict[str, Any]:
    """Return the ``config.json`` that a GGUF file would get, after the checks of `import_gguf`.

    Reads the file's header, no weights.

    Raises
    ------
    FormatError, MissingDependencyError
        As `import_gguf`.
    """
    gguf = GGUFFile(source)
    with context(str(source)):
        config = _config(gguf)
        _hf_names(gguf, config)
    return config


def import_gguf(source: Path, folder: Path, *, progress: bool = True) -> Path:
    """Convert a GGUF file into a Hugging Face model folder.

    Parameters
    ----------
    source : Path
        A GGUF file whose ``general.architecture`` is ``llama``.
    folder : Path
        The folder to make; it must not exist. It appears when it is complete.
    progress : bool
        Show a bar on stderr.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    FormatError
        If the file is damaged, or is of an architecture, a RoPE scaling, a tokenizer or a tensor
        type that is not supported; the message names it.
    InputError
        If `folder` exists.
    MissingDependencyError
        If the ``gguf`` package is not installed.
    LatticeqError
        If the disk is full or may not be written to.
    """
    gguf = GGUFFile(source)
    with context(str(source)):
        config = _config(gguf)
        names = _hf_names(gguf, config)
        tokenizer = build_tokenizer(gguf.metadata)
        if tokenizer.get_vocab_size() > config["vocab_size"]:  # fewer is padding, which is fine
            raise FormatError(
                f"tensor token_embd.weight has {config['vocab_size']} rows for "
                f"{tokenizer.get_vocab_size()} tokens"
            )
        documents = {
            "config.json": config,
            "generation_config.json": _token_ids(gguf.metadata, every_eos=True),
            "tokenizer_config.json": tokenizer_config(
                gguf.metadata, config["max_position_embeddings"]
            ),
        }
    with new_folder(folder) as partial:
        _write_weights(gguf, partial / "model.safetensors", config, names, progress)
        for name, document in documents.items():
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            (partial / name).write_text(text, "utf-8")
        (partial / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    return folder


class _Keys:
    """Typed access to the ``llama.*`` metadata."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._positive(key, default)
        if isinstance(value, int):
            return value
        raise FormatError(f"llama.{key} is {short(value)}; an integer is needed")

    def decimal(self, key: str, default: float | None = None) -> float:
        # Stored as float32: 1e-05 would otherwise read 9.999999747378752e-06.
        return float(str(np.float32(self._positive(key, default))))

    def _positive(self, key: str, default: float | None) -> float:
        value = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise FormatError(f"llama.{key} is missing from the metadata")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one number a layer, all equal
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < _MAX_NUMBER:
            raise FormatError(f"llama.{key} is {short(value)}; one positive number is needed")
        number: float = value
        return number


def _config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    metadata, keys = gguf.metadata, _Keys(gguf.metadata)
    architecture = metadata.get("general.architecture")
    if str(architecture) != "llama":
        raise FormatError(
            f"general.architecture is {short(architecture)}; only 'llama' is supported"
        )
    if str(metadata.get("llama.expert_count", 0)) != "0":
        raise FormatError(
            "is a mixture of experts (llama.expert_count); only dense ones are supported"
        )
    hidden, n_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", max(1, hidden // n_heads))
    rotated = keys.integer("rope.dimension_count", head_dim)
    if rotated != head_dim or head_dim % 2:
        raise FormatError(
            f"rotates {rotated} of {head_dim} entries a head; only whole, even heads are supported"
        )
    theta = keys.decimal("rope.freq_base", 10000.0)
    context_length = keys.integer("context_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "max_position_embeddings": context_length,
        "rms_norm_eps": keys.decimal("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(gguf, keys, theta, head_dim),
        "vocab_size": _embedding_rows(gguf),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **_token_ids(metadata, every_eos=False),
    }


def _embedding_rows(gguf: GGUFFile) -> int:
    """Return the vocabulary's size, which may be padded beyond the tokenizer's."""
    if "token_embd.weight" not in gguf.tensors:
        raise FormatError("tensor token_embd.weight is missing")
    return gguf.tensors["token_embd.weight"].shape[0]


def _token_ids(metadata: Mapping[str, Any], *, every_eos: bool) -> dict[str, Any]:
    roles = special_tokens(metadata)
    if not roles.eos:
        raise FormatError("tokenizer.ggml.eos_token_id is missing: generation would never stop")
    ids: dict[str, Any] = {} if roles.bos is None else {"bos_token_id": roles.bos}
    ids["eos_token_id"] = list(roles.eos) if every_eos and len(roles.eos) > 1 else roles.eos[0]
    return ids if roles.pad is None else ids | {"pad_token_id": roles.pad}


def _rope_scaling(
    gguf: GGUFFile, keys: _Keys, theta: float, head_dim: int
) -> dict[str, Any] | None:
    kind = str(gguf.metadata.get("llama.rope.scaling.type", "none"))
    if _ROPE_FACTORS in gguf.tensors:
        return _llama3_scaling(gguf, keys, theta, head_dim)
    if kind == "none":
        return None
    if kind != "linear":
        raise FormatError(
            f"llama.rope.scaling.type is {short(kind)}; supported are none and linear"
        )
    return {"rope_type": "linear", "factor": keys.decimal("rope.scaling.factor")}


def _llama3_scaling(gguf: GGUFFile, keys: _Keys, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3's RoPE scaling from the divisors of each frequency that GGUF stores.

    The divisors are a function of four numbers, of which every released model uses the same three;
    the fourth is the largest divisor. They are checked, not assumed.
    """
    divisors = gguf.float32(_ROPE_FACTORS)
    original = keys.integer("rope.scaling.original_context_length", 8192)
    factor, low, high = float(divisors.max()), 1.0, 4.0
    if divisors.shape != (head_dim // 2,):
        raise FormatError(f"tensor {_ROPE_FACTORS} has shape {divisors.shape}, not {head_dim // 2}")
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    # Full scaling from wavelength original/low on, none up to original/high, a blend between.
    kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise FormatError(
            f"tensor {_ROPE_FACTORS} holds a RoPE scaling other than Llama 3's, which is not "
            "supported: convert from the model's Hugging Face folder instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _hf_names(gguf: GGUFFile, config: Mapping[str, Any]) -> dict[str, str]:
    """Return GGUF name to HF name; every tensor is there, known and in shape."""
    names = dict(_NAMES)
    if config["tie_word_embeddings"]:
        del names["output.weight"]
    for layer in range(config["num_hidden_layers"]):
        for name, hf_name in _LAYER_NAMES.items():
            gguf_name = f"blk.{layer}.{name}"
            if gguf_name not in gguf.tensors:  # before the next layer: layer counts may be absurd
                raise FormatError(f"tensor {gguf_name} is missing")
            names[gguf_name] = f"model.layers.{layer}.{hf_name}"
    if "output_norm.weight" not in gguf.tensors:
        raise FormatError("tensor output_norm.weight is missing")
    for name, tensor in gguf.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        if name not in names:
            raise FormatError(f"tensor {name} has no place in a Llama model without biases")
        expected = _shape(names[name], config)
        if tensor.shape != expected:
            raise FormatError(f"tensor {name} has shape {tensor.shape}; it must be {expected}")
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
    return shapes.get(hf_name.split(".")[-2], (hidden,))  # the rest are norms


def _write_weights(
    gguf: GGUFFile, path: Path, config: Mapping[str, Any], names: Mapping[str, str], progress: bool
) -> None:
    from tqdm import tqdm

    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    with SafetensorsWriter(path, {"format": "pt"}) as writer:
        for name, hf_name in names.items():
            writer.declare(hf_name, "F32", gguf.tensors[name].shape)
        for name, hf_name in tqdm(names.items(), "convert", disable=not progress, unit="tensor"):
            weight = gguf.float32(name)
            module = hf_name.split(".")[-2]
            if module in heads:
                weight = unpermute_rows(weight, heads[module])
            writer.write(hf_name, weight)
