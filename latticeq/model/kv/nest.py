"""A cache of Voronoi codewords that attention reads where they are.

Codes of q from 9 to 16, whose digits take four bits, with up to 16 scales; the layout is that of
`latticeq.model.kv.nest_kernels`. One token attends from the packed words; several tokens at once
have keys and values decoded to float32, one kv head at a time, and multiplied by BLAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.nested import NestedCode
from latticeq.codes.words import word_tables
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.coded import PAGE, CodedCache, Head
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest_attention import attend_one
from latticeq.model.kv.nest_kernels import LANES, append_many, append_rows, decode_head
from latticeq.quantizers.rows import NestRowCodec
from latticeq.storage.bits import bit_width

__all__ = ["NestCache"]


@dataclass(frozen=True)
class _Stream:
    """The keys, or values, of one page: sixteen positions interleaved."""

    words: NDArray[np.int32]  # (L, G, tiles, K / 8, 16)
    scale_index: NDArray[np.uint8]  # (L, G, tiles, K / 8, 2 * bits of an index)
    norms: NDArray[np.float16]  # (L, G, 16 * tiles)

    @classmethod
    def empty(cls, shape: tuple[int, int, int], tiles: int, index_bits: int) -> _Stream:
        layers, kv_heads, width = shape
        grid = (layers, kv_heads, tiles, width // 8)
        return cls(
            np.zeros((*grid, LANES), np.int32),
            np.zeros((*grid, 2 * index_bits), np.uint8),
            np.zeros((layers, kv_heads, LANES * tiles), np.float16),
        )

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        return self.words, self.scale_index, self.norms

    def of_layer(self, layer: int) -> tuple[NDArray[Any], ...]:
        """Return one layer as `append_rows` takes it."""
        return self.words[layer], self.scale_index[layer], self.norms[layer].view(np.uint16)


class NestCache(CodedCache):
    """Keys and values as Voronoi codewords, under a coding that `supports` says yes to.

    Parameters and errors are those of `CodedCache`.
    """

    def __init__(
        self, config: LlamaConfig, context: int, coding: KVCoding, layers: int | None = None
    ) -> None:
        super().__init__(config, context, coding, layers)
        codes = _codes(coding)
        self._index_bits = [bit_width(len(code.betas)) for code in codes]
        self._encoders = [_encoder(code) for code in codes]
        self._decoders = (_decoder(codes[0]), _decoder(codes[1]))
        self._tiles = -(-min(PAGE, context) // LANES)
        self._pages: list[tuple[_Stream, _Stream]] = []
        pages = -(-context // (LANES * self._tiles))
        # Where everything is, for the kernels: (L, pages, 6) addresses.
        self._plan = np.zeros((self.shape[0], pages, 6), np.int64)

    @staticmethod
    def supports(coding: KVCoding) -> bool:
        """Tell whether both codes are of the kind that is read in place."""
        codes = _codes(coding)
        return len(codes) == 2 and all(
            code.cell == "voronoi" and 9 <= code.q <= 16 and len(code.betas) <= 16 for code in codes
        )

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""
        layers, kv_heads, width = self.shape
        blocks = width // 8
        # Sixteen positions share 2 * bits bytes of scale indices.
        bits = sum(32 * blocks + bits * blocks + 16 for bits in self._index_bits)
        return -(-layers * kv_heads * bits // 8)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        streams = [stream for page in self._pages for stream in page]
        return sum(array.nbytes for stream in streams for array in stream.arrays)

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Code keys and values, and attend to what the codes say; see `KVCache.attend`."""
        self.check_room(len(k))
        seen = self.length + len(k)
        while len(self._pages) * self._tiles * LANES < seen:
            self._add_page()
        bases = self._bases
        self._append(0, layer, k, bases.keys[layer], bases.key_turn)
        self._append(1, layer, v, bases.values[layer], bases.value_turn)
        if len(q) > 1:
            return self._attend_many(layer, q, seen)
        one, out = np.ascontiguousarray(q[0]), np.empty(q.shape[1:], np.float32)
        turns = (bases.queries[layer], bases.key_turn, bases.outputs[layer], bases.back)
        attend_one(one, turns, self._decoders, self._plan[layer], self._tiles, seen, out)
        return out.reshape(1, -1)

    def _read(self, layer: int, g: int, seen: int) -> Head:
        return self._decoded(0, layer, g, seen), self._decoded(1, layer, g, seen).T

    def _add_page(self) -> None:
        keys, values = (_Stream.empty(self.shape, self._tiles, bits) for bits in self._index_bits)
        self._pages.append((keys, values))
        self._locate(len(self._pages) - 1)

    def _locate(self, page: int) -> None:
        """Enter a page into the plan."""
        arrays = [array for stream in self._pages[page] for array in stream.arrays]
        for column, array in enumerate(arrays):
            layers = np.arange(self.shape[0]) * array.strides[0]
            self._plan[:, page, column] = array.ctypes.data + layers

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, whose pages lie elsewhere."""
        self.__dict__.update(state)
        for page in range(len(self._pages)):
            self._locate(page)

    def _append(
        self, kind: int, layer: int, rows: NDArray[np.float32], basis: Any, turn: Any
    ) -> None:
        rows = np.ascontiguousarray(rows)
        append = append_rows if len(rows) == 1 else append_many
        size, done = LANES * self._tiles, 0
        while done < len(rows):
            page, place = divmod(self.length + done, size)
            last = min(len(rows), done + size - place)
            target = self._pages[page][kind].of_layer(layer)
            code = self._encoders[kind]
            append(rows, done, last, basis, turn, code, target, place - done)
            done = last

    def _decoded(self, kind: int, layer: int, g: int, seen: int) -> NDArray[np.float32]:
        """Return one kv head's keys or values, and whatever fills the last tile: (K, S')."""
        out = np.empty((self.shape[2], -(-seen // LANES) * LANES), np.float32)
        decode_head(self._plan[layer], kind, g, self._tiles, self._decoders[kind], out)
        return out


def _codes(coding: KVCoding) -> list[NestedCode]:
    """Return the nested codes of keys and values, as far as they are such."""
    codecs = (coding.keys, coding.values)
    return [codec.code for codec in codecs if isinstance(codec, NestRowCodec)]


def _encoder(code: NestedCode) -> tuple[Any, ...]:
    """Return a code as `append_rows` takes it."""
    betas = np.asarray(code.betas, np.float32)
    return code.q, bit_width(len(betas)), betas, 1 / betas, code.selection == "first"


def _decoder(code: NestedCode) -> tuple[Any, ...]:
    """Return a code as `decode_head` takes it."""
    betas = np.zeros(16, np.float32)
    betas[: len(code.betas)] = np.asarray(code.betas) * code.unit
    return code.q, bit_width(len(code.betas)), betas, word_tables(code.q)
