"""Voronoi codes: bijections, minimal norms, one tie rule, and unions of scales."""

from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis.extra.numpy import arrays

from latticeq.codes.voronoi import MAX_Q, VoronoiCode, decode_doubled
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.lattices import e8
from latticeq.quantizers.betas import published_betas, tuned_betas
from reference import voronoi as reference
from tests.lattice_data import blocks, lattice_points

QS = st.integers(2, MAX_Q)
SEEDS = st.integers(0, 2**32 - 1)
FULL = 1 if IS_JIT else 16
"""Without the JIT every so manieth of many cases is tried."""


def random_digits(seed: int, q: int, count: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, q, (count, 8), dtype=np.uint8)


def every_digit_string(q: int) -> np.ndarray:
    return np.array([*product(range(q), repeat=8)], np.uint8)[::FULL]


@pytest.mark.parametrize("q", [2, 3])
def test_every_codeword_of_a_small_code(q: int) -> None:
    digits = every_digit_string(q)
    doubled = decode_doubled(digits, q)
    assert np.array_equal(doubled, 2 * reference.decode(digits, q))
    assert len(np.unique(doubled, axis=0)) == len(digits)
    again, index = VoronoiCode(q, (1.0,)).encode(doubled / 2)
    assert np.array_equal(again, digits)
    assert not index.any()


@given(QS, SEEDS)
def test_digits_survive_decoding_and_encoding(q: int, seed: int) -> None:
    digits = random_digits(seed, q)
    for dtype in (np.float32, np.float64):
        code = VoronoiCode(q, (0.3,))
        values = code.decode(digits, np.zeros(64, np.uint8), dtype)
        assert values.dtype == dtype
        again, _, decoded = code.encode_decoded(values)
        assert np.array_equal(again, digits)
        assert np.array_equal(decoded, values)


@given(QS, SEEDS)
def test_decoding_is_the_shift_rule(q: int, seed: int) -> None:
    digits = random_digits(seed, q)
    doubled = decode_doubled(digits, q)
    assert np.array_equal(doubled, 2 * reference.decode(digits, q))
    assert np.abs(doubled.astype(int)).max() <= 2 * q


