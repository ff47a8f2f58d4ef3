"""Codewords decoded four bytes at a time equal those decoded coordinate by coordinate."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.codes.voronoi import decode_doubled
from latticeq.codes.words import decode_words_lanes
from latticeq.jit import IS_JIT, kernel
from latticeq.lattices import e8
from latticeq.simd import load, store
from latticeq.storage.bits import pack_digits
from reference import voronoi as reference


@kernel
def decode_words(words: Any, q: int, even: Any, odd: Any) -> None:
    for first in range(0, words.size, 16):
        e, o = decode_words_lanes(load(words, first), q)
        store(even, first, e)
        store(odd, first, o)


def decoded(digits: np.ndarray, q: int) -> np.ndarray:
    """Decode digits below 16 through 32-bit words, sixteen rows of one block each."""
    words = pack_digits(digits[:, None], 16).view("<i4").reshape(-1)
    even, odd = np.empty_like(words), np.empty_like(words)
    decode_words(words, q, even, odd)
    raised = np.empty((len(words), 8), np.uint8)
    raised[:, 0::2] = even.view(np.uint8).reshape(-1, 4)
    raised[:, 1::2] = odd.view(np.uint8).reshape(-1, 4)
    return raised[: len(digits)].astype(int) - 2 * q


@pytest.mark.parametrize("q", range(2, 17))
def test_random_codewords(q: int, rng: np.random.Generator) -> None:
    digits = rng.integers(0, q, (20_000 if IS_JIT else 64, 8), dtype=np.uint8)
    assert np.array_equal(decoded(digits, q), decode_doubled(digits, q))


@pytest.mark.parametrize("q", [2, 3])
def test_every_codeword_of_a_small_code(q: int) -> None:
    digits = np.array([*np.ndindex(*[q] * 8)], np.uint8)[:: 1 if IS_JIT else 16]
    assert np.array_equal(decoded(digits, q), decode_doubled(digits, q))


@pytest.mark.parametrize("q", range(2, 17))
def test_codewords_on_the_boundary(q: int, rng: np.random.Generator) -> None:
    roots = e8.roots()
    sums = roots[rng.integers(0, 240, (2000 if IS_JIT else 50, 3))].sum(axis=1)
    doubled = np.concatenate([roots, sums]) * q  # points of E8 when q is even, or halved twice
    points = doubled / 2 if q % 2 == 0 else doubled * ((q + 1) // 2)
    digits = reference.encode(points, q)
    assert np.array_equal(decoded(digits, q), 2 * reference.decode(digits, q))


@given(st.integers(2, 16), st.lists(st.integers(0, 15), min_size=8, max_size=8))
def test_any_codeword(q: int, digits: list[int]) -> None:
    block = np.array([digits], np.uint8) % q
    assert np.array_equal(decoded(block, q), 2 * reference.decode(block, q))
