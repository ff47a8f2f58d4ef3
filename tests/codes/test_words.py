"""Codewords decoded four bytes at a time equal those decoded coordinate by coordinate."""

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.codes import words as module
from latticeq.codes.nested import NestedCode
from latticeq.codes.words import decode_words_lanes, word_tables
from latticeq.jit import IS_JIT, kernel
from latticeq.lattices import e8
from latticeq.simd import load, store
from latticeq.storage.bits import pack_digits
from reference import voronoi as reference

Decoder = Callable[[np.ndarray, int], np.ndarray]


@pytest.fixture(scope="module", params=[True, False], ids=["tables", "arithmetic"])
def decoded(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    """Return a function that decodes digits below 16 through words, in one of the two ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "USE_TABLES", request.param)
        patch.setenv("LATTICEQ_CACHE", "0")  # the other way must not come from the cache

        @kernel
        def decode_words(words: Any, q: int, tables: Any, even: Any, odd: Any) -> None:
            for first in range(0, words.size, 16):
                rows = load(tables, 0), load(tables, 16), load(tables, 32), load(tables, 48)
                e, o = decode_words_lanes(load(words, first), q, rows)
                store(even, first, e)
                store(odd, first, o)

        def decode(digits: np.ndarray, q: int) -> np.ndarray:
            words = pack_digits(digits[:, None], 16).view("<i4").reshape(-1)
            even, odd = np.empty_like(words), np.empty_like(words)
            decode_words(words, q, word_tables(q), even, odd)
            raised = np.empty((len(words), 8), np.uint8)
            raised[:, 0::2] = even.view(np.uint8).reshape(-1, 4)
            raised[:, 1::2] = odd.view(np.uint8).reshape(-1, 4)
            return np.asarray(raised[: len(digits)].astype(int) - 2 * q)

        yield decode


@pytest.mark.parametrize("q", range(2, 17))
def test_random_codewords(decoded: Decoder, q: int, rng: np.random.Generator) -> None:
    digits = rng.integers(0, q, (20_000 if IS_JIT else 64, 8), dtype=np.uint8)
    assert np.array_equal(decoded(digits, q), NestedCode(q, (1.0,)).points(digits))


@pytest.mark.parametrize("q", [2, 3])
def test_every_codeword_of_a_small_code(decoded: Decoder, q: int) -> None:
    digits = np.array([*np.ndindex(*[q] * 8)], np.uint8)[:: 1 if IS_JIT else 16]
    assert np.array_equal(decoded(digits, q), NestedCode(q, (1.0,)).points(digits))


@pytest.mark.parametrize("q", range(2, 17))
def test_codewords_on_the_boundary(decoded: Decoder, q: int, rng: np.random.Generator) -> None:
    roots = e8.roots()
    sums = roots[rng.integers(0, 240, (2000 if IS_JIT else 50, 3))].sum(axis=1)
    points = np.concatenate([roots, sums]) * q  # halved, these are between cells of qE8
    digits = reference.encode(points / 2 if q % 2 == 0 else points * ((q + 1) // 2), q)
    assert np.array_equal(decoded(digits, q), 2 * reference.decode(digits, q))


@given(q=st.integers(2, 16), digits=st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_any_codeword(decoded: Decoder, q: int, digits: list[int]) -> None:
    block = np.array([digits], np.uint8) % q
    assert np.array_equal(decoded(block, q), 2 * reference.decode(block, q))
