"""E8: the complete certificate of every closest point, oracles, and symmetries."""

from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.lattices import e8
from reference.e8 import GENERATOR, closest_e8, is_e8, short_vectors
from tests.lattice_data import blocks, lattice_points


def distance(x: np.ndarray, point: np.ndarray) -> np.ndarray:
    return np.square(x.astype(np.float64) - point).sum(axis=-1)


@given(blocks())
@example(np.zeros((1, 8), np.float32))
@example(np.eye(8, dtype=np.float32))  # deep holes: sixteen points are equally near
@example(np.full((1, 8), 0.25, np.float32))
def test_no_root_leads_nearer(x: np.ndarray) -> None:
    point = e8.closest_point(x)
    assert point.dtype == np.float32
    assert is_e8((2 * point).astype(np.int64)).all()
    products = (x.astype(np.float64) - point) @ e8.roots().T
    assert products.max() <= 1 + 1e-5  # float32 distances decide between points that near


@given(blocks())
def test_float64_certificate_is_exact(x: np.ndarray) -> None:
    wide = x.astype(np.float64) * (1 + 2.0**-30)
    assert ((wide - e8.closest_point(wide)) @ e8.roots().T).max() <= 1 + 1e-12


@given(blocks())
def test_the_reference_finds_the_same_points(x: np.ndarray) -> None:
    for given_x in (x, x.astype(np.float64) / 3):
        assert np.array_equal(e8.closest_point(given_x), closest_e8(given_x))


@given(blocks(), st.integers(0, 2**32 - 1))
def test_translation_by_lattice_vectors_keeps_distances(x: np.ndarray, seed: int) -> None:
    shift = lattice_points(np.random.default_rng(seed), len(x))
    x = np.round(x * 256) / 256  # so that translating is exact
    moved = e8.closest_point(x + shift)
    assert np.array_equal(distance(x + shift, moved), distance(x, e8.closest_point(x)))


def test_translation_commutes_away_from_ties(rng: np.random.Generator) -> None:
    x = rng.normal(size=(500, 8)) * 3
    shift = lattice_points(rng, 500)
    assert np.array_equal(e8.closest_point(x + shift), e8.closest_point(x) + shift)


@given(blocks(), st.permutations(range(8)), st.integers(0, 127))
def test_permutations_and_even_sign_changes_keep_distances(
    x: np.ndarray, order: list[int], bits: int
) -> None:
    signs = np.array([1 - 2 * (bits >> i & 1) for i in range(7)])
    signs = np.append(signs, np.prod(signs))  # E8 is symmetric under even numbers of them
    image = (x[:, order] * signs).astype(np.float64)
    kept = distance(x, e8.closest_point(x.astype(np.float64)))
    np.testing.assert_allclose(distance(image, e8.closest_point(image)), kept, atol=1e-9)


@settings(max_examples=10)
@given(blocks(largest=1.0))
def test_nothing_in_a_small_box_is_nearer(x: np.ndarray) -> None:
    box = np.array([*product((-1, 0, 1), repeat=8)], np.float64)
    halves = np.array([*product((-1.5, -0.5, 0.5, 1.5), repeat=8)])
    points = np.concatenate([box[box.sum(1) % 2 == 0], halves[halves.sum(1) % 2 == 0]])
    x = x[:4].astype(np.float64)
    nearest = np.square(x[:, None] - points).sum(-1).min(axis=1)
    np.testing.assert_allclose(distance(x, e8.closest_point(x)), nearest, atol=1e-12)


def test_theta_series() -> None:
    # An entry beyond 2 is at least 5/2 and alone makes a norm above 6.
    norms = np.square(short_vectors(2)).sum(axis=1)
    assert [int(np.sum(norms == m)) for m in (0, 2, 4, 6)] == [1, 240, 2160, 6720]


def test_roots_are_the_shortest_vectors() -> None:
    found = short_vectors(1)
    found = found[np.square(found).sum(axis=1) == 2]
    assert {tuple(v) for v in found} == {tuple(v) for v in e8.roots()}
    assert not e8.roots().flags.writeable


def test_generator_matrix_generates_e8() -> None:
    assert np.array_equal(e8.generator_matrix(), GENERATOR)
    assert is_e8((2 * e8.generator_matrix().T).astype(np.int64)).all()
    assert np.isclose(np.linalg.det(e8.generator_matrix()), 1)
    gram = e8.generator_matrix().T @ e8.generator_matrix()
    assert (np.diag(gram) % 2 == 0).all()


def test_normalized_second_moment(rng: np.random.Generator) -> None:
    count = 200_000 if IS_JIT else 4_000
    x = rng.uniform(0, 2, (count, 8)) @ GENERATOR.T  # uniform over two copies of every cell
    moments = distance(x, e8.closest_point(x)) / 8
    error = moments.std() / np.sqrt(count)
    assert abs(moments.mean() - e8.NORMALIZED_SECOND_MOMENT) < 4 * error
    assert error < 0.01 * e8.NORMALIZED_SECOND_MOMENT
    assert distance(x, e8.closest_point(x)).max() <= e8.COVERING_RADIUS**2 + 1e-12


def test_holes_and_packing_radius() -> None:
    deep, shallow = np.eye(8)[0], np.array([1 / 6] * 7 + [5 / 6])
    assert distance(deep, e8.closest_point(deep)) == 1
    assert np.isclose(distance(shallow, e8.closest_point(shallow)), 8 / 9)
    inside = e8.roots() / 2 * (1 - 1e-9)
    assert not e8.closest_point(inside).any()
    assert np.isclose(np.linalg.norm(inside[0]), e8.PACKING_RADIUS)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 50])
def test_any_number_of_blocks(count: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(count, 8)).astype(np.float32)
    assert np.array_equal(e8.closest_point(x), closest_e8(x))


def test_shapes_and_dtypes(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 8))
    assert e8.closest_point(x).shape == (2, 3, 8)
    assert e8.closest_point(x[0, 0]).shape == (8,)
    assert e8.closest_point([0] * 8).dtype == np.float64
    strided = np.asfortranarray(x.astype(np.float32))
    assert np.array_equal(e8.closest_point(strided), e8.closest_point(strided.copy("C")))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e9])
def test_what_has_no_closest_point_is_refused(bad: float) -> None:
    x = np.zeros((3, 8), np.float32)
    x[1, 2] = bad
    with pytest.raises(InputError, match="NaN, infinity or a magnitude beyond"):
        e8.closest_point(x)


def test_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 7\).*\(\.\.\., 8\)"):
        e8.closest_point(np.zeros((3, 7)))
    with pytest.raises(InputError, match="shape"):
        e8.closest_point(1.0)
