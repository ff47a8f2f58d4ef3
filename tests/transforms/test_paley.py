"""Paley's matrices: fields, characters and orthogonality in exact integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.transforms.paley import (
    field_order,
    is_paley_order,
    jacobsthal_matrix,
    paley_matrix,
    quadratic_character,
)

FIELDS = [3, 5, 7, 9, 11, 13, 17, 19, 25, 27, 43, 49, 81, 107, 125, 139, 343]
ORDERS = [m for m in range(4, 256, 4) if is_paley_order(m)] + [344, 924]


@pytest.mark.parametrize("m", ORDERS)
def test_rows_are_orthogonal_in_integers(m: int) -> None:
    matrix = paley_matrix(m).astype(np.int64)
    assert set(np.unique(matrix)) == {-1, 1}
    assert np.array_equal(matrix @ matrix.T, m * np.eye(m))


@pytest.mark.parametrize("q", FIELDS)
def test_jacobsthal_identities(q: int) -> None:
    jacobsthal = jacobsthal_matrix(q).astype(np.int64)
    assert np.array_equal(jacobsthal @ jacobsthal.T, q * np.eye(q) - np.ones((q, q)))
    assert not jacobsthal.sum(axis=0).any()
    sign = 1 if q % 4 == 1 else -1  # -1 is a square exactly when q = 1 mod 4
    assert np.array_equal(jacobsthal.T, sign * jacobsthal)


@pytest.mark.parametrize("q", [q for q in FIELDS if (field_order(q) or (0, 0))[1] == 1])
def test_character_of_a_prime_field_is_eulers_criterion(q: int) -> None:
    euler = [pow(a, (q - 1) // 2, q) for a in range(q)]
    assert quadratic_character(q).tolist() == [value - q if value > 1 else value for value in euler]


@pytest.mark.parametrize(("m", "symmetric"), [(12, False), (28, False), (36, True), (344, False)])
def test_only_the_second_kind_is_symmetric(m: int, symmetric: bool) -> None:
    assert np.array_equal(paley_matrix(m), paley_matrix(m).T) == symmetric


def test_matrices_are_built_once_and_cannot_be_changed() -> None:
    assert paley_matrix(12) is paley_matrix(12)
    with pytest.raises(ValueError, match="read-only"):
        paley_matrix(12)[0, 0] = -1


def test_orders_below_200_are_those_of_paleys_list() -> None:
    missing = [m for m in range(4, 200, 4) if not is_paley_order(m)]
    by_sylvester_or_product = [16, 40, 56, 64, 88, 96, 112, 120, 136, 144, 160, 176]
    neither = [92, 116, 156, 172, 184, 188]
    assert missing == sorted(by_sylvester_or_product + neither)


@given(p=st.sampled_from([2, 3, 5, 7, 11, 101]), e=st.integers(1, 5), factor=st.integers(2, 50))
def test_field_order_finds_prime_powers_only(p: int, e: int, factor: int) -> None:
    assert field_order(p**e) == (p, e)
    if factor % p != 0:
        assert field_order(p**e * factor) is None
