"""A cache of codewords that attention reads where they are.

Codes of q from 9 to 16, whose digits take four bits, with up to 16 scales; the layout is that of
`latticeq.model.kv.nest_kernels`. One token attends from the packed words; several tokens at once
have keys and values decoded to float32, one kv head at a time, and multiplied by BLAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latticeq.codes.nested import NestedCode
from latticeq.codes.words import word_tables
from latticeq.linear.cell_kernels import CELLS
from latticeq.linear.nest_kernels import repeated_scales
from latticeq.model.attention import TILE
from latticeq.model.attention_one import together
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.coded import PAGE, CodedCache, Head
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest_cells import CACHE_CELLS
from latticeq.model.kv.nest_kernels import LANES
from latticeq.model.kv.pages import Pages
from latticeq.quantizers.rows import NestRowCodec
from latticeq.storage.bits import bit_width

__all__ = ["NestCache"]


class NestCache(CodedCache):
    """Keys and values as codewords, under a coding that `supports` says yes to.

    Parameters and errors are those of `CodedCache`.
    """

    def __init__(
        self, config: LlamaConfig, context: int, coding: KVCoding, layers: int | None = None
    ) -> None:
        super().__init__(config, context, coding, layers)
        codes = _codes(coding)
        self._kernels = CACHE_CELLS[codes[0].cell]
        self._index_bits = [bit_width(len(code.betas)) for code in codes]
        self._encoders = [_encoder(code) for code in codes]
        self._decoders = (_decoder(codes[0]), _decoder(codes[1]))
        self._together = together(config.num_attention_heads // config.num_key_value_heads)
        self._tiles = -(-min(PAGE, context) // LANES)
        grid = (self.shape[1], self._tiles, self.shape[2] // 8)
        parts: list[tuple[tuple[int, ...], DTypeLike]] = []
        for bits in self._index_bits:
            parts += [((*grid, LANES), np.int32), ((*grid, 2 * bits), np.uint8)]
            parts += [((self.shape[1], LANES * self._tiles), np.uint16)]
        self._pages = Pages(self.shape[0], -(-context // (LANES * self._tiles)), parts)

    @staticmethod
    def supports(coding: KVCoding) -> bool:
        """Tell whether both codes are of the kind that is read in place."""
        codes = _codes(coding)
        if len(codes) < 2 or codes[0].cell not in CACHE_CELLS or codes[0].cell != codes[1].cell:
            return False
        return all(9 <= code.q <= 16 and len(code.betas) <= 16 for code in codes)

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
        return self._pages.nbytes

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Code keys and values, and attend to what the codes say; see `KVCache.attend`."""
        self.check_room(len(k))
        seen = self.length + len(k)
        while len(self._pages) * self._tiles * LANES < seen:
            self._pages.grow()
        bases = self._bases
        self._append(0, layer, k, bases.keys[layer], bases.key_turn)
        self._append(1, layer, v, bases.values[layer], bases.value_turn)
        if len(q) > 1:
            return self._attend_many(layer, q, seen)
        one, out = np.ascontiguousarray(q[0]), np.empty(q.shape[1:], np.float32)
        turns = (bases.queries[layer], bases.key_turn, bases.outputs[layer], bases.back)
        attend_one = self._kernels.attend_one
        plan = self._pages.plan[layer]
        attend_one(one, turns, self._decoders, plan, self._tiles, seen, self._together, out)
        return out.reshape(1, -1)

    def _read(self, layer: int, g: int, seen: int) -> Head:
        return self._decoded(0, layer, g, seen), self._decoded(1, layer, g, seen)

    def _append(
        self, kind: int, layer: int, rows: NDArray[np.float32], basis: Any, turn: Any
    ) -> None:
        rows = np.ascontiguousarray(rows)
        append = self._kernels.append_rows if len(rows) == 1 else self._kernels.append_many
        size, done = LANES * self._tiles, 0
        while done < len(rows):
            page, place = divmod(self.length + done, size)
            last = min(len(rows), done + size - place)
            target = tuple(part[layer] for part in self._pages[page][3 * kind : 3 * kind + 3])
            code = self._encoders[kind]
            append(rows, done, last, basis, turn, code, target, place - done)
            done = last

    def _decoded(self, kind: int, layer: int, g: int, seen: int) -> NDArray[np.float32]:
        """Return one kv head's keys or values as `ReadHead` does, with whatever lies behind."""
        width, tiles = self.shape[2], -(-seen // TILE)
        out = np.empty((tiles, TILE, width) if kind else (tiles, width, TILE), np.float32)
        plan = self._pages.plan[layer]
        self._kernels.decode_head(plan, kind, g, self._tiles, self._decoders[kind], seen, out)
        return out.reshape(-1, width) if kind else out


def _codes(coding: KVCoding) -> list[NestedCode]:
    """Return the nested codes of keys and values, as far as they are such."""
    codecs = (coding.keys, coding.values)
    return [codec.code for codec in codecs if isinstance(codec, NestRowCodec)]


def _encoder(code: NestedCode) -> tuple[Any, ...]:
    """Return a code as `CacheCell.append_rows` takes it."""
    betas = np.asarray(code.betas, np.float32)
    return code.q, bit_width(len(betas)), betas, 1 / betas, code.selection == "first"


def _decoder(code: NestedCode) -> tuple[Any, ...]:
    """Return a code as `CacheCell.decode_head` takes it."""
    betas = repeated_scales(np.asarray(code.betas, np.float32) * np.float32(code.unit))
    raised = CELLS[code.cell].raised(code.q)
    return code.q, raised, bit_width(len(code.betas)), betas, word_tables(code.q)
