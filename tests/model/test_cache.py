"""Caches: they keep what the code says, attend to exactly that, and grow by pages."""

import copy

import numpy as np
import pytest

import reference.kv_cache
import reference.llama
from latticeq.errors import InputError
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.model.attention import attend_heads, tiled
from latticeq.model.kv.basis import from_basis, to_basis
from latticeq.model.kv.cache import FloatCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest import NestCache
from latticeq.model.kv.nest_cells import CACHE_CELLS
from latticeq.model.kv.new import new_cache
from latticeq.model.kv.rows import RowCache
from latticeq.model.loader import load
from latticeq.model.rope import frequencies, rotary
from latticeq.transforms.rotation import Rotation
from tests.model.cache_helpers import FloatCodec, arrays, config, nest_coding, tokens
from tests.tiny_llama import CONFIGS, random_ids, random_weights, write_folder

LONG = 300 if IS_JIT else 30

# Float32 sums of some hundred products of size one.
ROUNDINGS = 2e-5

KINDS = [(RowCache, "voronoi"), *((NestCache, cell) for cell in CACHE_CELLS)]


def feed(cache, given, sizes):
    """Give a cache some tokens at a time; return what its first layer made of them."""
    q, k, v = given
    ends = np.cumsum(sizes)
    out = []
    for end, size in zip(ends, sizes, strict=True):
        new = slice(end - size, end)
        out.append(cache.attend(0, q[new], k[new], v[new]))
        cache.advance(size)
    return np.concatenate(out)


def decoded(cache, kind, seen):
    """Return what a coded cache keeps in its first layer, in its basis: (S, G, K)."""
    heads = [cache._decoded(kind, 0, g, seen) for g in range(cache.shape[1])]
    if isinstance(cache, NestCache):
        heads = [head if kind else head.transpose(0, 2, 1) for head in heads]
        heads = [head.reshape(-1, cache.shape[2])[:seen] for head in heads]
    return np.stack(heads, axis=1)


@pytest.mark.parametrize("sizes", [[23], [1] * 23, [7, 1, 1, 14]])
@pytest.mark.parametrize("rotate", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("shifted", [False, True])
def test_an_exact_code_in_any_basis_changes_nothing(sizes, rotate, shifted, rng):
    given = config()
    more = arrays(given, rng) if shifted else {}
    codec = FloatCodec(16)
    coding = KVCoding(codec, codec, rotate_keys=rotate[0], rotate_values=rotate[1], **more)
    q, k, v = tokens(given, 23, rng)
    expected = feed(FloatCache(given, 30), (q, k, v), [23])
    out = feed(RowCache(given, 30, coding), (q, k, v), sizes)
    np.testing.assert_allclose(out, expected, atol=ROUNDINGS * np.abs(v).max() * 10)


@pytest.mark.parametrize(
    ("q", "k", "selection", "cell"),
    [
        (16, 4, "opt", "voronoi"),
        (14, 4, "opt", "voronoi"),
        (16, 1, "opt", "voronoi"),
        (9, 2, "opt", "voronoi"),
        (13, 8, "first", "voronoi"),
        (15, 16, "opt", "voronoi"),
        (16, 8, "opt", "cubic"),
        (14, 1, "opt", "cubic"),
        (10, 16, "first", "cubic"),
    ],
)
def test_what_is_kept_is_what_the_code_says(q, k, selection, cell, rng):
    given = config(width=24)
    coding = nest_coding(24, q, k, selection, cell, **arrays(given, rng))
    cache = new_cache(given, 60, coding)
    assert isinstance(cache, NestCache)
    new = tokens(given, 37, rng)
    feed(cache, new, [20, 1, 1, 15])
    bases = cache._bases
    for kind, basis, turn in (
        (0, bases.keys[0], bases.key_turn),
        (1, bases.values[0], bases.value_turn),
    ):
        rows = to_basis(new[1 + kind], basis, turn).reshape(-1, 24)
        expected = coding.keys.decode(coding.keys.encode(rows)).reshape(37, 2, 24)
        np.testing.assert_allclose(decoded(cache, kind, 37), expected, rtol=1e-6)


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (4, 4), (5, 1), (8, 2)])
@pytest.mark.parametrize("width", [8, 24, 64])
@pytest.mark.parametrize(("kind", "cell"), KINDS)
def test_attention_is_exact_on_what_is_kept(kind, cell, heads, width, rng):
    given = config(1, *heads, width)
    cache = kind(given, LONG + 5, nest_coding(width, cell=cell, **arrays(given, rng)))
    q, k, v = tokens(given, LONG, rng)
    sizes = [LONG - 20, 1, 1, 17, 1]
    out = feed(cache, (q, k, v), sizes)
    bases = cache._bases
    keys, values = decoded(cache, 0, LONG), decoded(cache, 1, LONG)
    turned = to_basis(q, bases.queries[0], bases.key_turn)
    mixed = attend_heads(turned, heads[1], lambda g: tiled(keys[:, g], values[:, g]), 0)
    if kind is RowCache:
        expected = from_basis(mixed.reshape(q.shape), bases.outputs[0], bases.back)
        np.testing.assert_allclose(out, expected.reshape(LONG, -1), rtol=1e-4, atol=1e-4)
        return
    # Queries are rounded to steps of their largest number over 2**15: that moves scores by less
    # than `moved`, and weights by twice that part of themselves. Weights are rounded, too.
    steps = np.abs(turned).max(axis=2) / 127 / 256
    moved = steps.max() / 2 * np.abs(keys).sum(axis=2).max() / np.sqrt(width)
    bound = (2 * moved + LONG / 2**16) * np.abs(values).max()
    found = to_basis(out.reshape(q.shape), bases.values[0], bases.value_turn)
    alone = [LONG - 20, LONG - 19, LONG - 1]
    error = np.abs(found - mixed.reshape(q.shape))[alone]
    assert error.max() < bound
    assert np.sqrt((error**2).mean()) < 1e-3 * np.abs(values).std()


