"""A cache that is cut back and goes on gives what a fresh one gives, whatever it held before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import InputError
from latticeq.model.kv.cache import FloatCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.new import new_cache
from latticeq.model.kv.pages import Pages
from latticeq.model.loader import load
from latticeq.model.token_cache import TokenCache
from tests.model.cache_helpers import FloatCodec, config, nest_coding, tokens
from tests.tiny_llama import CONFIGS, random_ids, random_weights, write_folder

KINDS = {
    "float32": (None, np.float32),
    "float16": (None, np.float16),
    "codewords": (nest_coding(16), np.float32),
    "rows": (nest_coding(16, q=8), np.float32),
}
SHAPES = CONFIGS["llama"] | {"head_dim": 16, "max_position_embeddings": 900}


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    return load(write_folder(tmp_path_factory.mktemp("model"), SHAPES, random_weights(SHAPES)))


@pytest.fixture(params=KINDS)
def model(request, floats):
    floats.kv, floats.cache_dtype = KINDS[request.param][0], np.dtype(KINDS[request.param][1])
    return floats


@pytest.mark.parametrize("kept", [0, 1, 15, 16, 63, 64, 100, 255, 256, 257])
def test_what_was_cut_off_leaves_no_trace(model, kept):
    first, other, new = (random_ids(SHAPES, n, seed) for seed, n in enumerate((kept, 300, 40)))
    caches = [model.new_cache() for _ in range(2)]
    for cache, detour in zip(caches, (other, []), strict=True):
        if kept:
            model.prefill(first, cache)
        if len(detour):
            model.prefill(detour, cache)
            model.decode_step(7, cache)
        cache.truncate(kept)
        assert cache.length == kept
    for step in (new[:1], new[1:30], new[30:31], new[31:]):
        logits = [model.prefill(step, cache) for cache in caches]
        np.testing.assert_array_equal(*logits)
        assert np.isfinite(logits).all()


def test_damage_that_was_cut_off_leaves_no_trace():
    given = config()
    for coding, dtype in KINDS.values():
        rng = np.random.default_rng(3)
        caches = [new_cache(given, 300, coding, dtype=dtype) for _ in range(2)]
        first, bad, new = (tokens(given, n, rng) for n in (21, 90, 50))
        bad[1][:], bad[2][:] = np.inf, np.nan
        for cache in caches:
            cache.attend(0, *first)
            cache.advance(21)
        caches[0].attend(0, *bad)
        caches[0].advance(90)
        caches[0].truncate(21)
        for piece in (slice(0, 1), slice(1, 40), slice(40, 41), slice(41, 50)):
            out = [cache.attend(0, *(x[piece] for x in new)) for cache in caches]
            np.testing.assert_array_equal(*out)
            assert np.isfinite(out).all()
            for cache in caches:
                cache.advance(len(new[0][piece]))


@pytest.mark.parametrize("length", [-1, 4])
def test_a_cache_is_only_cut_back(length):
    cache = FloatCache(config(), 10)
    cache.advance(3)
    with pytest.raises(InputError, match=f"{length} tokens are to be kept; the cache holds 3"):
        cache.truncate(length)
    assert cache.length == 3


@pytest.mark.parametrize("coding", [None, nest_coding(16), KVCoding(*[FloatCodec(16)] * 2)])
def test_memory_of_what_was_cut_off_is_used_again(coding, rng):
    given = config()
    cache = new_cache(given, 600, coding)
    cache.attend(0, *tokens(given, 300, rng))
    cache.advance(300)
    held = cache.nbytes
    cache.truncate(10)
    cache.attend(0, *tokens(given, 400, rng))
    assert cache.nbytes == held


def test_a_page_that_a_ctrl_c_kept_from_being_made_does_not_count(monkeypatch):
    pages = Pages(2, 4, [((3,), np.float32)])
    locate = Pages._locate
    monkeypatch.setattr(Pages, "_locate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pages.grow()
    assert len(pages) == 0
    monkeypatch.setattr(Pages, "_locate", locate)
    pages.grow()
    assert len(pages) == 1
    assert pages.plan[0, 0, 0] == pages[0][0].ctypes.data


def greedy(model, cache, prompt, count=6):
    """Return the logits after a prompt, and the likeliest tokens that follow."""
    kept = cache.keep(prompt)
    first = logits = cache.prefill(prompt[kept:])
    made = []
    for _ in range(count):
        made.append(int(np.argmax(logits)))
        logits = cache.prefill([made[-1]])
    return first, made


def test_turns_on_a_kept_cache_are_those_of_fresh_ones(model):
    cache, prompt = TokenCache(model), []
    for turn in range(8):
        new = random_ids(SHAPES, 37, seed=10 + turn).tolist()
        # As templates do: the newest turn is written in another way when it is no more the newest.
        prompt = prompt[: len(prompt) - turn % 3] + new
        expected, ids = greedy(model, TokenCache(model), prompt)
        logits, made = greedy(model, cache, prompt)
        np.testing.assert_allclose(logits, expected, atol=2e-3 * np.abs(expected).max())
        assert made == ids
        assert cache.ids == (*prompt, *made)
        assert cache._cache.length == len(cache.ids)
        prompt = prompt + made


@given(
    held=st.lists(st.integers(0, 2), max_size=8),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=8),
)
def test_the_common_beginning_is_kept_and_nothing_else(held, prompt):
    class Cache(list):
        def truncate(self, length):
            del self[length:]

    class Model:
        def new_cache(self, context=None):
            return Cache()

        def prefill(self, ids, cache):
            cache.extend(ids)

    cache = TokenCache(Model())
    if held:
        cache.prefill(held)
    expected = 0
    while expected < min(len(held), len(prompt) - 1) and held[expected] == prompt[expected]:
        expected += 1
    assert cache.common(prompt) == expected
    assert cache.ids == tuple(held)
    assert cache.keep(prompt) == expected
    assert cache.ids == tuple(cache._cache) == tuple(prompt[:expected])


def test_tokens_on_their_way_when_a_ctrl_c_came_are_not_held(model):
    cache = TokenCache(model)
    cache.prefill([1, 2, 3])
    model.prefill([9, 9], cache._cache)  # taken in, and the ids not yet noted
    assert cache.keep([1, 2, 3, 4]) == 3
    expected = TokenCache(model)
    expected.prefill([1, 2, 3])
    np.testing.assert_array_equal(cache.prefill([4]), expected.prefill([4]))
