"""Convert a GGUF file of the Llama family into a Hugging Face model folder.

The folder gets ``config.json``, ``model.safetensors`` in float32, ``tokenizer.json``,
``tokenizer_config.json`` and ``generation_config.json``, with HF names throughout, and rows in HF's
order (`latticeq.model.gguf_names`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np

from latticeq.errors import FormatError, context
from latticeq.model.gguf_names import (
    ARCHITECTURES,
    ROPE_FACTORS,
    hf_names,
    interleaved_heads,
    unpermute_rows,
)
from latticeq.model.gguf_tokenizer import build_tokenizer, special_tokens, tokenizer_config
from latticeq.storage.disk import new_folder
from latticeq.storage.gguf import GGUFFile
from latticeq.storage.safetensors import SafetensorsWriter

__all__ = ["gguf_config", "import_gguf"]

_MAX_NUMBER = 1 << 40  # no size, angle or context of a model is larger


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
        hf_names(gguf.tensors, config)
    return config


def import_gguf(source: Path, folder: Path, *, progress: bool = True) -> Path:
    """Convert a GGUF file into a Hugging Face model folder.

    Parameters
    ----------
    source : Path
        A GGUF file whose ``general.architecture`` is one of
        `latticeq.model.gguf_names.ARCHITECTURES`.
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
        names = hf_names(gguf.tensors, config)
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
    """Typed access to the metadata that begins with the architecture: ``llama.*``, say."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise FormatError(
                f"general.architecture is {short(self.architecture)}; supported are "
                f"{', '.join(ARCHITECTURES)}"
            )

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.metadata

    def word(self, key: str, default: str) -> str:
        return str(self.metadata.get(f"{self.architecture}.{key}", default))

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._positive(key, default)
        if isinstance(value, int):
            return value
        raise FormatError(f"{self.architecture}.{key} is {short(value)}; an integer is needed")

    def decimal(self, key: str, default: float | None = None) -> float:
        # Stored as float32: 1e-05 would otherwise read 9.999999747378752e-06.
        return float(str(np.float32(self._positive(key, default))))

    def _positive(self, key: str, default: float | None) -> float:
        name = f"{self.architecture}.{key}"
        value = self.metadata.get(name, default)
        if value is None:
            raise FormatError(f"{name} is missing from the metadata")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one number a layer, all equal
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < _MAX_NUMBER:
            raise FormatError(f"{name} is {short(value)}; one positive number is needed")
        number: float = value
        return number


def _config(gguf: GGUFFile) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    metadata, keys = gguf.metadata, _Keys(gguf.metadata)
    if keys.word("expert_count", "0") != "0":
        raise FormatError(
            f"is a mixture of experts ({keys.architecture}.expert_count); only dense ones are "
            "supported"
        )
    hidden, n_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", max(1, hidden // n_heads))
    rotated = keys.integer("rope.dimension_count", head_dim)
    if rotated != head_dim or head_dim % 2:
        raise FormatError(
            f"rotates {rotated} of {head_dim} entries a head; only whole, even heads are supported"
        )
    theta = keys.decimal("rope.freq_base", 10000.0)
    architecture = ARCHITECTURES[keys.architecture]
    return {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", n_heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.decimal("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(gguf, keys, theta, head_dim),
        "vocab_size": _embedding_rows(gguf),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        **_biases(gguf, keys),
        **_window(keys),
        "torch_dtype": "float32",
        **_token_ids(metadata, every_eos=False),
    }


def _biases(gguf: GGUFFile, keys: _Keys) -> dict[str, bool]:
    """Return which linears of a Llama have biases; a Qwen2 has the same ones always."""
    found = dict.fromkeys(("attention_bias", "mlp_bias"), False)
    if keys.architecture == "llama":
        for name in gguf.tensors:
            if name.startswith("blk.0.") and name.endswith(".bias"):
                found["attention_bias" if ".attn_" in name else "mlp_bias"] = True
    return found


def _window(keys: _Keys) -> dict[str, Any]:
    """Return the fields of a sliding window, if the file states one."""
    if not keys.has("attention.sliding_window"):
        return {}
    window: dict[str, Any] = {"sliding_window": keys.integer("attention.sliding_window")}
    if keys.architecture == "llama":
        return window
    return window | {"use_sliding_window": True, "max_window_layers": 0}


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
    linear = _linear_scaling(keys)
    if ROPE_FACTORS not in gguf.tensors:
        return linear
    if linear is not None:
        raise FormatError(
            f"has {keys.architecture}.rope.scaling.factor and tensor {ROPE_FACTORS}; only one of "
            "them is supported"
        )
    return _llama3_scaling(gguf, keys, theta, head_dim)


def _linear_scaling(keys: _Keys) -> dict[str, Any] | None:
    """Return a linear RoPE scaling, which is what llama.cpp takes a bare factor for."""
    kind = keys.word("rope.scaling.type", "linear")
    if kind == "none":
        return None
    if kind != "linear":
        raise FormatError(
            f"{keys.architecture}.rope.scaling.type is {short(kind)}; supported are none and linear"
        )
    # Files of 2023 have the second spelling.
    factor = keys.decimal("rope.scaling.factor", keys.decimal("rope.scale_linear", 1.0))
    return None if factor == 1 else {"rope_type": "linear", "factor": factor}


def _llama3_scaling(gguf: GGUFFile, keys: _Keys, theta: float, head_dim: int) -> dict[str, Any]:
    """Recover Llama 3's RoPE scaling from the divisors of each frequency that GGUF stores.

    The divisors are a function of four numbers, of which every released model uses the same three;
    the fourth is the largest divisor. They are checked, not assumed.
    """
    divisors = gguf.float32(ROPE_FACTORS)
    original = keys.integer("rope.scaling.original_context_length", 8192)
    factor, low, high = float(divisors.max()), 1.0, 4.0
    if divisors.shape != (head_dim // 2,):
        raise FormatError(f"tensor {ROPE_FACTORS} has shape {divisors.shape}, not {head_dim // 2}")
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    # Full scaling from wavelength original/low on, none up to original/high, a blend between.
    kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - kept) / factor + kept)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise FormatError(
            f"tensor {ROPE_FACTORS} holds a RoPE scaling other than Llama 3's, which is not "
            "supported: convert from the model's Hugging Face folder instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _write_weights(
    gguf: GGUFFile, path: Path, config: Mapping[str, Any], names: Mapping[str, str], progress: bool
) -> None:
    from tqdm import tqdm

    heads = interleaved_heads(config)
    with SafetensorsWriter(path, {"format": "pt"}) as writer:
        for name, hf_name in names.items():
            writer.declare(hf_name, "F32", gguf.tensors[name].shape)
        for name, hf_name in tqdm(names.items(), "convert", disable=not progress, unit="tensor"):
            weight = gguf.float32(name)
            module = hf_name.split(".")[-2]
            if module in heads:
                weight = unpermute_rows(weight, heads[module])
            writer.write(hf_name, weight)
