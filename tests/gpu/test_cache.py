"""Keys and values on a device: the CPU's bytes, and attention over them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latticeq.errors import InputError
from latticeq.gpu.cache import CachePart, FloatPart, GpuCache, NestPart, check_cache
from latticeq.gpu.device import cupy
from latticeq.gpu.slot import Slot
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.basis import Bases, to_basis
from latticeq.model.kv.cache import FloatCache, KVCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest import NestCache
from tests.model.cache_helpers import FloatCodec, arrays, config, nest_coding, tokens

SHAPES = [  # head width, q, scales, selection, heads, kv heads, cell
    (64, 16, 4, "opt", 9, 3, "voronoi"),
    (128, 16, 4, "opt", 8, 2, "voronoi"),
    (24, 14, 5, "opt", 6, 2, "voronoi"),
    (16, 9, 1, "opt", 4, 4, "voronoi"),
    (32, 12, 8, "first", 6, 1, "voronoi"),
    (64, 16, 16, "opt", 14, 2, "voronoi"),
    (64, 16, 8, "opt", 9, 3, "cubic"),
    (24, 10, 3, "first", 4, 4, "cubic"),
]
TAKEN = [(0, 70), (126, 132)]
"""Tokens taken in at once, and all: the rest come one by one, over the border of a chunk of 64."""
LONG = (2046, 2051)
"""From 32 chunks to 33, which is more than there are runs: one has two chunks."""
MANY, LAYER = 126, 1


def unturned(given: LlamaConfig) -> Slot:
    """Return a slot whose angles are zero: what is given is turned already."""
    slot, half = Slot(given), (LONG[1], given.head_dim // 2)
    slot._turns = (cupy().ones(half, "float32"), cupy().zeros(half, "float32"))
    return slot


def attended(part: CachePart, given: LlamaConfig, rows: Any, many: int) -> np.ndarray:
    """Return what attention makes of all tokens, the first `many` of them taken in at once."""
    cp, slot = cupy(), unturned(given)
    qkv = cp.concatenate([cp.asarray(x.reshape(len(x), -1)) for x in rows], axis=1)
    found = []
    if many:
        found.append(part.attend(LAYER, cp.ascontiguousarray(qkv[:many]), slot, 0).get())
    out = cp.empty((1, given.num_attention_heads * given.head_dim), "float32")
    for position in range(many, len(qkv)):
        slot.write(part.keys, part.values, 0, position)
        part.attend_one(LAYER, cp.ascontiguousarray(qkv[position : position + 1]), slot, out)
        found.append(out.get())
    return np.concatenate(found)


def on_cpu(cache: KVCache, rows: Any) -> np.ndarray:
    """Return what attention makes of all tokens at once: one by one it is rounded to int8."""
    found: np.ndarray = cache.attend(LAYER, *rows)
    return found


def case(shape: tuple[Any, ...], count: int) -> tuple[LlamaConfig, KVCoding, Any]:
    width, q, k, selection, heads, kv_heads, cell = shape
    rng = np.random.default_rng([7, width, q])
    given = config(layers=2, heads=heads, kv_heads=kv_heads, width=width)
    coding = nest_coding(width, q, k, selection, cell, **arrays(given, rng))
    return given, coding, tokens(given, count, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("many", "count"), TAKEN)
def test_rows_are_the_cpus_bit_for_bit(shape: tuple[Any, ...], many: int, count: int) -> None:
    given, coding, rows = case(shape, count)
    part = NestPart(given, 300, 2, coding)
    found = attended(part, given, rows, many)
    wanted = on_cpu(NestCache(given, 300, coding), rows)
    bases = Bases(coding, (2, shape[5], shape[0]))
    for kept, codec, x, basis, turn in (
        (part.keys, coding.keys, rows[1], bases.keys, bases.key_turn),
        (part.values, coding.values, rows[2], bases.values, bases.value_turn),
    ):
        coded = codec.encode(to_basis(x, basis[LAYER], turn).reshape(-1, shape[0]))
        lies = kept[LAYER, :, :count, : codec.row_nbytes].get().transpose(1, 0, 2)
        assert (lies.reshape(coded.shape) == coded).all()
    assert np.abs(found - wanted).max() < 3e-5 * np.abs(wanted).max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [*SHAPES[:6], (14, 0, 0, "", 6, 3)])
def test_attention_over_floats_is_the_cpus(shape: tuple[Any, ...], dtype: Any) -> None:
    given = config(layers=2, heads=shape[4], kv_heads=shape[5], width=shape[0])
    for many, count in TAKEN:
        rows = tokens(given, count, np.random.default_rng(1))
        wanted = on_cpu(FloatCache(given, 300, dtype=dtype), rows)
        found = attended(FloatPart(given, 300, 2, dtype), given, rows, many)
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["", "voronoi", "cubic"])
def test_runs_of_more_than_one_chunk(cell: str) -> None:
    many, count = LONG
    given, coding, rows = case((16, 16, 4, "opt", 4, 2, cell or "voronoi"), count)
    given = replace(given, max_position_embeddings=count)
    part: CachePart = FloatPart(given, count, 2)
    cache: KVCache = FloatCache(given, count, dtype=np.float16)
    if cell:
        part, cache = NestPart(given, count, 2, coding), NestCache(given, count, coding)
    found, wanted = attended(part, given, rows, many), on_cpu(cache, rows)
    assert np.abs(found - wanted).max() < 3e-5 * np.abs(wanted).max()


@pytest.mark.gpu
def test_a_cache_counts_its_bytes_and_keeps_its_limits() -> None:
    given, coding, rows = case(SHAPES[0], MANY)
    cache = GpuCache(given, 300, [NestPart(given, 300, 2, coding)])
    assert cache.bits_per_entry == 4.5
    assert cache.nbytes == 300 * cache.nbytes_per_token
    found = cache.attend(LAYER, *(cupy().asarray(x) for x in rows)).get()
    wanted = NestCache(given, 300, coding).attend(LAYER, *rows)
    assert np.abs(found - wanted).max() < 3e-5 * np.abs(wanted).max()
    cache.advance(290)
    with pytest.raises(InputError, match="290 tokens are in the cache and 11 more were given"):
        cache.check_room(11)


def test_a_cache_that_no_kernel_reads_is_refused() -> None:
    given = config(width=16)
    check_cache(given, None)
    check_cache(given, nest_coding(16))
    check_cache(given, nest_coding(16, cell="cubic"))
    refused = KVCoding(FloatCodec(16), FloatCodec(16)), nest_coding(16, q=8)
    for coding in (*refused, nest_coding(16, cell="d8")):
        with pytest.raises(InputError, match=r"only the CPU runs.*leave out --device gpu"):
            check_cache(given, coding)
    with pytest.raises(InputError, match="heads are 258 wide; on a GPU they may be up to 256"):
        check_cache(config(width=258), None)
