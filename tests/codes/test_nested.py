"""Nested codes of every cell: bijections, equality with the reference, errors, refusals."""

from itertools import product

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis.extra.numpy import arrays

from latticeq.codes.nested import CELLS, MAX_Q, NestedCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers.betas import mean_squared_error, published_betas, tuned_betas
from reference import nested as reference
from tests.lattice_data import blocks

SEEDS = st.integers(0, 2**32 - 1)
FULL = 1 if IS_JIT else 16
"""Without the JIT every so manieth of many cases is tried."""


@st.composite
def cells_and_ratios(draw: st.DrawFn) -> tuple[str, int]:
    cell = draw(st.sampled_from(CELLS))
    q = draw(st.integers(2, MAX_Q))
    return cell, q - q % 2 if cell in {"cubic", "d8"} else q


def random_digits(rng: np.random.Generator, cell: str, q: int, count: int = 64) -> np.ndarray:
    """Return digits of random codewords."""
    digits = rng.integers(0, q, (count, 8), dtype=np.uint8)
    if cell == "d8":  # the lowest bits of the last four follow from those of the first four
        low = digits[:, :4] & 1
        digits[:, 4:] = digits[:, 4:] & 0xFE | (low ^ np.bitwise_xor.reduce(low, 1)[:, None])
        digits[:, 0] += np.uint8(q) * rng.integers(0, 2, count, dtype=np.uint8)
    return digits


def every_digit_string(cell: str, q: int) -> np.ndarray:
    first = 2 * q if cell == "d8" else q
    digits = np.array([*product(range(first), *[range(q)] * 7)], np.uint8)
    if cell == "d8":
        low = digits & 1
        follow = low[:, :4] ^ np.bitwise_xor.reduce(low[:, :4], 1)[:, None]
        digits = digits[(low[:, 4:] == follow).all(1)]
    return digits[::FULL]


def value_digits(code: NestedCode, digits: np.ndarray) -> np.ndarray:
    return code.encode(code.points(digits) * (code.unit * code.betas[0]))[0]


