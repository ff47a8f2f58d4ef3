"""D_n: membership, optimality against enumeration, symmetries and ties."""

from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.errors import InputError
from latticeq.lattices import dn
from reference.e8 import closest_dn
from tests.lattice_data import blocks


@given(blocks(st.integers(1, 12)))
def test_points_of_dn_that_the_reference_finds(x: np.ndarray) -> None:
    point = dn.closest_point(x)
    assert (point == np.rint(point)).all()
    assert (point.astype(np.float64).sum(axis=-1) % 2 == 0).all()
    assert np.array_equal(point, closest_dn(x))


@given(blocks(4, largest=1.0))
def test_nothing_in_a_small_box_is_nearer(x: np.ndarray) -> None:
    x = x.astype(np.float64)
    box = np.array([*product(range(-3, 4), repeat=4)], np.float64)
    even = box[box.sum(axis=1) % 2 == 0]
    nearest = np.square(x[:, None] - even).sum(-1).min(axis=1)
    found = np.square(x - dn.closest_point(x)).sum(-1)
    np.testing.assert_allclose(found, nearest, atol=1e-12)


@given(blocks(6), st.permutations(range(6)), st.integers(0, 63))
def test_permutations_and_signs_keep_distances(x: np.ndarray, order: list[int], bits: int) -> None:
    x = x.astype(np.float64)
    signs = np.array([1 - 2 * (bits >> i & 1) for i in range(6)])
    image = x[:, order] * signs
    kept = np.square(x - dn.closest_point(x)).sum(-1)
    np.testing.assert_allclose(np.square(image - dn.closest_point(image)).sum(-1), kept, atol=1e-9)


def test_ties_are_as_documented() -> None:
    assert dn.closest_point([0.5, 0.5]).tolist() == [0, 0]  # halves to even
    assert dn.closest_point([1.0, 0.0]).tolist() == [2, 0]  # no error: the first goes up
    assert dn.closest_point([0.75, 0.25, 0.0]).tolist() == [0, 0, 0]  # the first of equals


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="must be"):
        dn.closest_point(3.0)
    with pytest.raises(InputError, match="rescale"):
        dn.closest_point([np.nan, 0.0])