def test_a_coded_cache_equals_the_reference(rng):
    given = config()
    more = arrays(given, rng)
    coding = nest_coding(16, **more)
    q, k, v = tokens(given, 40, rng)
    out = feed(new_cache(given, 40, coding), (q, k, v), [30, 1, 1, 8])
    rotation = Rotation(16).matrix()
    code = coding.keys.code
    sides = [
        reference.kv_cache.Coding(
            lambda x: reference.kv_cache.nest_rows(x, code.q, code.betas),
            rotation,
            more[f"{side}_offset"][0].astype(np.float64),
            more[f"{side}_scale"][0].astype(np.float64),
        )
        for side in ("key", "value")
    ]
    expected = reference.kv_cache.coded_attention(
        *(x.astype(np.float64) for x in (q, k, v)), *sides
    )
    np.testing.assert_allclose(out, expected.reshape(40, -1), atol=1e-3)


@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (4, 4), (5, 1), (8, 2)])
@pytest.mark.parametrize("width", [6, 24, 32, 64, 80])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_attention_is_exact_on_what_floats_are_kept(heads, width, dtype, rng):
    given = config(1, *heads, width)
    q, k, v = tokens(given, LONG, rng)
    cache = new_cache(given, LONG + 5, None, dtype=dtype)
    # Alone, across the ends of a tile and of a page, and sixteen at once at no round place.
    sizes = [2, 1, 40, LONG - 46, 1, 2] if IS_JIT else [2, 1, 20, 7]
    out = feed(cache, (q, k, v), sizes)
    kept = [x.astype(dtype).astype(np.float32) for x in (k, v)]
    expected = reference.llama.attention(*(x.astype(np.float64) for x in (q, *kept)))
    np.testing.assert_allclose(out, expected.reshape(LONG, -1), atol=ROUNDINGS)
    alone = new_cache(given, LONG, None, dtype=dtype)
    steps = feed(alone, (q, k, v), [1] * LONG)
    np.testing.assert_allclose(steps, out, atol=ROUNDINGS)


def test_a_number_too_large_for_float16_shows(rng):
    given = config()
    cache = new_cache(given, 20, None, dtype=np.float16)
    q, k, v = tokens(given, 10, rng)
    v[7, 1, 2] = 1e6
    out = feed(cache, (q, k, v), [7, 1, 1, 1]).reshape(10, 6, 16)
    assert not np.isfinite(out[7:, 3:, 2]).any()
    assert np.isfinite(out[:7]).all()
    assert np.isfinite(out[:, :3]).all()


@pytest.mark.parametrize(("kind", "cell"), KINDS)
def test_tokens_one_by_one_are_kept_as_all_at_once(kind, cell, rng):
    given = config()
    new = tokens(given, LONG, rng)
    caches = [kind(given, LONG, nest_coding(16, cell=cell)) for _ in range(2)]
    whole = feed(caches[0], new, [LONG])
    steps = feed(caches[1], new, [1] * LONG)
    np.testing.assert_allclose(steps, whole, atol=ROUNDINGS if kind is RowCache else 1e-3)
    for part in (0, 1):
        kept = [decoded(cache, part, LONG) for cache in caches]
        np.testing.assert_array_equal(*kept)


