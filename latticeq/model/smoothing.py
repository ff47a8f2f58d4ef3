r"""Smoothing: move the scale of channels from activations into weights, changing nothing else.

A linear layer y = W x does the same with x_j / s_j and W_:j s_j for any positive s, and every input
of a block can be divided for free: those of q, k, v and of gate and up by the norm's weights before
them, that of o by the rows of v (one s for all query heads that share a kv head), that of down by
the rows of up. Where activations are coded, a token's error is spread over its channels by the
rotation, so it costs Σ_j E[x_j²]/s_j² · Σ_j ‖W_:j‖² s_j², and that is least for

    s_j² = rms(x_j) / ‖W_:j‖.

The exponent is `strength` (1/2 in that formula). s is normalised to a geometric mean of one, which
no code sees.

Source: Xiao et al., *SmoothQuant*, arXiv 2211.10438, with their exponent 1/2 and Euclidean norms in
place of maxima, as suits codes behind a rotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latticeq.model.config import LlamaConfig

__all__ = ["BlockTensors", "smooth", "smoothing_scale"]

_FLOOR = 1e-6
"""Of a channel's scale over the layer's largest: dead channels are left near the others."""


@dataclass(frozen=True, eq=False)
class BlockTensors:
    """The float tensors of a block.

    Parameters
    ----------
    linears : mapping of str to (M, N) float32
        By the names of `latticeq.model.llama.BLOCK_LINEARS`.
    norms : mapping of str to (D,) float32
    biases : mapping of str to (M,) float32
        Of the linears that have one.
    """

    linears: dict[str, NDArray[np.float32]]
    norms: dict[str, NDArray[np.float32]]
    biases: dict[str, NDArray[np.float32]]


def smoothing_scale(
    squares: NDArray[np.float64], columns: NDArray[np.float64], strength: float
) -> NDArray[np.float32]:
    """Return s.

    Parameters
    ----------
    squares : (N,) float64
        E[x_j²] of the input's channels.
    columns : (N,) float64
        ‖W_:j‖² of the weights' columns, added up over the linears that share the input.
    strength : float
        From 0, which gives ones, to 1.

    Examples
    --------
    >>> smoothing_scale(np.array([16.0, 1.0]), np.array([1.0, 1.0]), 0.5).tolist()
    [1.4142135381698608, 0.7071067690849304]
    """

    def logarithm(powers: NDArray[np.float64]) -> NDArray[np.float64]:
        rms = np.sqrt(powers)
        largest = rms.max(initial=0) or 1.0
        return np.asarray(np.log(np.maximum(rms, _FLOOR * largest)))

    exponent = strength * (logarithm(squares) - logarithm(columns))
    scale: NDArray[np.float32] = np.exp(exponent - exponent.mean()).astype(np.float32)
    return scale


def smooth(
    block: BlockTensors,
    squares: Mapping[str, NDArray[np.float64]],
    config: LlamaConfig,
    strength: float,
) -> BlockTensors:
    """Return the same block with smoothed inputs.

    Parameters
    ----------
    block : BlockTensors
    squares : mapping of str to (N,) float64
        E[x_j²] of the four inputs, by the name of the first linear that takes each.
    config : LlamaConfig
    strength : float
    """
    linears, norms, biases = dict(block.linears), dict(block.norms), dict(block.biases)

    def scale_of(names: tuple[str, ...], heads: int = 0) -> NDArray[np.float32]:
        power = squares[names[0]]
        columns = sum(np.square(linears[name], dtype=np.float64).sum(axis=0) for name in names)
        if heads:  # (G, H/G, K): query heads that share a kv head share its channels
            power = power.reshape(heads, -1, config.head_dim).mean(axis=1).reshape(-1)
            columns = np.reshape(columns, (heads, -1, config.head_dim)).sum(axis=1).reshape(-1)
        return smoothing_scale(power, np.asarray(columns), strength)

    def divide_rows(name: str, scale: NDArray[np.float32]) -> None:
        linears[name] = linears[name] / scale[:, None]
        if name in biases:
            biases[name] = biases[name] / scale

    pairs = (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    )
    for norm, names in pairs:
        scale = scale_of(names)
        norms[norm] = norms[norm] / scale
        for name in names:
            linears[name] = linears[name] * scale
    scale = scale_of(("mlp.down_proj",))
    divide_rows("mlp.up_proj", scale)
    linears["mlp.down_proj"] = linears["mlp.down_proj"] * scale

    kv_heads = config.num_key_value_heads
    scale = scale_of(("self_attn.o_proj",), kv_heads)
    divide_rows("self_attn.v_proj", scale)
    spread = np.repeat(scale.reshape(kv_heads, 1, -1), config.num_attention_heads // kv_heads, 1)
    linears["self_attn.o_proj"] = linears["self_attn.o_proj"] * spread.reshape(-1)
    return BlockTensors(linears, norms, biases)
