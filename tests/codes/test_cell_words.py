"""Words of the cells cubic, d8 and nestquantm decode to what the reference decodes digits to."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from latticeq.codes.cell_words import cubic_words_lanes, d8_words_lanes, fixed_words_lanes
from latticeq.codes.d8_fields import join_d8
from latticeq.jit import IS_JIT, kernel
from latticeq.simd import load, store
from reference import cubic, hamming, voronoi

MANY = 20_000 if IS_JIT else 64
EVEN = range(2, 17, 2)
SEEDS = st.integers(0, 2**32 - 1)
Words = NDArray[np.int32]


@kernel
def _decode_cubic(words: Any, q: int, out: Any) -> None:
    for first in range(0, words.size, 16):
        even, odd = cubic_words_lanes(load(words, first))
        store(out, first, even)
        store(out, words.size + first, odd)


@kernel
def _decode_fixed(words: Any, q: int, out: Any) -> None:
    for first in range(0, words.size, 16):
        even, odd = fixed_words_lanes(load(words, first), q)
        store(out, first, even)
        store(out, words.size + first, odd)


@kernel
def _decode_d8(words: Any, q: int, out: Any) -> None:
    for first in range(0, words.size, 16):
        even, odd, index = d8_words_lanes(load(words, first), q)
        store(out, first, even)
        store(out, words.size + first, odd)
        store(out, 2 * words.size + first, index)


def decoded(
    decode: Callable[[Words, int, Words], None], words: NDArray[np.uint32], q: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of coordinates 0 to 7, and what a third word held."""
    padded = np.zeros(len(words) + -len(words) % 16, np.uint32)
    padded[: len(words)] = words
    out = np.zeros((3, len(padded)), np.int32)
    decode(padded.view(np.int32), q, out)
    raised = np.empty((len(padded), 8), np.uint8)
    raised[:, 0::2], raised[:, 1::2] = (part.view(np.uint8).reshape(-1, 4) for part in out[:2])
    return raised[: len(words)].astype(int), out[2, : len(words)]


def nibbles(digits: np.ndarray) -> NDArray[np.uint32]:
    return np.asarray((digits.astype(np.uint32) << np.arange(0, 32, 4, np.uint32)).sum(1), "u4")


def hamming_digits(rng: np.random.Generator, q: int, count: int) -> np.ndarray:
    """Return digits of random codewords, digit 0 up to 2q - 1."""
    words = hamming.CODEWORDS[rng.integers(0, 16, count)]
    digits = words + 2 * rng.integers(0, q // 2, (count, 8))
    digits[:, 0] += q * rng.integers(0, 2, count)
    return np.asarray(digits, np.uint8)


@pytest.mark.parametrize("q", EVEN)
def test_cubic_words(q: int, rng: np.random.Generator) -> None:
    digits = rng.integers(0, q, (MANY, 8), dtype=np.uint8)
    raised, _ = decoded(_decode_cubic, nibbles(digits), q)
    assert np.array_equal(raised - (2 * q - 1), 4 * cubic.decode(digits, q))
    assert raised.max() <= 4 * q - 2


@pytest.mark.parametrize("q", range(2, 17))
def test_nestquantm_words(q: int, rng: np.random.Generator) -> None:
    digits = rng.integers(0, q, (MANY, 8), dtype=np.uint8)
    raised, _ = decoded(_decode_fixed, nibbles(digits), q)
    assert np.array_equal(raised - 2 * q, 2 * voronoi.fixed_decode(digits, q))
    assert raised.max() <= 4 * q


@pytest.mark.parametrize("q", EVEN)
def test_d8_words(q: int, rng: np.random.Generator) -> None:
    digits = hamming_digits(rng, q, MANY)
    index = rng.integers(0, 8, MANY)
    words = nibbles(join_d8(digits, index.astype(np.uint8), q))
    raised, found = decoded(_decode_d8, words, q)
    assert np.array_equal(raised - q, hamming.decode(digits, q))
    assert np.array_equal(found, index)
    assert raised.max() <= 2 * q


@given(SEEDS)
def test_every_word_of_32_bits_is_a_codeword_at_q_16(seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, 2**32, 64, dtype=np.uint32)
    raised, index = decoded(_decode_d8, words, 16)
    points = raised - 16
    assert hamming.is_hamming(points).all()
    again = hamming.encode(points, 16)
    assert np.array_equal(hamming.decode(again, 16), points)
    assert np.array_equal(nibbles(join_d8(again, index.astype(np.uint8), 16)), words)
