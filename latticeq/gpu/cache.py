"""Keys and values on devices: as floats, or as the bytes of a nested code.

A part holds the layers of one device. One token's queries attend from where keys and values lie
(``cuda/attend.cu``); many tokens have keys and values widened to float32 and multiplied
(`latticeq.gpu.attention`). Memory is taken for the whole context at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latticeq.errors import InputError
from latticeq.gpu.attention import attend_many
from latticeq.gpu.device import cupy, function
from latticeq.gpu.kernels import rotate
from latticeq.gpu.launch import launch_early
from latticeq.gpu.slot import RUNS, Slot
from latticeq.gpu.weights import CELLS
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.basis import Bases
from latticeq.model.kv.cache import KVCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest import NestCache
from latticeq.quantizers.rows import NestRowCodec

__all__ = ["CachePart", "FloatPart", "GpuCache", "NestBasis", "NestPart", "check_cache"]

THREADS = 256
WIDEST = 256  # the largest K: a position is read by at most 32 threads, eight numbers each
GROUPED = 1024  # numbers of queries that a block holds


class CachePart(ABC):
    """The layers of a cache that one device holds, made while that device is the current one.

    Parameters
    ----------
    config : LlamaConfig
    context : int
        The most tokens.
    layers : int
        How many layers.

    Attributes
    ----------
    keys, values : (L, G, S, ...) arrays
        Of S positions each.
    """

    keys: Any
    values: Any

    def __init__(self, config: LlamaConfig, context: int, layers: int) -> None:
        heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width, self.shared = config.head_dim, heads // self.kv_heads
        self.layers, self.context = layers, context
        sizes = [n for n in range(1, 9) if self.shared % n == 0 and n * self.width <= GROUPED]
        self._constants = {
            "WIDTH": self.width,
            "SHARED": self.shared,
            "GROUP": max(sizes),
            "KV_HEADS": self.kv_heads,
            "RUNS": RUNS,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return int(self.keys.nbytes + self.values.nbytes)

    @property
    @abstractmethod
    def nbytes_per_token(self) -> int:
        """Bytes that a token takes in all layers."""

    @abstractmethod
    def _coding(self, layer: int) -> tuple[Any, Any, Any]:
        """Return what turns to the basis of codes: bases, turns and scales of attend.cu."""

    def attend_one(self, layer: int, qkv: Any, slot: Slot, out: Any) -> None:
        """Turn one token by its position, keep its key and value, and let its queries attend.

        Parameters
        ----------
        layer : int
            Counted from the first of this part.
        qkv : (1, (H + 2 G) K) float32
            Its queries, keys and values, none turned.
        slot : Slot
            Says which position it is at, and in which memory keys and values are: those of this
            part, or of another of the same kind.
        out : (1, H K) float32, output
        """
        kernel = function("attend", "attend_one", **self._constants)
        arguments = (qkv, slot.fields, layer, *self._coding(layer), *slot.scratch, out)
        launch_early(kernel, (RUNS, self.kv_heads), (THREADS,), arguments)

    def attend(self, layer: int, qkv: Any, slot: Slot, start: int) -> Any:
        """Do what `attend_one` does for T tokens whose positions begin at `start`.

        Parameters
        ----------
        layer : int
        qkv : (T, (H + 2 G) K) float32, changed
        slot : Slot
            Has the angles of positions.
        start : int

        Returns
        -------
        (T, H K) float32
        """
        heads = self.shared * self.kv_heads
        turns = slot.turns(self.context)
        rotate(qkv, heads + self.kv_heads, self.width, turns, start)
        split = [heads * self.width, (heads + self.kv_heads) * self.width]
        q, k, v = qkv[:, : split[0]], qkv[:, split[0] : split[1]], qkv[:, split[1] :]
        return self.attend_turned(layer, q, k, v, start)

    @abstractmethod
    def attend_turned(self, layer: int, q: Any, k: Any, v: Any, start: int) -> Any:
        """Keep turned keys and values, and let turned queries attend: (T, n K), rows strided."""


class FloatPart(CachePart):
    """Keys and values as floats, (G, S, K) each a layer.

    Parameters
    ----------
    config, context, layers
        As in `CachePart`.
    dtype : np.dtype or type
        float32 or float16.
    """

    def __init__(
        self, config: LlamaConfig, context: int, layers: int, dtype: DTypeLike = np.float16
    ) -> None:
        super().__init__(config, context, layers)
        cp = cupy()
        self._constants["KIND"] = 1 if np.dtype(dtype) == np.float16 else 0
        shape = (layers, self.kv_heads, context, self.width)
        self.keys, self.values = cp.empty(shape, dtype), cp.empty(shape, dtype)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that a token takes in all layers."""
        return self.nbytes // self.context

    def _coding(self, layer: int) -> tuple[Any, Any, Any]:
        return 0, 0, 0

    def attend_turned(self, layer: int, q: Any, k: Any, v: Any, start: int) -> Any:
        """Keep turned keys and values, and let turned queries attend."""
        cp = cupy()
        n_tokens, seen = len(q), start + len(q)
        for kept, new in ((self.keys, k), (self.values, v)):
            rows = new.reshape(n_tokens, self.kv_heads, self.width).transpose(1, 0, 2)
            kept[layer, :, start:seen] = rows
        heads = q.reshape(n_tokens, self.kv_heads, self.shared, self.width).transpose(1, 0, 2, 3)
        queries = cp.ascontiguousarray(heads).reshape(self.kv_heads, -1, self.width)
        keys = self.keys[layer, :, :seen].astype(cp.float32)
        values = self.values[layer, :, :seen].astype(cp.float32)
        mixed = attend_many(queries, keys, values, start)
        shape = (self.kv_heads, n_tokens, self.shared, self.width)
        turned = cp.ascontiguousarray(mixed.reshape(shape).transpose(1, 0, 2, 3))
        return turned.reshape(n_tokens, -1)


