"""The Llama forward pass, to be read beside the papers. Plain NumPy, no cache, one sequence.

RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021, RoFormer eq. 15 and 34), grouped
queries (Ainslie et al. 2023), SwiGLU (Shazeer 2020); pre-normalised as in Llama (Touvron et al.
2023). Everything is float64, except the rotary angles: models are trained with float32 angles.

Notation: T tokens, D model width, F feed-forward width, H heads, G kv heads, K head width, V
vocabulary. ``weights`` maps Hugging Face tensor names to arrays; a linear's weight is (out, in).
``config`` is the object in ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]


def rms_norm(x: Array, weight: NDArray[Any], epsilon: float) -> Array:
    """Scale every row to mean square 1, then each coordinate by its weight.

    Examples
    --------
    >>> y = rms_norm(np.array([[3.0, -4.0]]), np.ones(2), 0.0)
    >>> float(np.mean(y**2))
    1.0
    """
    scaled: Array = weight * x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)
    return scaled


def head_dim(config: Mapping[str, Any]) -> int:
    """Return K, which is D / H where the file does not say."""
    width: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return width


def frequencies(config: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return theta**(-2i/K), the angle a position for each pair i, stretched as configured."""
    width = head_dim(config)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    theta = np.float32(config.get("rope_theta", 10000.0))
    plain: NDArray[np.float32] = (1 / theta**exponents).astype(np.float32)
    scaling = config.get("rope_scaling") or {"rope_type": "default"}
    if scaling["rope_type"] == "default":
        return plain
    stretched: NDArray[np.float32] = (plain / scaling["factor"]).astype(np.float32)
    if scaling["rope_type"] == "linear":
        return stretched
    # Llama 3: long wavelengths are stretched, short ones kept, those between mixed.
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    result = []
    for old, new in zip(plain, stretched, strict=True):
        wavelength = 2 * np.pi / old
        if wavelength > original / low:
            result.append(new)
        elif wavelength < original / high:
            result.append(old)
        else:
            kept = (original / wavelength - low) / (high - low)
            result.append((1 - kept) * new + kept * old)
    return np.array(result, np.float32)


def rope(x: Array, turn: NDArray[np.float32]) -> Array:
    """Turn the pair (i, i + K/2) of every head at position t by the angle t * turn[i].

    Examples
    --------
    >>> x = np.ones((5, 1, 2))
    >>> bool(np.allclose(np.linalg.norm(rope(x, np.float32([0.3])), axis=-1), np.sqrt(2)))
    True
    """
    n_tokens, _, width = x.shape
    angles = np.arange(n_tokens, dtype=np.float32)[:, None] * turn  # (T, K/2)
    cosine = np.cos(angles.astype(np.float64))[:, None]  # (T, 1, K/2)
    sine = np.sin(angles.astype(np.float64))[:, None]
    a, b = x[..., : width // 2], x[..., width // 2 :]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def softmax(x: Array) -> Array:
    """Exponentiate and normalise the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    normalised: Array = e / e.sum(axis=-1, keepdims=True)
    return normalised


def attention(q: Array, k: Array, v: Array) -> Array:
    """Mix, for every query, the values at positions up to its own.

    q is (T, H, K), k and v are (T, G, K); head h uses kv head h // (H/G). Returns (T, H, K).
    """
    n_tokens, heads, width = q.shape
    shared = heads // k.shape[1]
    future = np.triu(np.ones((n_tokens, n_tokens), bool), 1)
    out = np.empty_like(q)
    for h in range(heads):
        scores = q[:, h] @ k[:, h // shared].T / np.sqrt(width)  # (T, T)
        scores[future] = -np.inf
        out[:, h] = softmax(scores) @ v[:, h // shared]  # (T, K)
    return out


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    gated: Array = x / (1 + np.exp(-x))
    return gated


def block(x: Array, weights: Weights, prefix: str, config: Mapping[str, Any]) -> Array:
    """Run one layer on the residual stream: (T, D) -> (T, D)."""

    def linear(name: str, y: Array) -> Array:
        bias = weights.get(f"{prefix}.{name}.bias", np.zeros(1))
        product: Array = y @ weights[f"{prefix}.{name}.weight"].astype(np.float64).T + bias
        return product

    n_tokens, width, epsilon = len(x), head_dim(config), config["rms_norm_eps"]
    turn = frequencies(config)

    n = rms_norm(x, weights[f"{prefix}.input_layernorm.weight"], epsilon)
    q = rope(linear("self_attn.q_proj", n).reshape(n_tokens, -1, width), turn)  # (T, H, K)
    k = rope(linear("self_attn.k_proj", n).reshape(n_tokens, -1, width), turn)  # (T, G, K)
    v = linear("self_attn.v_proj", n).reshape(n_tokens, -1, width)  # (T, G, K)
    x = x + linear("self_attn.o_proj", attention(q, k, v).reshape(n_tokens, -1))

    m = rms_norm(x, weights[f"{prefix}.post_attention_layernorm.weight"], epsilon)
    gated = silu(linear("mlp.gate_proj", m)) * linear("mlp.up_proj", m)  # (T, F)
    return x + linear("mlp.down_proj", gated)


def logits(ids: ArrayLike, weights: Weights, config: Mapping[str, Any]) -> Array:
    """Return the logits after every token: (T,) int -> (T, V)."""
    table = weights["model.embed_tokens.weight"].astype(np.float64)  # (V, D)
    x = table[np.asarray(ids)]  # (T, D)
    for layer in range(config["num_hidden_layers"]):
        x = block(x, weights, f"model.layers.{layer}", config)
    x = rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])
    head = table if config.get("tie_word_embeddings") else weights["lm_head.weight"]
    scores: Array = x @ head.astype(np.float64).T
    return scores


def nll(ids: ArrayLike, weights: Weights, config: Mapping[str, Any]) -> Array:
    """Return the negative log-likelihood of every token after the first: (T - 1,)."""
    tokens = np.asarray(ids)
    probabilities = softmax(logits(tokens[:-1], weights, config))
    losses: Array = -np.log(probabilities[np.arange(len(tokens) - 1), tokens[1:]])
    return losses
