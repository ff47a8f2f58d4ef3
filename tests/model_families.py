"""The models that people have: their published ``config.json``, with sizes made tiny.

Every field stands as published, the ones that no forward pass reads too, but for widths, depths,
heads, vocabularies and the ids of tokens; the ratios of heads are kept. So what a file of a family
leaves out, states for nothing or spells in its own way is what users' files do. Imports nothing of
latticeq.
"""

from __future__ import annotations

from typing import Any


def _sizes(
    hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int = 97
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


_LLAMA_2 = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    **_sizes(48, 80, 6, 6),
}

_LLAMA_3 = _LLAMA_2 | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0.dev0",
    **_sizes(64, 112, 8, 2),
}

_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

_LLAMA_3_1 = _LLAMA_3 | {
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": _SCALING,
    "transformers_version": "4.43.0.dev0",
    **_sizes(64, 112, 4, 1),
}

_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    **_sizes(64, 112, 4, 1),
}

_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_sliding_window": False,
    **_sizes(56, 304, 7, 1),
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama-2": _LLAMA_2,
    "tinyllama": _LLAMA_2
    | {
        "attention_bias": False,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.35.0",
        **_sizes(64, 176, 8, 1),
    },
    "llama-3": _LLAMA_3,
    "llama-3.1": _LLAMA_3_1,
    "llama-3.2": _LLAMA_3_1
    | {
        "head_dim": 16,
        "rope_scaling": _SCALING | {"factor": 32.0},
        "tie_word_embeddings": True,
        "transformers_version": "4.45.0.dev0",
    },
    "smollm2": _LLAMA_3
    | {
        "initializer_range": 0.041666666666666664,
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "transformers_version": "4.40.1",
        **_sizes(72, 192, 9, 3),
    },
    "mistral-v0.1": _MISTRAL,
    "mistral-v0.3": _MISTRAL
    | {
        "attention_dropout": 0.0,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "transformers_version": "4.42.0.dev0",
    },
    "mistral-nemo": _MISTRAL
    | {
        "attention_dropout": 0.0,
        "head_dim": 16,  # H K is less than D
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "transformers_version": "4.43.0.dev0",
        **_sizes(80, 144, 4, 1),
    },
    "qwen2": _QWEN2,
    "qwen2.5": _QWEN2
    | {
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
        "transformers_version": "4.43.1",
        **_sizes(112, 592, 7, 1),
    },
}

WINDOWED = _MISTRAL | {"sliding_window": 32}
"""Mistral 7B v0.1 with a window that a hundred tokens are too many for."""
