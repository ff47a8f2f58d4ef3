"""Configurations, codecs and tokens that the tests of caches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.nested import NestedCode
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest import NestCache
from latticeq.quantizers.rows import NestRowCodec
from tests.tiny_llama import CONFIGS

Floats = NDArray[np.float32]


def config(layers: int = 2, heads: int = 6, kv_heads: int = 2, width: int = 16) -> LlamaConfig:
    """Return a configuration with given shapes of attention and room for 2000 positions."""
    changed = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "max_position_embeddings": 2000,
    }
    return LlamaConfig.from_dict(CONFIGS["llama"] | changed)


@dataclass(frozen=True)
class FloatCodec:
    """Rows kept as they are."""

    n: int

    @property
    def row_nbytes(self) -> int:
        return 4 * self.n

    @property
    def bits_per_entry(self) -> float:
        return 32.0

    def encode(self, x: Floats) -> NDArray[np.uint8]:
        return np.ascontiguousarray(x).view(np.uint8)

    def decode(self, rows: NDArray[np.uint8]) -> Floats:
        return np.ascontiguousarray(rows).view(np.float32)


def nest_coding(
    width: int,
    q: int = 16,
    k: int = 4,
    selection: str = "opt",
    cell: str = "voronoi",
    **more: Any,
) -> KVCoding:
    """Return a coding with nested codes whose scales suit a Gaussian."""
    betas = tuple(np.geomspace(3.4, 6.0, k) / q) if k > 1 else (4.3 / q,)
    codec = NestRowCodec(NestedCode(q, betas, cell, selection), width)
    return KVCoding(codec, codec, **more)


def tokens(
    given: LlamaConfig, count: int, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Return random queries, keys and values of some tokens."""
    heads = given.num_attention_heads, given.num_key_value_heads, given.num_key_value_heads
    shapes = [(count, h, given.head_dim) for h in heads]
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return 2 * q, k, v


def arrays(given: LlamaConfig, rng: np.random.Generator) -> dict[str, Floats]:
    """Return offsets and scales for every layer, head and channel."""
    shape = given.num_hidden_layers, given.num_key_value_heads, given.head_dim
    drawn = {name: rng.standard_normal(shape) for name in ("key_offset", "value_offset")}
    drawn |= {name: np.exp(rng.standard_normal(shape)) for name in ("key_scale", "value_scale")}
    return {name: array.astype(np.float32) for name, array in drawn.items()}


def kept_bytes(q: int, k: int) -> NDArray[np.uint8]:
    """Return the bytes that a cache keeps of some tokens' keys and values."""
    rng = np.random.default_rng([5, q])
    given = config(layers=1, width=24)
    cache = NestCache(given, 40, nest_coding(24, q, k, **arrays(given, rng)))
    cache.attend(0, *tokens(given, 37, rng))
    parts = [part for page in cache._pages for part in page]
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts])
