"""Keys and values on a device: the CPU's bytes, and attention over them."""

from __future__ import annotations

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

SHAPES = [  # head width, q, scales, selection, heads, kv heads
    (64, 16, 4, "opt", 9, 3),
    (128, 16, 4, "opt", 8, 2),
    (24, 14, 5, "opt", 6, 2),
    (16, 9, 1, "opt", 4, 4),
    (32, 12, 8, "first", 6, 1),
    (64, 16, 16, "opt", 14, 2),
]
MANY, ALL, LAYER = 130, 150, 1


def unturned(given: LlamaConfig) -> Slot:
    """Return a slot whose angles are zero: what is given is turned already."""
    slot, half = Slot(given), (2000, given.head_dim // 2)
    slot._turns = (cupy().ones(half, "float32"), cupy().zeros(half, "float32"))
    return slot


def attended(part: CachePart, given: LlamaConfig, rows: Any, many: int) -> np.ndarray:
    """Return what attention makes of all tokens, the first `many` of them taken in at once."""
    cp, slot = cupy(), unturned(given)
    qkv = cp.concatenate([cp.asarray(x.reshape(ALL, -1)) for x in rows], axis=1)
    found = []
    if many:
        found.append(part.attend(LAYER, cp.ascontiguousarray(qkv[:many]), slot, 0).get())
    out = cp.empty((1, given.num_attention_heads * given.head_dim), "float32")
    for position in range(many, ALL):
        slot.write(part.keys, part.values, 0, position)
        part.attend_one(LAYER, cp.ascontiguousarray(qkv[position : position + 1]), slot, out)
        found.append(out.get())
    return np.concatenate(found)


def on_cpu(cache: KVCache, rows: Any) -> np.ndarray:
    """Return what attention makes of all tokens at once: one by one it is rounded to int8."""
    found: np.ndarray = cache.attend(LAYER, *rows)
    return found


def case(shape: tuple[Any, ...]) -> tuple[LlamaConfig, KVCoding, Any]:
    width, q, k, selection, heads, kv_heads = shape
    rng = np.random.default_rng([7, width, q])
    given = config(layers=2, heads=heads, kv_heads=kv_heads, width=width)
    coding = nest_coding(width, q, k, selection, **arrays(given, rng))
    return given, coding, tokens(given, ALL, rng)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("many", [0, MANY])
def test_rows_are_the_cpus_bit_for_bit(shape: tuple[Any, ...], many: int) -> None:
    given, coding, rows = case(shape)
    part = NestPart(given, 300, 2, coding)
    found = attended(part, given, rows, many)
    wanted = on_cpu(NestCache(given, 300, coding), rows)
    bases = Bases(coding, (2, shape[5], shape[0]))
    for kept, codec, x, basis, turn in (
        (part.keys, coding.keys, rows[1], bases.keys, bases.key_turn),
        (part.values, coding.values, rows[2], bases.values, bases.value_turn),
    ):
        coded = codec.encode(to_basis(x, basis[LAYER], turn).reshape(-1, shape[0]))
        lies = kept[LAYER, :, :ALL, : codec.row_nbytes].get().transpose(1, 0, 2)
        assert (lies.reshape(coded.shape) == coded).all()
    assert np.abs(found - wanted).max() < 3e-5 * np.abs(wanted).max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (14, 0, 0, "", 6, 3)])
def test_attention_over_floats_is_the_cpus(shape: tuple[Any, ...], dtype: Any) -> None:
    given = config(layers=2, heads=shape[4], kv_heads=shape[5], width=shape[0])
    rows = tokens(given, ALL, np.random.default_rng(1))
    wanted = on_cpu(FloatCache(given, 300, dtype=dtype), rows)
    for many in (0, MANY):
        found = attended(FloatPart(given, 300, 2, dtype), given, rows, many)
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.gpu
def test_a_cache_counts_its_bytes_and_keeps_its_limits() -> None:
    given, coding, rows = case(SHAPES[0])
    cache = GpuCache(given, 300, [NestPart(given, 300, 2, coding)])
    assert cache.bits_per_entry == 4.5
    assert cache.nbytes == 300 * cache.nbytes_per_token
    found = cache.attend(LAYER, *(cupy().asarray(x[:MANY]) for x in rows)).get()
    wanted = NestCache(given, 300, coding).attend(LAYER, *(x[:MANY] for x in rows))
    assert np.abs(found - wanted).max() < 3e-5 * np.abs(wanted).max()
    cache.advance(290)
    with pytest.raises(InputError, match="290 tokens are in the cache and 11 more were given"):
        cache.check_room(11)


def test_a_cache_that_no_kernel_reads_is_refused() -> None:
    given = config(width=16)
    check_cache(given, None)
    check_cache(given, nest_coding(16))
    for coding in (KVCoding(FloatCodec(16), FloatCodec(16)), nest_coding(16, q=8)):
        with pytest.raises(InputError, match=r"only the CPU runs.*leave out --device gpu"):
            check_cache(given, coding)
    with pytest.raises(InputError, match="heads are 258 wide; on a GPU they may be up to 256"):
        check_cache(config(width=258), None)
