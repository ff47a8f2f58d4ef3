"""A block's decode step: one token through packed linears, with few calls and no new arrays.

What `latticeq.model.llama.Block` does for any number of tokens and any linears, this does for one
token where the linears that share an input share a kernel. Everything that does not change from
token to token, views and addresses, is made once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latticeq.linear.token import TokenProduct
from latticeq.model.kernels import rms_norm, rotate, swiglu
from latticeq.storage.bits import ROWS

if TYPE_CHECKING:
    from latticeq.model.kv.cache import KVCache
    from latticeq.model.llama import Block

__all__ = ["OneToken"]

_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Linears by what they share, in the order in which a token meets them."""


class OneToken:
    """The decode step of a block that `fits`.

    Parameters
    ----------
    block : Block
    """

    def __init__(self, block: Block) -> None:
        config = block.config
        self._epsilon = config.rms_norm_eps
        self._norms = block.norms["input_layernorm"], block.norms["post_attention_layernorm"]
        linears: dict[str, Any] = block.linears
        self._products = [TokenProduct([linears[name] for name in names]) for names in _INPUTS]
        self._biases = [_joined_bias([linears[name] for name in names]) for names in _INPUTS]
        width, heads = config.head_dim, config.num_attention_heads
        kv_heads = config.num_key_value_heads
        self._normed = np.empty((1, config.hidden_size), np.float32)
        self._added = np.empty(config.hidden_size, np.float32)
        self._turned = np.empty(self._products[0].size, np.float32)
        turned = heads + kv_heads
        self._qk = self._turned[: turned * width].reshape(1, turned, width)
        self._q, self._k = self._qk[:, :heads], self._qk[:, heads:]
        self._v = self._turned[turned * width :].reshape(1, kv_heads, width)
        self._inner = np.empty(self._products[2].size, np.float32)
        self._gate, self._up = self._inner.reshape(2, 1, config.intermediate_size)

    @staticmethod
    def fits(block: Block) -> bool:
        """Tell whether a block's linears have kernels for one token and full groups."""
        for names in _INPUTS:
            linears: list[Any] = [block.linears[name] for name in names]
            if not TokenProduct.fits(linears):
                return False
            if any(f.out_features % ROWS for f in linears):
                return False
        return True

    def __call__(
        self,
        x: NDArray[np.float32],
        turns: tuple[NDArray[np.float32], NDArray[np.float32]],
        cache: KVCache,
        layer: int,
    ) -> NDArray[np.float32]:
        """Run over the next token: as `Block.__call__`, with x (1, D)."""
        rms_norm(x, self._norms[0], self._epsilon, self._normed)
        self._multiply(0, self._normed[0], self._turned)
        rotate(self._qk, *turns)
        mixed = cache.attend(layer, self._q, self._k, self._v)  # (1, H K)
        self._multiply(1, mixed[0], self._added)
        x += self._added
        rms_norm(x, self._norms[1], self._epsilon, self._normed)
        self._multiply(2, self._normed[0], self._inner)
        swiglu(self._gate, self._up)
        self._multiply(3, self._gate[0], self._added)
        x += self._added
        return x

    def _multiply(self, stage: int, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Apply the linears of a stage: x (N,) into y, the matrices' rows one after another."""
        self._products[stage](x, y)
        bias = self._biases[stage]
        if bias is not None:
            y += bias


def _joined_bias(linears: list[Any]) -> NDArray[np.float32] | None:
    """Return the biases of linears one after another, zeros for one without; None if all are."""
    if all(linear.bias is None for linear in linears):
        return None
    parts = [np.zeros(f.out_features, np.float32) if f.bias is None else f.bias for f in linears]
    return np.concatenate(parts)
