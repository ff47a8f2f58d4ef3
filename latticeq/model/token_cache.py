"""A cache together with the ids of its tokens, so that the next prompt can go on from it.

What a cache holds for a token depends on that token and on those before it, and on nothing else.
So of a new prompt only what follows the longest common beginning has to be taken in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latticeq.model.sampling import Sampling, choose

__all__ = ["Decoder", "TokenCache"]


class Decoder(Protocol):
    """What generation needs of a model. `Llama` is one; tests use smaller ones.

    Who inherits from it has tokens chosen by the host, from logits; a model that keeps its logits
    elsewhere has a `next_token` of its own.

    Attributes
    ----------
    context : int
        The most tokens that a sequence may have.
    """

    context: int

    def new_cache(self, context: int | None = None) -> Any:
        """Return the memory of one sequence, which has `KVCache.truncate`."""
        ...

    def prefill(self, ids: Sequence[int], cache: Any) -> NDArray[np.float32]:
        """Take in tokens; return the logits after the last: (V,) float32."""
        ...

    def decode_step(self, token: int, cache: Any) -> NDArray[np.float32]:
        """Take in one token; return the logits after it: (V,) float32."""
        ...

    def next_token(self, ids: Sequence[int], cache: Any, sampling: Sampling) -> int:
        """Take in tokens; return the one that is chosen to follow them, as `choose` would.

        Raises
        ------
        LatticeqError
            If the logits are not finite.
        """
        return choose(self.prefill(ids, cache), sampling)


class TokenCache:
    """A model's cache, and which tokens are in it.

    Parameters
    ----------
    model : Decoder
    context : int, optional
        The most tokens; the model's context if omitted.

    Attributes
    ----------
    ids : tuple of int
        The tokens that are held.
    """

    def __init__(self, model: Decoder, context: int | None = None) -> None:
        self._model = model
        self._cache = model.new_cache(context)
        self._ids: list[int] = []

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens that are held."""
        return tuple(self._ids)

    def common(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are held and need not be taken in.

        At most all but its last one, which has to be taken in to get logits.
        """
        most = min(len(self._ids), len(prompt) - 1)
        return next((i for i in range(most) if self._ids[i] != prompt[i]), most)

    def keep(self, prompt: Sequence[int]) -> int:
        """Cut back to what a prompt has in `common` with what is held; return how much that is."""
        kept = self.common(prompt)
        del self._ids[kept:]
        # Also where nothing was deleted: tokens that were being taken in when a Ctrl-C came are not
        # among the ids, but may be in the cache.
        self._cache.truncate(kept)
        return kept

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Take in tokens; return the logits after the last: (V,) float32."""
        logits = self._model.prefill(ids, self._cache)
        self._ids += ids
        return logits

    def next_token(self, ids: Sequence[int], sampling: Sampling) -> int:
        """Take in tokens; return the one that is chosen to follow them: see `Decoder`."""
        token = self._model.next_token(ids, self._cache, sampling)
        self._ids += ids
        return token
