"""A cache that keeps keys and values in the bytes of any row codec.

Every head of every token is a row of its own. At attention time the rows of one kv head are decoded
to float32, whatever they are needed for: a codec that is read in place has a cache of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.model.attention import tiled
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.basis import to_basis
from latticeq.model.kv.coded import PAGE, CodedCache, Head
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.pages import Pages

__all__ = ["RowCache"]


class RowCache(CodedCache):
    """Keys and values as rows of bytes; parameters and errors are those of `CodedCache`."""

    def __init__(
        self, config: LlamaConfig, context: int, coding: KVCoding, layers: int | None = None
    ) -> None:
        super().__init__(config, context, coding, layers)
        self._codecs = (coding.keys, coding.values)
        self._page = min(PAGE, context)
        grid = (self.shape[1], self._page)
        parts = [((*grid, codec.row_nbytes), np.uint8) for codec in self._codecs]
        self._pages = Pages(self.shape[0], -(-context // self._page), parts)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""
        layers, kv_heads, _ = self.shape
        return layers * kv_heads * sum(codec.row_nbytes for codec in self._codecs)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return self._pages.nbytes

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Code keys and values, and attend to what the codes say; see `KVCache.attend`."""
        self.check_room(len(k))
        bases, seen = self._bases, self.length + len(k)
        self._append(0, layer, to_basis(k, bases.keys[layer], bases.key_turn))
        self._append(1, layer, to_basis(v, bases.values[layer], bases.value_turn))
        return self._attend_many(layer, q, seen)

    def _read(self, layer: int, g: int, seen: int) -> Head:
        return tiled(self._decoded(0, layer, g, seen), self._decoded(1, layer, g, seen))

    def _append(self, kind: int, layer: int, rows: NDArray[np.float32]) -> None:
        n_tokens, kv_heads, width = rows.shape
        while len(self._pages) * self._page < self.length + n_tokens:
            self._pages.grow()
        coded = self._codecs[kind].encode(rows.reshape(-1, width)).reshape(n_tokens, kv_heads, -1)
        done = 0
        while done < n_tokens:
            page, place = divmod(self.length + done, self._page)
            count = min(n_tokens - done, self._page - place)
            target = self._pages[page][kind][layer, :, place : place + count]  # (G, count, bytes)
            target[:] = coded[done : done + count].transpose(1, 0, 2)
            done += count

    def _decoded(self, kind: int, layer: int, g: int, seen: int) -> NDArray[np.float32]:
        """Return the first rows of one kv head: (S, K)."""
        pages = range(-(-seen // self._page))
        rows = np.concatenate([self._pages[page][kind][layer, g] for page in pages])[:seen]
        return self._codecs[kind].decode(rows)
