"""Packing is a bijection, equals its definition, and refuses values out of range."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.errors import FormatError
from latticeq.jit import IS_JIT
from latticeq.storage import bits
from reference import bits as reference

SHAPES = st.tuples(st.integers(1, 35), st.integers(1, 4))
SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("q", range(2, 64))
def test_digits_of_every_q(q: int) -> None:
    for rows, blocks in ((1, 1), (16, 2), (33, 3)):
        digits = np.random.default_rng(q).integers(0, q, (rows, blocks, 8)).astype(np.uint8)
        packed = bits.pack_digits(digits, q)
        assert packed.shape == (-(-rows // 16), blocks, 16, bits.bit_width(q))
        assert np.array_equal(packed, reference.pack_digits(digits, q))
        assert np.array_equal(bits.unpack_digits(packed, q, rows), digits)
        bits.check_packed(packed, q, "digit")


@pytest.mark.parametrize("k", range(1, 17))
def test_scale_indices_of_every_k(k: int) -> None:
    for rows, blocks in ((1, 1), (16, 2), (33, 3)):
        index = np.random.default_rng(k).integers(0, k, (rows, blocks)).astype(np.uint8)
        packed = bits.pack_scale_index(index, k)
        assert packed.shape == (-(-rows // 16), blocks, 2 * bits.bit_width(k))
        assert np.array_equal(packed, reference.pack_scale_index(index, k))
        assert np.array_equal(bits.unpack_scale_index(packed, k, rows), index)
        bits.check_packed(packed, k, "scale index")


@given(SHAPES, st.integers(2, 63), SEEDS)
def test_no_bit_is_wasted_or_shared(shape: tuple[int, int], q: int, seed: int) -> None:
    digits = np.random.default_rng(seed).integers(0, q, (*shape, 8)).astype(np.uint8)
    packed = bits.pack_digits(digits, q)
    ones = np.bitwise_count(packed).sum()
    assert ones == np.bitwise_count(digits).sum()
    assert packed.nbytes == 16 * -(-shape[0] // 16) * shape[1] * reference.bit_width(q)


@given(SHAPES, SEEDS)
def test_int8(shape: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(-127, 128, (shape[0], 4 * shape[1]))
    packed = bits.pack_int8(values.astype(np.int8))
    assert np.array_equal(packed, reference.pack_int8(values.astype(np.int8)))
    assert np.array_equal(bits.unpack_int8(packed, shape[0]), values)


@settings(max_examples=50 if IS_JIT else 10)
@given(st.sampled_from([3, 5, 9, 14, 15, 33, 62, 63]), SHAPES, st.data())
def test_a_digit_out_of_range_is_seen(q: int, shape: tuple[int, int], data: st.DataObject) -> None:
    width = bits.bit_width(q)
    largest = 2**width - 1
    digits = np.zeros((*shape, 8), np.uint8)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in digits.shape)
    digits[place] = data.draw(st.integers(q, largest))
    packed = bits.pack_digits(digits, 2**width)
    with pytest.raises(FormatError, match=f"a digit is {digits[place]}; .* below q = {q}"):
        bits.unpack_digits(packed, q, shape[0])
    with pytest.raises(FormatError, match=f"a digit is {digits[place]}; it must be below {q}"):
        bits.check_packed(packed, q, "digit")


@pytest.mark.parametrize("k", [3, 5, 6, 7, 9, 12, 15])
def test_a_scale_index_out_of_range_is_seen(k: int) -> None:
    for row in range(20):
        index = np.zeros((20, 2), np.uint8)
        index[row, 1] = k
        packed = bits.pack_scale_index(index, 16 if k > 8 else 8 if k > 4 else 4)
        with pytest.raises(FormatError, match=f"a scale index is {k}"):
            bits.unpack_scale_index(packed, k, 20)
        with pytest.raises(FormatError, match=f"a scale index is {k}"):
            bits.check_packed(packed, k, "scale index")


def test_nothing_is_out_of_range_for_powers_of_two() -> None:
    for q in (2, 4, 8, 16, 32):
        packed = np.full((1, 2, 16, bits.bit_width(q)), 255, np.uint8)
        bits.check_packed(packed, q, "digit")
        assert (bits.unpack_digits(packed, q, 16) == q - 1).all()
