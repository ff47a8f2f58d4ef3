"""What caches that keep codes share: the basis of keys and values, pages, and many queries at once.

Memory is a list of pages of `PAGE` positions of all layers (fewer, where the context is shorter),
so that growth copies nothing, and memory not yet needed is not even asked for.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from latticeq.model.attention import attend_heads
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.basis import Bases, from_basis, to_basis
from latticeq.model.kv.cache import KVCache
from latticeq.model.kv.coding import KVCoding

__all__ = ["PAGE", "CodedCache", "Head"]

Head = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Keys, (K, S'), and values, (S', K), of one kv head."""

PAGE = 256
"""Positions by which a coded cache grows."""


class CodedCache(KVCache):
    """A cache under a `KVCoding`.

    Parameters
    ----------
    config : LlamaConfig
    context : int
    coding : KVCoding
    layers : int, optional
        As in `KVCache`, whose attributes and errors these are.

    Raises
    ------
    InputError
        If the coding does not fit the model.
    """

    def __init__(
        self, config: LlamaConfig, context: int, coding: KVCoding, layers: int | None = None
    ) -> None:
        super().__init__(config, context, layers)
        coding.check_shape(self.shape)
        self.coding = coding
        self._bases = Bases(coding, self.shape)

    @abstractmethod
    def _read(self, layer: int, g: int, seen: int) -> Head:
        """Decode at least the first `seen` positions of a kv head, in the coded basis."""

    def _attend_many(self, layer: int, q: NDArray[np.float32], seen: int) -> NDArray[np.float32]:
        """Let queries (T, H, K) attend to what the codes of `seen` positions say: (T, H * K)."""
        bases = self._bases
        turned = to_basis(np.ascontiguousarray(q), bases.queries[layer], bases.key_turn)
        mixed = attend_heads(
            turned, self.shape[1], lambda g: self._read(layer, g, seen), self.length
        ).reshape(q.shape)
        outputs: NDArray[np.float32] = from_basis(mixed, bases.outputs[layer], bases.back)
        return outputs.reshape(len(q), -1)