@pytest.mark.parametrize("q", [4, 5, 12, 16, 63])
def test_digits_on_the_boundary_decode_by_the_shift_rule(q: int, rng: np.random.Generator) -> None:
    # Halves of roots times q lie in the middle of facets, sums of few roots on lower faces.
    roots = (2 * e8.roots()).astype(int)
    sums = roots[rng.integers(0, 240, (4000 // FULL, 3))] * rng.integers(0, 2, (4000 // FULL, 3, 1))
    points = np.concatenate([roots, sums.sum(axis=1)]) * (q // 2) / 2.0
    digits = reference.encode(points, q)
    assert np.array_equal(decode_doubled(digits, q), 2 * reference.decode(digits, q))


@pytest.mark.parametrize("q", [2, 3, 4])
def test_decoded_points_have_minimal_norm_in_their_coset(q: int, rng: np.random.Generator) -> None:
    # A point of q times the cell has norm at most q² (covering radius 1), so what would beat it is
    # within 2q of it: a member of the coset that differs by q times a vector of norm at most 4.
    short = np.concatenate([e8.roots(), *[e8.roots() + root for root in e8.roots()]])
    steps = q * np.unique(short[np.square(short).sum(axis=1) <= 4], axis=0)
    points = decode_doubled(rng.integers(0, q, (300 // FULL + 1, 8)), q) / 2.0
    others = np.square(points[:, None] + steps).sum(axis=2)
    assert len(steps) == 1 + 240 + 2160
    assert (np.square(points).sum(axis=1) <= others.min(axis=1)).all()


@given(QS, SEEDS)
def test_decoding_depends_on_the_coset_alone(q: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = lattice_points(rng, 64, largest=40)
    moved = points + q * lattice_points(rng, 64)
    assert np.array_equal(reference.encode(points, q), reference.encode(moved, q))
    assert np.array_equal(reference.representative(points, q), reference.representative(moved, q))


@settings(max_examples=50)
@given(
    blocks(largest=100.0), QS, st.sampled_from(["opt", "first"]), st.integers(1, 5), st.booleans()
)
@example(np.zeros((3, 8), np.float32), 16, "opt", 4, False)
@example(np.full((1, 8), 1000.0, np.float32), 2, "first", 2, True)
def test_encoding_equals_the_reference_bit_for_bit(
    x: np.ndarray, q: int, selection: str, k: int, is_wide: bool
) -> None:
    betas = tuple(np.geomspace(3.0, 6.5, k) / q)
    x = (x / 8).astype(np.float64 if is_wide else np.float32)
    digits, index, values = VoronoiCode(q, betas, selection).encode_decoded(x)
    wanted = reference.encode_union(x, q, betas, selection)
    assert np.array_equal(digits, wanted[0])
    assert np.array_equal(index, wanted[1])
    assert np.array_equal(values, wanted[2])
    assert values.dtype == x.dtype


@settings(max_examples=50)
@given(blocks(), QS, st.sampled_from(["opt", "first"]))
def test_what_encoding_promises_is_what_decoding_gives(
    x: np.ndarray, q: int, selection: str
) -> None:
    code = VoronoiCode(q, tuple(np.float32([3.0 / q, 4.5 / q, 7.0 / q]).tolist()), selection)
    digits, index, values = code.encode_decoded(x)
    assert digits.max() < q
    assert np.array_equal(code.decode(digits, index), values)
    assert np.array_equal(code.encode(x)[0], digits)
    assert np.array_equal(code.encode(x)[1], index)


@given(blocks(largest=8.0), st.integers(-20, 16))
def test_scaling_by_powers_of_two_changes_no_digit(x: np.ndarray, power: int) -> None:
    betas = (0.25, 0.375, 0.5)
    scaled = VoronoiCode(12, tuple(beta * 2.0**power for beta in betas))
    digits, index, values = VoronoiCode(12, betas).encode_decoded(x)
    again = scaled.encode_decoded(x * np.float32(2.0**power))
    assert np.array_equal(again[0], digits)
    assert np.array_equal(again[1], index)
    assert np.array_equal(again[2], values * np.float32(2.0**power))


def test_opt_beats_first_and_more_scales_beat_fewer(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4000 // FULL, 8))
    betas = tuned_betas(14, 4)

    def errors(*args: object) -> np.ndarray:
        return np.square(x - VoronoiCode(*args).encode_decoded(x)[2]).sum(axis=1)  # type: ignore[arg-type]

    opt, first = errors(14, betas), errors(14, betas, "first")
    assert (opt <= first).all()
    assert opt.mean() < first.mean()
    assert (opt <= errors(14, betas[1:])).all()


def test_overloaded_blocks_are_drawn_to_the_boundary() -> None:
    code = VoronoiCode(16, (1.0,))
    direction = np.array([1.0, 0.3, -0.2, 0.1, 0.0, 0.7, -0.4, 0.2])
    far = code.encode_decoded(1000 * direction[None])[2][0]
    reach = np.max(far @ e8.roots().T)
    assert 0.9 * 16 < reach <= 16
    assert far @ direction / np.linalg.norm(far) / np.linalg.norm(direction) > 0.98


@pytest.mark.skipif(not IS_JIT, reason="a Monte Carlo estimate needs many blocks")
@pytest.mark.parametrize(
    ("q", "betas", "target"),
    [
        (16, tuned_betas(16, 4), 0.00419),
        (14, tuned_betas(14, 4), 0.00548),
        (16, tuned_betas(16, 8), 0.00351),
        (8, tuned_betas(8, 4), 0.0168),
    ],
)
def test_mean_squared_error_on_gaussian_blocks(
    q: int, betas: tuple[float, ...], target: float
) -> None:
    x = np.random.default_rng(5).normal(size=(200_000, 8)).astype(np.float32)
    errors = np.square(x - VoronoiCode(q, betas).encode_decoded(x)[2]).mean(axis=1)
    assert errors.std() / np.sqrt(len(x)) < 0.003 * target
    assert errors.mean() < 1.01 * target


@pytest.mark.skipif(not IS_JIT, reason="a Monte Carlo estimate needs many blocks")
@pytest.mark.parametrize(
    ("kind", "published"),
    [("weights", 0.006907), ("activations", 0.006442), ("keys", 0.006315), ("values", 0.00733)],
)
def test_published_scales_are_at_least_as_good_as_published(kind: str, published: float) -> None:
    # The published encoder gives up overloaded blocks, this one draws them inside.
    x = np.random.default_rng(6).normal(size=(100_000, 8)).astype(np.float32)
    values = VoronoiCode(14, published_betas(kind)).encode_decoded(x)[2]
    assert 0.8 * published < np.square(x - values).mean() < 1.01 * published


@given(arrays(np.uint8, st.tuples(st.integers(0, 40), st.just(8)), elements=st.integers(0, 15)))
def test_any_number_of_blocks_and_any_integer_dtype(digits: np.ndarray) -> None:
    code = VoronoiCode(16, (0.5,))
    index = np.zeros(len(digits), int)
    values = code.decode(digits, index)
    assert values.shape == digits.shape
    assert np.array_equal(code.decode(digits.astype(np.int64), index), values)
    assert np.array_equal(code.encode(values)[0], digits)


def test_shapes_are_kept(rng: np.random.Generator) -> None:
    code = VoronoiCode(16, (0.2, 0.3))
    digits, index = code.encode(rng.normal(size=(2, 3, 8)))
    assert digits.shape == (2, 3, 8)
    assert index.shape == (2, 3)
    assert code.decode(digits, index).shape == (2, 3, 8)
    assert code.encode(rng.normal(size=8))[1].shape == ()


def test_rate() -> None:
    assert VoronoiCode(16, (0.1, 0.2, 0.3, 0.4)).rate == 4.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, (1.0,)), "nesting ratio"),
        ((64, (1.0,)), "nesting ratio"),
        ((16.0, (1.0,)), "integer"),
        ((16, ()), "betas"),
        ((16, (0.0, 1.0)), "positive"),
        ((16, (1.0, 1.0)), "increasing"),
        ((16, (1.0, np.nan)), "betas"),
        ((16, (1.0, np.inf)), "betas"),
        ((16, (1.0,), "best"), "selection"),
    ],
)
def test_bad_codes_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VoronoiCode(*arguments)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    code = VoronoiCode(16, (0.5,))
    with pytest.raises(InputError, match=r"run from 9 to 16; they must be in 0\.\.15"):
        code.decode(np.arange(9, 17)[None], np.zeros(1, int))
    with pytest.raises(InputError, match="scale index"):
        code.decode(np.zeros((1, 8), int), np.ones(1, int))
    with pytest.raises(InputError, match="must be integers"):
        code.decode(np.zeros((1, 8)), np.zeros(1, int))
    with pytest.raises(InputError, match=r"\(\.\.\., 8\) and \(\.\.\.\)"):
        code.decode(np.zeros((2, 8), int), np.zeros(3, int))
    with pytest.raises(InputError, match="NaN"):
        code.encode(np.full((1, 8), np.nan))
    with pytest.raises(InputError, match="magnitude"):
        VoronoiCode(16, (1e-5,)).encode(np.full((1, 8), 1e5, np.float32))
