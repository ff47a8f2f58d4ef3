"""Keys and values of the tokens seen so far: what every cache does, and the one in float32.

A `Block` gives a cache the queries, keys and values of new tokens and gets back what attention
makes of them; in which form keys and values are kept in between is the cache's own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.model.attention import attend
from latticeq.model.config import LlamaConfig

__all__ = ["FloatCache", "KVCache"]

# Floats at the end of a row of keys. Attention reads up to 64 positions at a time; and without any,
# rows of a power of two bytes would map all coordinates to few cache sets.
_PADDING = 64


class KVCache(ABC):
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
    shape : tuple of int
        (L, G, K).

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
        self.context = context
        self.length = 0
        self.shape = (layers, config.num_key_value_heads, config.head_dim)

    @property
    @abstractmethod
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the memory that is held for keys and values."""

    @property
    def bits_per_entry(self) -> float:
        """Bits that one number of a key or a value takes, with all that belongs to it."""
        layers, kv_heads, width = self.shape
        return 8 * self.nbytes_per_token / (2 * layers * kv_heads * width)

    @abstractmethod
    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Keep the keys and values of new tokens in one layer, and let their queries attend.

        A token sees every position up to its own. The tokens count as held only after `advance`,
        when every layer has them.

        Parameters
        ----------
        layer : int
        q : (T, H, K) float32
            Queries of positions ``length`` to ``length + T - 1``, after rotary positions.
        k, v : (T, G, K) float32
            Their keys, after rotary positions, and values.

        Returns
        -------
        (T, H * K) float32

        Raises
        ------
        InputError
            If there is no room.
        """

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

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` as held, after every layer has them."""
        self.length += n_tokens

    def clear(self) -> None:
        """Forget everything; the memory is used again."""
        self.length = 0


class FloatCache(KVCache):
    """Keys and values in float32: what attention reads, without any work on the way.

    The whole context is reserved at once as one array, which attention wants; memory that was never
    written costs no pages, except that the operating system may take them by the megabyte.

    Parameters, attributes and errors are those of `KVCache`.
    """

    def __init__(self, config: LlamaConfig, context: int, layers: int | None = None) -> None:
        super().__init__(config, context, layers)
        layers, kv_heads, width = self.shape
        # Keys are transposed: attention.py says why.
        self._keys = np.empty((layers, kv_heads, width, context + _PADDING), np.float32)
        self._values = np.empty((layers, kv_heads, context, width), np.float32)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""
        layers, kv_heads, width = self.shape
        return 2 * layers * kv_heads * width * self._values.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes reserved for keys and values, written or not."""
        return self._keys.nbytes + self._values.nbytes

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Keep keys and values, and attend; see `KVCache.attend`."""
        self.check_room(len(k))
        new = slice(self.length, self.length + len(k))
        keys, values = self._keys[layer], self._values[layer]  # (G, K, S'), (G, S', K)
        keys[:, :, new] = k.transpose(1, 2, 0)
        values[:, new] = v.transpose(1, 0, 2)
        return attend(q, keys, values, self.length)
