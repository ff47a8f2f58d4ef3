"""Pyramid codes: counts, the bijection with indices, and the word of largest cosine."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.pyramid import MAX_PULSES, PyramidCode, most_pulses, word_count
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from reference import pyramid as reference

SMALL = [(2, 1), (2, 7), (3, 5), (4, 3), (5, 4), (6, 2), (8, 3)]
SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = settings(max_examples=60 if IS_JIT else 8)


@st.composite
def codes(draw: st.DrawFn) -> PyramidCode:
    """Draw a code of indices from a few bits to several limbs."""
    return PyramidCode(draw(st.integers(2, 70)), draw(st.integers(1, 120)))


def as_integers(index: np.ndarray) -> list[int]:
    """Return indices, (R, limbs), as Python's."""
    return [sum(int(limb) << 64 * w for w, limb in enumerate(row)) for row in index]


def as_limbs(numbers: list[int], limbs: int) -> np.ndarray:
    raw = b"".join(number.to_bytes(8 * limbs, "little") for number in numbers)
    return np.frombuffer(raw, "<u8").reshape(-1, limbs)


def random_words(code: PyramidCode, rng: np.random.Generator, count: int) -> np.ndarray:
    """Return words, some with all pulses in few places."""
    x = rng.normal(size=(count, code.n)) ** rng.choice([1, 5], (count, 1))
    return code.nearest(x, "projection")[0]


