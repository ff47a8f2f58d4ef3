"""The cubic cell: exact encoding, a centred box, points of one coset of E8."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.codes.nested import NestedCode
from latticeq.jit import IS_JIT
from reference.e8 import is_e8

FULL = 1 if IS_JIT else 16


def every_point(q: int) -> np.ndarray:
    digits = np.array([*np.ndindex(*[q] * 8)], np.uint8)
    return NestedCode(q, (1.0,), "cubic").points(digits) / 4


@pytest.mark.parametrize(("q", "count", "largest"), [(2, 2000, 3.0), (4, 200, 4.0)])
def test_encoding_finds_the_nearest_of_all_codewords(
    q: int, count: int, largest: float, rng: np.random.Generator
) -> None:
    every = every_point(q)
    x = np.concatenate(
        [
            rng.normal(size=(count // FULL, 8)) * q / 3,
            rng.uniform(-largest, largest, (count // FULL, 8)),
            rng.integers(-8, 9, (count // FULL, 8)) / 4,  # ties
        ]
    ).astype(np.float32)
    found = NestedCode(q, (1.0,), "cubic").encode_decoded(x)[2]
    errors = np.square(x - found).sum(axis=1)
    for block, error in zip(x, errors, strict=True):
        assert error == pytest.approx(np.square(block - every).sum(axis=1).min(), rel=1e-5)


@given(st.integers(1, 31), st.integers(0, 2**32 - 1))
def test_points_are_one_coset_of_e8_in_a_centred_box(half: int, seed: int) -> None:
    q = 2 * half
    digits = np.random.default_rng(seed).integers(0, q, (64, 8), dtype=np.uint8)
    quadrupled = NestedCode(q, (1.0,), "cubic").points(digits).astype(int)
    assert (quadrupled % 2 == 1).all()
    assert np.abs(quadrupled).max() <= 2 * q - 1
    # The point of no digits, 1/2 in coordinate 0 and 0 elsewhere, less the same constant.
    origin = np.array([2, 0, 0, 0, 0, 0, 0, 0]) - (2 * q - 1)
    assert is_e8((quadrupled - origin) // 2).all()
    assert ((quadrupled - origin) % 2 == 0).all()


def test_the_code_is_centred() -> None:
    # Each coordinate is as often x as -x.
    every = every_point(4)
    for values in every.T:
        assert np.array_equal(np.sort(values), np.sort(-values))


def test_ties_are_defined() -> None:
    code = NestedCode(4, (1.0,), "cubic")

    def between(first: list[int], second: list[int]) -> list[int]:
        points = code.points(np.array([first, second])) / 4
        return list(code.encode(points.mean(axis=0))[0])

    # Halves round to the even digit.
    assert between([2, 2, 2, 2, 1, 1, 1, 1], [3, 3, 2, 2, 1, 1, 1, 1]) == [2, 2, 2, 2, 1, 1, 1, 1]
    assert between([1, 1, 2, 2, 1, 1, 1, 1], [2, 2, 2, 2, 1, 1, 1, 1]) == [2, 2, 2, 2, 1, 1, 1, 1]
    # Between a sum of either parity, the even one. (1, 0, ..., 0) is (½)⁸ from the point of zeros.
    assert between([0] * 8, [1] + [0] * 7) == [0] * 8
