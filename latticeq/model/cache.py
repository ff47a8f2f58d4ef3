"""Keys and values of the tokens seen so far, in float32.

The whole context is reserved at once, but memory that was never written costs no pages: a cache for
8192 tokens that holds 100 takes little more than those 100.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.model.config import LlamaConfig

__all__ = ["KVCache"]

# Floats at the end of a row of keys. Attention reads up to 64 positions at a time; and without any,
# rows of a power of two bytes would map all coordinates to few cache sets.
_PADDING = 64


class KVCache:
    """The memory of one sequence.

    Parameters
    ----------
    config : LlamaConfig
        Gives the number of layers L, kv heads G and the head width K.
    context : int
        The most tokens that it can hold.
    layers : int, optional
        How many layers to hold, instead of the model's.

    Attributes
    ----------
    length : int
        Tokens held by every layer; positions from here on are free.
    context : int
        As given.

    Raises
    ------
    InputError
        If `context` is not from 1 to ``config.max_position_embeddings``.
    """

    def __init__(self, config: LlamaConfig, context: int, layers: int | None = None) -> None:
        longest = config.max_position_embeddings
        if not 1 <= context <= longest:
            raise InputError(
                f"context is {context}; it must be from 1 to {longest}, the model's "
                "max_position_embeddings"
            )
        layers = config.num_hidden_layers if layers is None else layers
        kv_heads, width = config.num_key_value_heads, config.head_dim
        self.context = context
        self.length = 0
        # Keys are transposed: attention.py says why.
        self._keys = np.empty((layers, kv_heads, width, context + _PADDING), np.float32)
        self._values = np.empty((layers, kv_heads, context, width), np.float32)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""
        layers, kv_heads, _, width = self._values.shape
        return 2 * layers * kv_heads * width * self._values.itemsize

    def check_room(self, n_tokens: int) -> None:
        """Make sure that `n_tokens` more fit.

        Raises
        ------
        InputError
            If they do not.
        """
        if self.length + n_tokens > self.context:
            raise InputError(
                f"{self.length} tokens are in the cache and {n_tokens} more were given; the "
                f"context is {self.context}. Use a larger context or a shorter text"
            )

    def append(
        self, layer: int, k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Write the keys and values of new tokens in one layer.

        The tokens count as held only after `advance`, when every layer has them.

        Parameters
        ----------
        layer : int
        k, v : (T, G, K) float32
            Of positions ``length`` to ``length + T - 1``.

        Returns
        -------
        keys : (G, K, S') float32
            A view of all keys of the layer; positions before ``length + T`` are written.
        values : (G, S', K) float32
        """
        self.check_room(len(k))
        new = slice(self.length, self.length + len(k))
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, new] = k.transpose(1, 2, 0)
        values[:, new] = v.transpose(1, 0, 2)
        return keys, values

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` as held, after every layer has appended them."""
        self.length += n_tokens

    def clear(self) -> None:
        """Forget everything; the memory is used again."""
        self.length = 0