def test_layers_do_not_mix(rng):
    given = config(layers=3)
    more = arrays(given, rng)
    cache = new_cache(given, 40, nest_coding(16, **more))
    new = [tokens(given, 20, rng) for _ in range(3)]
    together = [cache.attend(layer, *new[layer]) for layer in range(3)]
    for layer in range(3):
        alone = new_cache(given, 40, nest_coding(16, **more).of_layer(layer), layers=1)
        np.testing.assert_array_equal(alone.attend(0, *new[layer]), together[layer])


@pytest.mark.skipif(not IS_JIT, reason="needs threads")
@pytest.mark.parametrize(
    ("coding", "dtype"),
    [(nest_coding(64), np.float32), (None, np.float32), (None, np.float16)],
)
def test_threads_do_not_matter(coding, dtype, rng):
    given = config(1, 6, 2, 64)
    new, last = tokens(given, 700, rng), tokens(given, 1, rng)
    before, results = threads(), []
    for count in (1, before):
        cache = new_cache(given, 800, coding, dtype=dtype)
        set_threads(count)
        try:
            results.append(np.concatenate([feed(cache, new, [700]), feed(cache, last, [1])]))
        finally:
            set_threads(before)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "make",
    [
        lambda given: RowCache(given, 1000, nest_coding(16)),
        lambda given: NestCache(given, 1000, nest_coding(16)),
        lambda given: FloatCache(given, 1000, dtype=np.float16),
    ],
)
def test_memory_grows_by_pages_and_nothing_is_copied(make, rng):
    cache = make(given := config(1, 2, 1, 16))
    assert cache.nbytes == 0
    feed(cache, tokens(given, 200, rng), [200])
    assert cache.nbytes == 256 * cache.nbytes_per_token
    first = cache._pages[0]
    feed(cache, tokens(given, 400, rng), [56, 344])
    assert cache.nbytes == 3 * 256 * cache.nbytes_per_token
    assert cache._pages[0] is first


def test_memory_of_a_token():
    cache = new_cache(config(30, 9, 3, 64), 64, nest_coding(64))
    # 64 digits of four bits, eight scale indices of two, and a norm of sixteen, twice a head.
    assert cache.nbytes_per_token == 30 * 3 * 2 * (256 + 16 + 16) // 8
    assert cache.bits_per_entry == 4.5
    assert FloatCache(config(30, 9, 3, 64), 64).bits_per_entry == 32
    assert FloatCache(config(30, 9, 3, 64), 64, dtype=np.float16).bits_per_entry == 16
    codec = FloatCodec(64)
    assert new_cache(config(30, 9, 3, 64), 64, KVCoding(codec, codec)).bits_per_entry == 32


@pytest.mark.parametrize(("kind", "cell"), KINDS)
def test_zero_heads_and_large_ones(kind, cell, rng):
    given = config()
    cache = kind(given, 50, nest_coding(16, cell=cell))
    q, k, v = tokens(given, 20, rng)
    k[:, 0], v[:, 0] = 0, 0
    k[5:, 1] *= 1e4
    v[:, 1] *= 3e4
    v[3] = 1e-9  # below what float16 holds
    out = feed(cache, (q, k, v), [19, 1]).reshape(20, 6, 16)
    assert (out[:, :3] == 0).all()
    assert np.isfinite(out).all()
    relative = np.linalg.norm(out[4, 3:]) / 3e4
    assert 0.01 < relative < 10


@pytest.mark.parametrize("cell", CACHE_CELLS)
def test_what_is_not_finite_shows(cell, rng):
    given = config()
    cache = new_cache(given, 50, nest_coding(16, cell=cell))
    q, k, v = tokens(given, 20, rng)
    v[7, 1, 2] = np.inf
    out = feed(cache, (q, k, v), [6, 1, 1, 11, 1]).reshape(20, 6, 16)
    assert np.isnan(out[7:, 3:]).all()
    assert np.isfinite(out[:7]).all()
    assert np.isfinite(out[:, :3]).all()
    cache.clear()  # and what the memory held before must not show
    q, k, v = tokens(given, 20, rng)
    again = feed(cache, (q, k, v), [1] * 20)
    fresh = feed(new_cache(given, 50, nest_coding(16, cell=cell)), (q, k, v), [1] * 20)
    np.testing.assert_array_equal(again, fresh)