def cosines(words: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return x·y/‖y‖ for every word."""
    return np.asarray(words @ x / np.linalg.norm(words, axis=-1))


@pytest.mark.parametrize(
    ("n", "k", "count"),
    [(1, 3, 2), (2, 2, 8), (3, 2, 18), (4, 2, 32), (8, 1, 16), (8, 4, 2816), (16, 8, 30316544)],
)
def test_counts_that_are_published(n: int, k: int, count: int) -> None:
    assert word_count(n, k) == count == reference.count(n, k)


@given(st.integers(0, 60), st.integers(0, 60))
def test_counts_keep_fischers_recurrence(n: int, k: int) -> None:
    assert word_count(n, k) == reference.count(n, k)


@given(st.integers(2, 300), st.integers(10, 900))
def test_the_most_pulses_fit_and_one_more_does_not(n: int, bits: int) -> None:
    if word_count(n, 1) > 2**bits:
        with pytest.raises(InputError, match="one pulse needs"):
            most_pulses(n, bits)
        return
    k = most_pulses(n, bits)
    assert word_count(n, k) <= 2**bits
    assert k == MAX_PULSES or word_count(n, k + 1) > 2**bits


@pytest.mark.parametrize(("n", "k"), [*SMALL, (8, 4)])
def test_every_word_of_a_small_code_has_its_index(n: int, k: int) -> None:
    code = PyramidCode(n, k)
    words = np.array(list(reference.words(n, k)))
    assert len(words) == code.size
    assert as_integers(code.rank(words)) == list(range(code.size))
    assert np.array_equal(code.unrank(as_limbs(list(range(code.size)), 1)), words)


@EXAMPLES
@given(codes(), SEEDS, st.data())
def test_indices_and_words_are_one_to_one(
    code: PyramidCode, seed: int, data: st.DataObject
) -> None:
    edges = [0, code.size - 1, data.draw(st.integers(0, code.size - 1))]
    index = as_limbs(edges, code.limbs)
    words = code.unrank(index)
    assert (np.abs(words.astype(int)).sum(axis=1) == code.pulses).all()
    assert np.array_equal(code.rank(words), index)
    some = random_words(code, np.random.default_rng(seed), 20)
    assert np.array_equal(code.unrank(code.rank(some)), some)
    assert as_integers(code.rank(some)) == [reference.rank(word) for word in some]
    assert np.array_equal(reference.unrank(edges[2], code.n, code.pulses), words[2])


@pytest.mark.parametrize(("n", "k"), SMALL)
def test_no_word_of_a_small_code_is_nearer(n: int, k: int, rng: np.random.Generator) -> None:
    code = PyramidCode(n, k)
    words = np.array(list(reference.words(n, k)))
    x = rng.normal(size=(300 if IS_JIT else 10, n)).astype(np.float32)
    x[::3] = np.rint(2 * x[::3])  # many ties
    found, gains = code.nearest(x)
    for vector, word, gain in zip(x.astype(np.float64), found, gains, strict=True):
        assert np.abs(word).sum() == k
        assert cosines(word, vector) >= cosines(words, vector).max() - 1e-12 * np.abs(vector).sum()
        np.testing.assert_allclose(gain, cosines(word, vector), rtol=1e-12, atol=1e-15)


@EXAMPLES
@given(st.integers(2, 40), st.integers(1, 80), SEEDS, st.booleans())
def test_the_reference_finds_the_same_words(n: int, k: int, seed: int, ties: bool) -> None:
    x = np.random.default_rng(seed).normal(size=(4, n)).astype(np.float32)
    x = np.rint(3 * x) if ties else x
    words, gains = PyramidCode(n, k).nearest(x)
    for vector, word, gain in zip(x.astype(np.float64), words, gains, strict=True):
        wanted = reference.closest_word(vector, k)
        assert np.array_equal(word, wanted)
        assert gain == reference.gain(np.abs(vector), np.abs(wanted))
    projected, _ = PyramidCode(n, k).nearest(x, "projection")
    magnitudes = np.array([reference.projection(np.abs(row.astype(np.float64)), k) for row in x])
    assert np.array_equal(np.abs(projected), magnitudes)


@EXAMPLES
@given(codes(), SEEDS, st.integers(-20, 20))
def test_words_follow_scale_signs_and_themselves(code: PyramidCode, seed: int, power: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(8, code.n)).astype(np.float32)
    words, gains = code.nearest(x)
    scaled, longer = code.nearest(x * np.float32(2.0**power))
    assert np.array_equal(scaled, words)
    assert np.array_equal(longer, gains * 2.0**power)
    signs = rng.choice([-1, 1], x.shape)
    assert np.array_equal(code.nearest(x * signs)[0], words * signs)
    for search in ("cosine", "projection"):
        again, norms = code.nearest(words, search)
        assert np.array_equal(again, words)
        np.testing.assert_allclose(norms, np.linalg.norm(words.astype(float), axis=1), rtol=1e-12)


def test_the_search_beats_the_projection(rng: np.random.Generator) -> None:
    code, x = PyramidCode(16, 12), rng.normal(size=(2000 if IS_JIT else 100, 16))
    gains = [code.nearest(x, search)[1] for search in ("cosine", "projection")]
    assert (gains[0] >= gains[1]).all()
    assert gains[0].mean() > 1.001 * gains[1].mean()


def test_zeros_have_a_word_and_no_gain() -> None:
    words, gains = PyramidCode(4, 3).nearest(np.zeros((2, 4)))
    assert words.tolist() == [[3, 0, 0, 0]] * 2
    assert not gains.any()


@pytest.mark.skipif(not IS_JIT, reason="measures many vectors")
@pytest.mark.parametrize(
    ("n", "k", "wanted"),
    [
        (8, 6, 0.0867), (8, 16, 0.01481), (8, 24, 0.00665), (8, 36, 0.00299),
        (16, 12, 0.0829), (16, 27, 0.01933), (16, 58, 0.00439),
        (32, 22, 0.0922), (32, 50, 0.02156), (32, 105, 0.00514),
        (64, 43, 0.0937), (64, 96, 0.02279), (64, 199, 0.00555),
        (128, 84, 0.0960), (128, 187, 0.02365), (128, 386, 0.00582),
    ],
)  # fmt: skip
def test_losses_of_shape_on_gaussian_vectors(
    n: int, k: int, wanted: float, rng: np.random.Generator
) -> None:
    """As a search that only adds pulses finds them; the best words lose up to 3 % less."""
    x = rng.normal(size=(2**19 // n, n)).astype(np.float32)
    _, gains = PyramidCode(n, k).nearest(x)
    energy = np.square(x.astype(np.float64)).sum(axis=1)
    assert 0.95 * wanted < np.mean(energy - gains**2) / n < 1.01 * wanted


@pytest.mark.parametrize(
    ("n", "pulses", "message"),
    [
        (1, 4, "n is 1; it must be an integer from 2 to 1024"),
        (16.0, 4, "n is 16.0"),
        (8, 0, "pulses is 0; it must be an integer from 1 to 4095"),
        (8, 4096, "pulses is 4096"),
        (512, 4000, "take smaller groups"),
    ],
)
def test_codes_out_of_range_are_refused(n: int, pulses: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PyramidCode(n, pulses)


def test_bad_input_is_refused() -> None:
    code = PyramidCode(40, 40)
    assert code.limbs == 2
    with pytest.raises(InputError, match=r"vectors have shape \(3, 8\); the last axis must be 40"):
        code.nearest(np.ones((3, 8)))
    with pytest.raises(InputError, match="not finite"):
        code.nearest(np.full(40, np.nan))
    with pytest.raises(InputError, match="search is 'best'"):
        code.nearest(np.ones(40), "best")
    with pytest.raises(InputError, match="do not sum to 40"):
        code.rank(np.ones((2, 40)) - np.eye(2, 40))
    with pytest.raises(InputError, match="1 limbs; this code has 2"):
        code.unrank(np.zeros((3, 1), np.uint64))
    index = as_limbs([0, code.size - 1, code.size, 2**128 - 1], 2)
    assert code.first_invalid(index[:2]) is None
    assert code.first_invalid(index[1:]) == 1
    with pytest.raises(InputError, match=f"index 2 of 4 is not below {code.size}"):
        code.unrank(index)
