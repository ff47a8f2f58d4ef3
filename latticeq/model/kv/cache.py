"""Keys and values of the tokens seen so far: what every cache does, and the one of floats.

A `Block` gives a cache the queries, keys and values of new tokens and gets back what attention
makes of them; in which form keys and values are kept in between is the cache's own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latticeq.errors import InputError
from latticeq.model.attention import TILE, attend_many
from latticeq.model.attention_one import CHUNK, append_many, append_one, attend_one, together
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.pages import Pages

__all__ = ["FloatCache", "KVCache"]


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
        If `context` is not from 1 to ``config.longest_context``.
    """

    def __init__(self, config: LlamaConfig, context: int, layers: int | None = None) -> None:
        config.check_context(context)
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

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`; the memory is used again.

        What attention gives from then on does not depend on what was forgotten.

        Raises
        ------
        InputError
            If fewer tokens are held.
        """
        if not 0 <= length <= self.length:
            raise InputError(
                f"{length} tokens are to be kept; the cache holds {self.length}, and can be cut "
                f"back to 0 to {self.length}"
            )
        self.length = length

    def clear(self) -> None:
        """Forget everything; the memory is used again."""
        self.truncate(0)


class FloatCache(KVCache):
    """Keys and values as floats.

    Memory grows by pages of 256 positions, or the context if that is shorter; the layout is that
    of `latticeq.model.attention`.

    Parameters
    ----------
    config, context, layers
        As in `KVCache`, whose attributes and errors these are.
    dtype : np.dtype or type
        float32, or float16, which holds numbers of up to 65504 to eleven bits.
    """

    def __init__(
        self,
        config: LlamaConfig,
        context: int,
        layers: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        super().__init__(config, context, layers)
        # Kernels take float16 as its bits.
        self._dtype = np.dtype(np.uint16 if np.dtype(dtype) == np.float16 else np.float32)
        self._page = min(CHUNK, -(-context // TILE) * TILE)
        self._together = together(config.num_attention_heads // config.num_key_value_heads)
        _, kv_heads, width = self.shape
        parts = [
            ((kv_heads, self._page // TILE, width, TILE), self._dtype),
            ((kv_heads, self._page, width), self._dtype),
        ]
        self._pages = Pages(self.shape[0], -(-context // self._page), parts)
        self._like = np.empty(0, self._dtype)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""
        layers, kv_heads, width = self.shape
        return 2 * layers * kv_heads * width * self._dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return self._pages.nbytes

    def reserve(self, n_tokens: int) -> None:
        """Make sure that there is memory for `n_tokens` in all.

        Raises
        ------
        InputError
            If the context is shorter.
        """
        self.check_room(n_tokens - self.length)
        while len(self._pages) * self._page < n_tokens:
            self._pages.grow()

    def place(self) -> tuple[NDArray[np.int64], NDArray[Any], int]:
        """Return what kernels need to find keys and values.

        Returns
        -------
        plan : (L, pages, 2) int64
            Addresses of each layer's keys and values in every page that is reserved; `reserve`
            enters new ones in the same array.
        like : (0,) float32 or uint16
            Its dtype is that of the cache, uint16 for float16.
        page : int
            Positions of a page.
        """
        return self._pages.plan, self._like, self._page

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Keep keys and values, and attend; see `KVCache.attend`."""
        n_tokens, heads, width = q.shape
        self.reserve(self.length + n_tokens)
        plan, like, page, kv_heads = self._pages.plan[layer], self._like, self._page, self.shape[1]
        q, k, v = (np.ascontiguousarray(x) for x in (q, k, v))
        out = np.empty(q.shape, np.float32)
        if n_tokens == 1:
            append_one(k[0], v[0], plan, like, page, self.length)
        else:
            append_many(k, v, plan, like, page, self.length)
        if n_tokens == 1 and width % 16 == 0:
            seen = self.length + 1
            attend_one(q[0], plan, like, page, kv_heads, seen, self._together, out[0])
        else:
            attend_many(q, plan, like, page, (0, kv_heads, kv_heads), self.length, out)
        return out.reshape(n_tokens, heads * width)