class NestBasis:
    """What turns keys, queries, values and outputs to where codes are, on the current device.

    A captured graph holds its addresses, so it has to live as long as the model does, and not as
    long as one cache.

    Parameters
    ----------
    coding : KVCoding
    layers, kv_heads, width : int

    Attributes
    ----------
    bases : (L, 4, 2, G, K) float32
    rotations : (3, K, K) float32
    scales : (3, 2, 16) float32
        All as attend.cu takes them.
    """

    def __init__(self, coding: KVCoding, layers: int, kv_heads: int, width: int) -> None:
        cp, bases = cupy(), Bases(coding, (layers, kv_heads, width))
        joined = (bases.keys, bases.queries, bases.values, bases.outputs)
        self.bases = cp.asarray(np.stack(joined, axis=1))
        self.rotations = cp.asarray(np.stack([bases.key_turn, bases.value_turn, bases.back]))
        self.scales = cp.asarray(_scales(_codecs(coding)))


class NestPart(CachePart):
    """Keys and values as bytes of `NestRowCodec`, a head of a token each, in whole words.

    Parameters
    ----------
    config, context
        As in `CachePart`.
    layers : int
    coding : KVCoding
        Of these layers.
    basis : NestBasis, optional
        Of the same coding; one of its own if omitted.
    """

    def __init__(
        self,
        config: LlamaConfig,
        context: int,
        layers: int,
        coding: KVCoding,
        basis: NestBasis | None = None,
    ) -> None:
        super().__init__(config, context, layers)
        cp = cupy()
        codecs = _codecs(coding)
        rows = [-(-codec.row_nbytes // 4) * 4 for codec in codecs]
        shapes = [(layers, self.kv_heads, context, row) for row in rows]
        self.keys, self.values = (cp.zeros(shape, cp.uint8) for shape in shapes)
        self._constants["CELL"] = CELLS[codecs[0].code.cell]  # of both
        for name, codec, row in zip(("KEY", "VALUE"), codecs, rows, strict=True):
            self._constants |= {
                f"{name}_Q": codec.code.q,
                f"{name}_SCALES": len(codec.code.betas),
                f"{name}_FIRST": int(codec.code.selection == "first"),
                f"{name}_ROW": row,
            }
        self._many = {name: n for name, n in self._constants.items() if name not in _OF_ONE}
        self._constants["KIND"] = 2
        self._basis = basis or NestBasis(coding, layers, self.kv_heads, self.width)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that a token takes in all layers."""
        return self.nbytes // self.context

    def _coding(self, layer: int) -> tuple[Any, Any, Any]:
        return self._basis.bases[layer], self._basis.rotations, self._basis.scales

    def attend_turned(self, layer: int, q: Any, k: Any, v: Any, start: int) -> Any:
        """Keep turned keys and values, and let turned queries attend."""
        cp = cupy()
        n_tokens, heads = len(q), self.shared * self.kv_heads
        strides = [np.int64(rows.strides[0] // 4) for rows in (q, k, v)]
        coding = self._coding(layer)
        memory = (self.keys[layer], self.values[layer], np.int64(self.context))
        append = self._function("append_rows")
        given = (k, v, strides[1], strides[2], np.int32(start), *memory, *coding)
        append((n_tokens, self.kv_heads), (THREADS,), given)
        queries = cp.empty((self.kv_heads, n_tokens * self.shared, self.width), cp.float32)
        shared, threads = np.int32(self.shared), (-(-self.width // 32) * 32,)
        turn = (q, strides[0], shared, *coding[:2], queries)
        self._function("turn_queries")((n_tokens, heads), threads, turn)
        keys, values = (self._read(kind, layer, start + n_tokens) for kind in (0, 1))
        mixed = attend_many(queries, keys, values, start)
        out = cp.empty((n_tokens, heads * self.width), cp.float32)
        back = (mixed, shared, *coding[:2], out)
        self._function("turn_outputs")((n_tokens, heads), threads, back)
        return out

    def _read(self, kind: int, layer: int, seen: int) -> Any:
        """Decode keys (kind 0) or values of a layer: (G, seen, K) float32."""
        out = cupy().empty((self.kv_heads, seen, self.width), np.float32)
        rows = (self.values if kind else self.keys)[layer]
        blocks, sizes = out.size // 8, (np.int64(self.context), np.int32(seen))
        given = (rows, np.int32(kind), *sizes, self._basis.scales, out)
        self._function("read_rows")((-(-blocks // THREADS),), (THREADS,), given)
        return out

    def _function(self, name: str) -> Any:
        return function("keep_many", name, **self._many)


_OF_ONE = ("SHARED", "GROUP", "RUNS")
"""Constants that keep_many.cu does not depend on."""


def _codecs(coding: KVCoding) -> list[NestRowCodec]:
    """Return the codecs of keys and values, which `check_cache` has found to be nested."""
    return [codec for codec in (coding.keys, coding.values) if isinstance(codec, NestRowCodec)]


def _scales(codecs: Sequence[NestRowCodec]) -> NDArray[np.float32]:
    """Return the scales that kernels read: (3, 2, 16), the last two rows what points count in."""
    scales = np.zeros((3, 2, 16), np.float32)
    for kind, codec in enumerate(codecs):
        betas = np.asarray(codec.code.betas, np.float32)
        scales[kind, 0, : len(betas)] = betas
        scales[kind, 1, : len(betas)] = 1 / betas
        scales[2, kind, : len(betas)] = betas * np.float32(codec.code.unit)
    return scales


def check_cache(config: LlamaConfig, coding: KVCoding | None) -> None:
    """Refuse a way to keep keys and values that no kernel reads.

    Raises
    ------
    InputError
        Saying what is supported.
    """
    if config.head_dim > WIDEST:
        raise InputError(
            f"heads are {config.head_dim} wide; on a GPU they may be up to {WIDEST}: leave out "
            "--device gpu"
        )
    if coding is not None and not NestCache.supports(coding):
        raise InputError(
            "the checkpoint codes keys and values in a way that only the CPU runs; a GPU reads "
            "NestQuant codes of cell 'voronoi' or 'cubic' with q from 9 to 16: leave out "
            "--device gpu"
        )


class GpuCache(KVCache):
    """The memory of one sequence, on one device or several.

    Parameters
    ----------
    config : LlamaConfig
    context : int
    parts : sequence of CachePart
        In the order of their layers.
    """

    def __init__(self, config: LlamaConfig, context: int, parts: Sequence[CachePart]) -> None:
        super().__init__(config, context)
        self.parts = list(parts)

    @property
    def nbytes_per_token(self) -> int:
        """Bytes that one more token takes over all layers."""
        return sum(part.nbytes_per_token for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory that is held for keys and values."""
        return sum(part.nbytes for part in self.parts)

    def attend(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        """Keep turned keys and values of tokens, and let their turned queries attend.

        As `KVCache.attend`, for CuPy arrays on the device that holds the layer.
        """
        self.check_room(len(k))
        for part in self.parts:
            if layer < part.layers:
                flat = [x.reshape(len(x), -1) for x in (q, k, v)]
                return part.attend_turned(layer, flat[0], flat[1], flat[2], self.length)
            layer -= part.layers
        raise InputError(f"the cache has no layer {layer} after its last")