@pytest.mark.parametrize(
    ("cell", "q", "count"),
    [
        ("voronoi", 2, 2**8),
        ("voronoi", 3, 3**8),
        ("nestquantm", 2, 2**8),
        ("nestquantm", 3, 3**8),
        ("cubic", 2, 2**8),
        ("cubic", 4, 4**8),
        ("d8", 2, 2**8 // 8),
        ("d8", 4, 4**8 // 8),
    ],
)
def test_every_codeword_of_a_small_code(cell: str, q: int, count: int) -> None:
    digits = every_digit_string(cell, q)
    assert len(digits) == -(-count // FULL)
    code = NestedCode(q, (1.0,), cell)
    points = code.points(digits)
    assert np.array_equal(points * code.unit, reference.CELLS[cell].decode(digits, q))
    assert len(np.unique(points, axis=0)) == len(digits)
    assert np.array_equal(value_digits(code, digits), digits)


@given(cells_and_ratios(), SEEDS)
def test_digits_survive_decoding_and_encoding(named: tuple[str, int], seed: int) -> None:
    cell, q = named
    digits = random_digits(np.random.default_rng(seed), cell, q)
    code = NestedCode(q, (0.3,), cell)
    for dtype in (np.float32, np.float64):
        values = code.decode(digits, np.zeros(64, np.uint8), dtype)
        assert values.dtype == dtype
        again, _, decoded = code.encode_decoded(values)
        assert np.array_equal(again, digits)
        assert np.array_equal(decoded, values)


@given(cells_and_ratios(), SEEDS)
def test_decoding_equals_the_reference(named: tuple[str, int], seed: int) -> None:
    cell, q = named
    digits = random_digits(np.random.default_rng(seed), cell, q)
    code = NestedCode(q, (1.0,), cell)
    points = code.points(digits).astype(int)
    assert np.array_equal(points * code.unit, reference.CELLS[cell].decode(digits, q))
    assert np.abs(points).max() <= 2 * q


@settings(max_examples=100)
@given(
    blocks(largest=100.0),
    cells_and_ratios(),
    st.sampled_from(["opt", "first"]),
    st.integers(1, 5),
)
@example(np.zeros((3, 8), np.float32), ("voronoi", 16), "opt", 4)
@example(np.full((1, 8), 1000.0, np.float32), ("voronoi", 2), "first", 2)
@example(np.full((1, 8), 1000.0, np.float32), ("nestquantm", 2), "opt", 1)
@example(np.full((1, 8), -1000.0, np.float32), ("d8", 2), "opt", 1)
@example(np.full((1, 8), 1000.0, np.float32), ("cubic", 2), "first", 2)
def test_encoding_equals_the_reference_bit_for_bit(
    x: np.ndarray, named: tuple[str, int], selection: str, k: int
) -> None:
    cell, q = named
    betas = tuple(np.geomspace(3.0, 6.5, k) / q)
    x = x / np.float32(8)
    digits, index, values = NestedCode(q, betas, cell, selection).encode_decoded(x)
    wanted = reference.encode_union(x, q, betas, selection, cell)
    assert np.array_equal(digits, wanted[0])
    assert np.array_equal(index, wanted[1])
    assert np.array_equal(values, wanted[2])
    assert values.dtype == np.float32


@given(blocks(), cells_and_ratios(), st.sampled_from(["opt", "first"]))
def test_what_encoding_promises_is_what_decoding_gives(
    x: np.ndarray, named: tuple[str, int], selection: str
) -> None:
    cell, q = named
    betas = tuple(np.float32([3.0 / q, 4.5 / q, 7.0 / q]).tolist())
    code = NestedCode(q, betas, cell, selection)
    digits, index, values = code.encode_decoded(x)
    assert np.array_equal(code.decode(digits, index), values)
    assert np.array_equal(code.encode(x)[0], digits)
    assert np.array_equal(code.encode(x)[1], index)
    wide = code.encode_decoded(x.astype(np.float64))
    assert np.array_equal(wide[0], digits)
    assert wide[2].dtype == np.float64
    np.testing.assert_allclose(wide[2], values, rtol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@settings(max_examples=25)
@given(x=blocks(largest=8.0), power=st.integers(-20, 16))
def test_scaling_by_powers_of_two_changes_no_digit(cell: str, x: np.ndarray, power: int) -> None:
    betas = (0.25, 0.375, 0.5)
    scaled = NestedCode(12, tuple(beta * 2.0**power for beta in betas), cell)
    digits, index, values = NestedCode(12, betas, cell).encode_decoded(x)
    again = scaled.encode_decoded(x * np.float32(2.0**power))
    assert np.array_equal(again[0], digits)
    assert np.array_equal(again[1], index)
    assert np.array_equal(again[2], values * np.float32(2.0**power))


@pytest.mark.parametrize("cell", CELLS)
def test_opt_beats_first_and_more_scales_beat_fewer(cell: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4000 // FULL, 8)).astype(np.float32)
    betas = tuned_betas(14, 4, cell)

    def errors(betas: tuple[float, ...], selection: str = "opt") -> np.ndarray:
        code = NestedCode(14, betas, cell, selection)
        return np.asarray(np.square(x - code.encode_decoded(x)[2]).sum(axis=1))

    opt, first = errors(betas), errors(betas, "first")
    assert (opt <= first).all()
    assert opt.mean() < first.mean()
    assert (opt <= errors(betas[1:])).all()


@pytest.mark.parametrize("cell", CELLS)
def test_blocks_far_away_are_drawn_to_the_end_of_the_cell(
    cell: str, rng: np.random.Generator
) -> None:
    code = NestedCode(16, (1.0,), cell)
    for distance in (1e3, 1e5):
        far = rng.normal(size=(192 // FULL, 8)) * distance
        found = code.encode_decoded(far)[2]
        lengths = np.linalg.norm(found, axis=1)
        cosine = (far * found).sum(axis=1) / np.linalg.norm(far, axis=1) / lengths
        assert lengths.min() > 0.4 * 16
        assert cosine.min() > 0.2
        assert cosine.mean() > 0.7


TARGETS = [
    ("voronoi", 16, 4, 0.00420),
    ("voronoi", 16, 8, 0.00351),
    ("voronoi", 14, 4, 0.00548),
    ("voronoi", 8, 4, 0.0166),
    ("nestquantm", 16, 4, 0.0052),
    ("cubic", 16, 4, 0.00513),
    ("cubic", 16, 8, 0.00430),
    ("d8", 16, 8, 0.0063),
]
"""Mean squared errors on N(0, 1) that the codes must reach within 1 %."""


@pytest.mark.skipif(not IS_JIT, reason="a Monte Carlo estimate needs many blocks")
@pytest.mark.parametrize(("cell", "q", "k", "target"), TARGETS)
def test_mean_squared_error_on_gaussian_blocks(cell: str, q: int, k: int, target: float) -> None:
    x = np.random.default_rng(5).normal(size=(200_000, 8)).astype(np.float32)
    code = NestedCode(q, tuned_betas(q, k, cell), cell)
    digits, index = code.encode(x)
    errors = np.square(x - code.decode(digits, index)).mean(axis=1)
    assert errors.std() / np.sqrt(len(x)) < 0.003 * target
    assert errors.mean() < 1.01 * target


@pytest.mark.skipif(not IS_JIT, reason="a Monte Carlo estimate needs many blocks")
@pytest.mark.parametrize(
    ("kind", "published"),
    [("weights", 0.00691), ("activations", 0.006442), ("keys", 0.006315), ("values", 0.00733)],
)
def test_published_scales_are_at_least_as_good_as_published(kind: str, published: float) -> None:
    # The published encoder gives up overloaded blocks, this one draws them inside.
    x = np.random.default_rng(6).normal(size=(100_000, 8)).astype(np.float32)
    found = mean_squared_error(NestedCode(14, published_betas(kind)), x)
    assert 0.8 * published < found < 1.01 * published


@given(arrays(np.uint8, st.tuples(st.integers(0, 40), st.just(8)), elements=st.integers(0, 15)))
def test_any_number_of_blocks_and_any_integer_dtype(digits: np.ndarray) -> None:
    code = NestedCode(16, (0.5,))
    index = np.zeros(len(digits), int)
    values = code.decode(digits, index)
    assert values.shape == digits.shape
    assert np.array_equal(code.decode(digits.astype(np.int64), index), values)
    assert np.array_equal(code.encode(values)[0], digits)


def test_shapes_are_kept_and_blocks_not_changed(rng: np.random.Generator) -> None:
    code = NestedCode(16, (0.2, 0.3))
    digits, index = code.encode(rng.normal(size=(2, 3, 8)))
    assert digits.shape == (2, 3, 8)
    assert index.shape == (2, 3)
    assert code.decode(digits, index).shape == (2, 3, 8)
    assert code.encode(rng.normal(size=8))[1].shape == ()
    x = rng.normal(size=(32, 8)).astype(np.float32)
    kept = x.copy()
    code.encode(x)
    assert np.array_equal(x, kept)


def test_rate() -> None:
    betas = (0.1, 0.2, 0.3, 0.4)
    assert NestedCode(16, betas).rate == 4.25
    assert NestedCode(16, (*betas, 0.5, 0.6, 0.7, 0.8), "d8").rate == 4.0


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
        ((16, (1.0,), "round"), "cell is 'round'; it must be one of voronoi, nestquantm"),
        ((15, (1.0,), "cubic"), "q is 15; the cell 'cubic' needs an even"),
        ((15, (1.0,), "d8"), "even nesting ratio"),
        ((16, (1.0,), "voronoi", "best"), "selection"),
    ],
)
def test_bad_codes_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NestedCode(*arguments)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    code = NestedCode(16, (0.5,))
    with pytest.raises(InputError, match=r"run from 9 to 16; they must be in 0\.\.15"):
        code.decode(np.arange(9, 17)[None], np.zeros(1, int))
    with pytest.raises(InputError, match="digits"):
        code.decode(np.array([[16, *[0] * 7]]), np.zeros(1, int))
    with pytest.raises(InputError, match="scale index"):
        code.decode(np.zeros((1, 8), int), np.ones(1, int))
    with pytest.raises(InputError, match="must be integers"):
        code.decode(np.zeros((1, 8)), np.zeros(1, int))
    with pytest.raises(InputError, match=r"\(\.\.\., 8\) and \(\.\.\.\)"):
        code.decode(np.zeros((2, 8), int), np.zeros(3, int))
    with pytest.raises(InputError, match="NaN"):
        code.encode(np.full((1, 8), np.nan))
    with pytest.raises(InputError, match="magnitude"):
        NestedCode(16, (1e-5,)).encode(np.full((1, 8), 1e5, np.float32))
    with pytest.raises(InputError, match="word of the Hamming code"):
        NestedCode(16, (0.5,), "d8").points(np.array([[1, 0, 0, 0, 0, 0, 0, 0]]))
    with pytest.raises(InputError, match=r"run from 32 to 32; they must be in 0\.\.31"):
        NestedCode(16, (0.5,), "d8").points(np.array([[32, 0, 0, 0, 0, 0, 0, 0]]))