@pytest.mark.parametrize(
    "coding", [None, nest_coding(16), KVCoding(FloatCodec(16), FloatCodec(16))]
)
def test_a_copy_has_its_own_memory(coding, rng):
    given = config()
    cache = new_cache(given, 50, coding)
    feed(cache, tokens(given, 10, rng), [10])
    other = copy.deepcopy(cache)
    new = tokens(given, 1, rng)
    expected = cache.attend(0, *new)
    feed(cache, tokens(given, 5, rng), [5])
    np.testing.assert_array_equal(other.attend(0, *new), expected)


@pytest.mark.parametrize(
    "coding", [None, nest_coding(16), KVCoding(FloatCodec(16), FloatCodec(16))]
)
def test_a_full_context_is_an_error(coding, rng):
    given = config()
    cache = new_cache(given, 18, coding)
    feed(cache, tokens(given, 17, rng), [17])
    with pytest.raises(InputError, match=r"17 tokens are in the cache and 2 more.*context is 18"):
        cache.attend(0, *tokens(given, 2, rng))
    feed(cache, tokens(given, 1, rng), [1])
    with pytest.raises(InputError, match="context is 18"):
        cache.attend(0, *tokens(given, 1, rng))
    with pytest.raises(InputError, match="from 1 to 2000"):
        new_cache(given, 2001, coding)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": FloatCodec(8)}, "rows of 16 and values in rows of 8"),
        ({"key_offset": np.zeros((2, 2, 8), np.float32)}, "key_offset has shape"),
        ({"key_scale": np.zeros((2, 2, 16), np.float32)}, "key_scale must be positive"),
        ({"value_offset": np.full((2, 2, 16), np.nan, np.float32)}, "value_offset must be finite"),
        (
            {"key_offset": np.zeros((2, 2, 16)), "value_offset": np.zeros((2, 1, 16))},
            "must be .layers, kv heads, head_dim.",
        ),
    ],
)
def test_codings_are_checked(changed, message):
    with pytest.raises(InputError, match=message):
        KVCoding(**({"keys": FloatCodec(16), "values": FloatCodec(16)} | changed))


@pytest.mark.parametrize("make", [nest_coding, lambda n: KVCoding(FloatCodec(n), FloatCodec(n))])
def test_codings_must_fit_the_model(make):
    with pytest.raises(InputError, match="rows of 8; the model's head_dim is 16"):
        new_cache(config(), 10, make(8))
    coding = KVCoding(FloatCodec(16), FloatCodec(16), key_offset=np.zeros((3, 2, 16), np.float32))
    with pytest.raises(InputError, match=r"3, 2, 16.*needs \(2, 2, 16\)"):
        new_cache(config(), 10, coding)


def test_codes_that_are_not_read_in_place_are_kept_as_rows():
    for q, k, cell in ((8, 4, "voronoi"), (17, 4, "voronoi"), (16, 17, "voronoi"), (16, 4, "d8")):
        coding = nest_coding(16, q, k, cell=cell)
        assert isinstance(new_cache(config(), 10, coding), RowCache)
    both = nest_coding(16).keys, nest_coding(16, cell="cubic").values
    assert isinstance(new_cache(config(), 10, KVCoding(*both)), RowCache)


@pytest.fixture
def model(tmp_path):
    """Return a tiny model whose heads are two blocks wide."""
    shapes = CONFIGS["llama"] | {"head_dim": 16}
    return load(write_folder(tmp_path, shapes, random_weights(shapes)))


def test_a_model_runs_on_a_coded_cache(model):
    ids = random_ids(CONFIGS["llama"], 30)
    exact = model.logits(ids)
    model.kv = nest_coding(16)
    cache = model.new_cache(30)
    assert isinstance(cache, NestCache)
    whole = model.logits(ids)
    model.prefill(ids[:20], cache)
    steps = [model.decode_step(int(token), cache) for token in ids[20:]]
    np.testing.assert_allclose(steps, whole[20:], atol=1e-3 * np.abs(whole).max())
    error = np.linalg.norm(whole - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.3


def test_a_block_runs_on_a_coded_cache(model):
    ids = random_ids(CONFIGS["llama"], 12)
    x = model.embedding.rows(ids)
    coding = nest_coding(16)
    block = model.blocks[1]
    turns = rotary(frequencies(model.config), 0, 12)
    alone = block(x.copy(), turns, new_cache(model.config, 12, coding.of_layer(1), layers=1), 0)
    exact = block(x.copy(), turns, model.new_cache(12), 1)
    error = np.linalg.norm(alone - exact) / np.linalg.norm(exact - x)
    assert 1e-4 < error < 0.2
