"""The lattice of the Hamming code and its quotient by qD8: closest points, counts, ties."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.codes.d8 import is_codeword
from latticeq.codes.nested import NestedCode
from latticeq.jit import IS_JIT, kernel
from latticeq.lattices.hamming import closest_point_hamming_lanes
from latticeq.simd import load_blocks, store_blocks
from reference import hamming as reference
from tests.lattice_data import blocks

SEEDS = st.integers(0, 2**32 - 1)
FULL = 1 if IS_JIT else 16


@kernel
def _closest(x: Any, out: Any) -> None:
    for first in range(0, x.size, 128):
        store_blocks(out, first, closest_point_hamming_lanes(load_blocks(x, first)))


def closest(x: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(x) + -len(x) % 16, 8), np.float32)
    padded[: len(x)] = x
    out = np.empty_like(padded)
    _closest(padded, out)
    return out[: len(x)]


def test_the_code_is_linear_with_distance_four() -> None:
    words = reference.CODEWORDS
    weights = sorted(words.sum(axis=1).tolist())
    assert weights == [0] + [4] * 14 + [8]
    sums = (words[:, None] + words) % 2
    assert reference.is_hamming(sums).all()


def test_codewords_are_the_affine_functions_of_the_cube() -> None:
    bits = reference.POINTS[:, None] >> np.arange(3) & 1
    affine = {
        tuple((bits @ normal + constant) % 2)
        for normal in np.ndindex(2, 2, 2)
        for constant in (0, 1)
    }
    assert affine == {tuple(word) for word in reference.CODEWORDS}


@given(blocks(largest=30.0))
def test_closest_points(x: np.ndarray) -> None:
    found = closest(x)
    assert np.array_equal(found, reference.closest_hamming(x))
    assert reference.is_hamming(found.astype(int)).all()
    best = reference.closest_by_codewords(x.astype(np.float64))
    errors = [np.square(x.astype(np.float64) - point).sum(axis=1) for point in (found, best)]
    np.testing.assert_allclose(*errors, rtol=1e-5, atol=1e-5)


def test_closest_points_of_lattice_points_are_themselves(rng: np.random.Generator) -> None:
    words = reference.CODEWORDS[rng.integers(0, 16, 1000 // FULL)]
    points = (words + 2 * rng.integers(-20, 20, words.shape)).astype(np.float32)
    assert np.array_equal(closest(points), points)
    near = points + rng.uniform(-0.35, 0.35, points.shape).astype(np.float32)  # radius 1
    assert np.array_equal(closest(near), points)


@pytest.mark.parametrize("q", [2, 4])
def test_one_eighth_of_all_digits_are_codewords(q: int) -> None:
    digits = np.array([*np.ndindex(2 * q, *[q] * 7)])
    kept = is_codeword(digits)
    assert kept.sum() == q**8 // 8
    assert np.array_equal(kept, reference.is_hamming(digits))


@given(st.integers(1, 31), SEEDS)
def test_the_representative_is_the_shortest_of_its_coset(half: int, seed: int) -> None:
    q, rng = 2 * half, np.random.default_rng(seed)
    words = reference.CODEWORDS[rng.integers(0, 16, 64)]
    digits = (words + 2 * rng.integers(0, half, (64, 8))).astype(np.uint8)
    digits[:, 0] += np.uint8(q) * rng.integers(0, 2, 64, dtype=np.uint8)
    points = NestedCode(q, (1.0,), "d8").points(digits).astype(int)
    assert np.array_equal(points, reference.decode(digits, q))
    assert np.array_equal(reference.encode(points.astype(float), q), digits)
    steps = points - digits
    assert (steps % q == 0).all()
    assert ((steps // q).sum(axis=1) % 2 == 0).all()
    two_largest = np.sort(np.abs(points), axis=1)[:, -2:].sum(axis=1)
    assert (two_largest <= q).all()  # the closed Voronoi cell of qD8


@given(st.integers(1, 31), SEEDS)
def test_decoding_depends_on_the_coset_alone(half: int, seed: int) -> None:
    q, rng = 2 * half, np.random.default_rng(seed)
    points = reference.CODEWORDS[rng.integers(0, 16, 64)] + 2 * rng.integers(-40, 40, (64, 8))
    step = rng.integers(-3, 4, (64, 8))
    step[:, 7] += step.sum(axis=1) % 2
    moved = points + q * step
    assert np.array_equal(reference.encode(points * 1.0, q), reference.encode(moved * 1.0, q))
    assert np.array_equal(
        reference.representative(points * 1.0, q), reference.representative(moved * 1.0, q)
    )
