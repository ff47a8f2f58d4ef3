"""The Voronoi cell and NestQuantM's: minimal norms, one tie rule, translations."""

from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.codes.nested import MAX_Q, NestedCode
from latticeq.jit import IS_JIT
from latticeq.lattices import e8
from reference import voronoi as reference
from tests.lattice_data import lattice_points

QS = st.integers(2, MAX_Q)
SEEDS = st.integers(0, 2**32 - 1)
FULL = 1 if IS_JIT else 16
"""Without the JIT every so manieth of many cases is tried."""

DECODE = {"voronoi": reference.decode, "nestquantm": reference.fixed_decode}
Representative = Callable[[np.ndarray, int], np.ndarray]


def points_of(digits: np.ndarray, q: int, cell: str = "voronoi") -> np.ndarray:
    return NestedCode(q, (1.0,), cell).points(digits) / 2


@pytest.mark.parametrize("cell", DECODE)
@pytest.mark.parametrize("q", [4, 5, 12, 16, 63])
def test_digits_on_the_boundary_decode_by_the_shift_rule(
    q: int, cell: str, rng: np.random.Generator
) -> None:
    # Halves of roots times q lie in the middle of facets, sums of few roots on lower faces.
    roots = (2 * e8.roots()).astype(int)
    sums = roots[rng.integers(0, 240, (4000 // FULL, 3))] * rng.integers(0, 2, (4000 // FULL, 3, 1))
    points = np.concatenate([roots, sums.sum(axis=1)]) * (q // 2) / 2.0
    digits = reference.encode(points, q)
    assert np.array_equal(points_of(digits, q, cell), DECODE[cell](digits, q))


@pytest.mark.parametrize("q", [2, 3, 4])
def test_decoded_points_have_minimal_norm_in_their_coset(q: int, rng: np.random.Generator) -> None:
    # A point of q times the cell has norm at most q² (covering radius 1), so what would beat it is
    # within 2q of it: a member of the coset that differs by q times a vector of norm at most 4.
    short = np.concatenate([e8.roots(), *[e8.roots() + root for root in e8.roots()]])
    steps = q * np.unique(short[np.square(short).sum(axis=1) <= 4], axis=0)
    points = points_of(rng.integers(0, q, (300 // FULL + 1, 8)), q)
    others = np.square(points[:, None] + steps).sum(axis=2)
    assert len(steps) == 1 + 240 + 2160
    assert (np.square(points).sum(axis=1) <= others.min(axis=1)).all()


@given(QS, SEEDS)
def test_decoded_points_lie_in_the_closed_cell(q: int, seed: int) -> None:
    points = points_of(np.random.default_rng(seed).integers(0, q, (64, 8)), q)
    assert (points @ e8.roots().T).max() <= q


@pytest.mark.parametrize(
    "representative", [reference.representative, reference.fixed_representative]
)
@given(q=QS, seed=SEEDS)
def test_decoders_move_with_the_coarse_lattice(
    representative: Representative, q: int, seed: int
) -> None:
    # f(y + λ) = f(y) + λ of the map y -> y - representative, for λ in qE8.
    rng = np.random.default_rng(seed)
    points = lattice_points(rng, 64, largest=40)
    moved = points + q * lattice_points(rng, 64)
    assert np.array_equal(reference.encode(points, q), reference.encode(moved, q))
    assert np.array_equal(representative(points, q), representative(moved, q))


@given(QS, SEEDS)
def test_nestquantm_names_a_member_of_the_coset_in_its_box(q: int, seed: int) -> None:
    digits = np.random.default_rng(seed).integers(0, q, (64, 8), dtype=np.uint8)
    points = points_of(digits, q, "nestquantm")
    assert np.array_equal(reference.encode(points, q), digits)
    assert (np.abs(points[:, 1:]) <= q / 2).all()
    assert (np.abs(points[:, 0]) <= q).all()
    # Another member is never shorter than the one that the Voronoi cell holds.
    shortest = np.square(points_of(digits, q)).sum(axis=1)
    assert (np.square(points).sum(axis=1) >= shortest).all()


def test_nestquantm_is_another_code_than_voronoi(rng: np.random.Generator) -> None:
    digits = rng.integers(0, 16, (2000 // FULL, 8))
    longer = np.square(points_of(digits, 16, "nestquantm")).sum(1)
    shorter = np.square(points_of(digits, 16)).sum(1)
    assert 0.3 < (longer > shorter).mean() < 0.9


def test_overloaded_blocks_go_to_nearly_the_closest_codeword(rng: np.random.Generator) -> None:
    # Of all codewords of q = 3 the one found is at most a little farther than the closest.
    every = points_of(np.array([*np.ndindex(*[3] * 8)], np.uint8), 3)
    x = rng.normal(size=(320 // FULL, 8)) * 1.2
    found = NestedCode(3, (1.0,)).encode_decoded(x)[2]
    least = np.square(x[:, None] - every).sum(axis=2).min(axis=1)
    errors = np.square(x - found).sum(axis=1)
    assert (errors >= least - 1e-6).all()
    assert np.median(errors / least) < 1.001
    assert errors.mean() < 1.15 * least.mean()
