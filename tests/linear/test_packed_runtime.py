"""Runtime "packed": exact integer products, and no error but that of rounding to int8."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.nested import CELLS
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.linear.grid import GridLinear
from latticeq.linear.int8_tiles import FOURS, MAX_COLUMNS, round_tile
from latticeq.linear.nest import NestLinear
from latticeq.linear.packed import make_packed_linear
from latticeq.linear.rounded import RoundedLinear
from latticeq.linear.tiled import TiledLinear
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.grid_tensor import GridTensor
from latticeq.quantizers.scalar import Int8
from latticeq.storage.checkpoint import packed
from latticeq.transforms.rotation import Rotation
from reference import int8 as reference
from tests.linear.linears import (
    CODES,
    GRIDS,
    ROUNDING,
    each_behind_more,
    grid_of,
    int8_linear,
    int8_matrix,
    integer_grid,
    integer_tokens,
    linear_of,
    quiet_numpy,
    rounded_rows_of,
    tiles_of,
    with_threads,
)
from tests.storage.packed_models import integer_nest, random_grid, random_nest

FEW = 30 if IS_JIT else 5
ROWS, SEEDS = st.integers(1, 70), st.integers(0, 2**32 - 1)
TOKENS = st.integers(1, 18)

HALF = 0.5001
"""How far rounding moves a number, in units of the scale: x · (1 / a) is rounded before it is."""


def assert_exact(linear: TiledLinear | RoundedLinear, matrix: np.ndarray, x: np.ndarray) -> None:
    """Check integer products of integer tokens under various scales, together and one by one."""
    wanted = x @ matrix.T
    assert np.abs(x).max() * np.abs(matrix).sum(axis=1).max() < 2**24  # float32 holds every sum
    scales = np.exp2(np.arange(len(x)) % 5)[:, None]
    tokens, wanted = (x * scales).astype(np.float32), wanted * scales
    assert np.array_equal(linear(tokens), wanted)
    for token, y in zip(tokens, wanted, strict=True):
        assert np.array_equal(linear(token[None])[0], y)


@settings(max_examples=3 * FEW)
@given(
    m=ROWS,
    t=TOKENS,
    blocks=st.integers(1, 12),
    cell=st.sampled_from(CELLS),
    half_q=st.integers(1, 20),
    k=st.integers(1, 8),
    seed=SEEDS,
)
def test_products_of_codewords_are_exact(
    m: int, t: int, blocks: int, cell: str, half_q: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q = 2 * half_q + (seed % 2 if cell in {"voronoi", "nestquantm"} else 0)
    tensor, matrix = integer_nest(rng, m, 8 * blocks, q, k, cell)
    assert_exact(linear_of(tensor), matrix, integer_tokens(rng, t, 8 * blocks))


@settings(max_examples=FEW)
@given(m=ROWS, t=TOKENS, fours=st.integers(1, 60), group=st.integers(1, 70), seed=SEEDS)
def test_products_of_grids_are_exact(m: int, t: int, fours: int, group: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensor, matrix = integer_grid(rng, m, 4 * fours, min(group, 4 * fours))
    x = integer_tokens(rng, t, 4 * fours)
    linear = linear_of(tensor)
    assert_exact(linear, matrix, x)
    assert_exact(RoundedLinear(linear), matrix, x)


@settings(max_examples=FEW)
@given(m=ROWS, t=TOKENS, fours=st.integers(1, 250), seed=SEEDS)
def test_products_of_int8_rows_are_exact(m: int, t: int, fours: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = integer_tokens(rng, m, 4 * fours)
    x = integer_tokens(rng, t, 4 * fours)
    linear = linear_of(int8_matrix(values))
    assert_exact(linear, values, x)
    assert_exact(RoundedLinear(linear), values, x)


@pytest.mark.parametrize("m", [432, 440] if IS_JIT else [64])
def test_tasks_of_several_sweeps_and_steps_are_exact(m: int, rng: np.random.Generator) -> None:
    n = 4 * (2 * FOURS + 3) if IS_JIT else 4 * (FOURS + 1)
    values, x = integer_tokens(rng, m, n), integer_tokens(rng, 11, n)
    product = RoundedLinear(linear_of(int8_matrix(values)))
    wanted = (x @ values.T).astype(np.float32).tobytes()
    for count in (1, 2):
        assert with_threads(count, lambda: product(x.astype(np.float32)).tobytes()) == wanted


@pytest.mark.parametrize(("q", "n"), [(4, 1032), (3, 2064)])
def test_sweeps_and_panels_are_put_together(q: int, n: int) -> None:
    rng = np.random.default_rng([q, n])
    rows, tokens = (86, 270) if IS_JIT else (18, 9)
    tensor, matrix = integer_nest(rng, rows, n, q, 2, "voronoi")
    x = integer_tokens(rng, tokens, n) * 4  # under a scale of four
    linear = linear_of(tensor)
    assert np.array_equal(linear(x.astype(np.float32)), x @ matrix.T)
    assert np.array_equal(by_ones(linear, x[:3].astype(np.float32)), x[:3] @ matrix.T)


def test_the_longest_rows_have_exact_sums() -> None:
    values = np.full((3, 2**16), 127)
    values[1] = -127
    values[2, ::2] = -127
    linear = linear_of(int8_matrix(values))
    x = np.full((2, 2**16), 127, np.float32)
    x[1] = -127
    sums = np.array([2**16, -(2**16), 0]) * 127**2
    for f in (linear, RoundedLinear(linear)):
        for y in (f(x), by_ones(f, x)):
            assert np.array_equal(y, np.stack([sums, -sums]).astype(np.float32))


@settings(max_examples=2 * FEW)
@given(
    m=ROWS,
    blocks=st.integers(1, 6),
    cell=st.sampled_from(CELLS),
    half_q=st.integers(1, 31),
    k=st.integers(1, 8),
)
def test_codewords_round_as_their_float_tiles(
    m: int, blocks: int, cell: str, half_q: int, k: int
) -> None:
    linear = linear_of(random_nest(m, 8 * blocks, 2 * half_q, k, cell=cell))
    for (_, words, scale), (_, tile) in zip(
        linear.rounded_tiles(), linear.float_tiles(), strict=True
    ):
        wanted = np.empty_like(words), np.empty_like(scale)
        round_tile(tile, *wanted)
        assert (words.tobytes(), scale.tobytes()) == (wanted[0].tobytes(), wanted[1].tobytes())
    values, scales = rounded_rows_of(linear)
    integers, by_rows = reference.round_rows(tiles_of(linear))
    assert np.array_equal(values, integers)
    assert np.array_equal(scales[:m], by_rows)
    assert (scales[m:] == 1).all()


@settings(max_examples=FEW)
@given(m=ROWS, t=TOKENS, fours=st.integers(1, 20), seed=SEEDS)
def test_products_of_tiles_are_the_reference_bit_for_bit(
    m: int, t: int, fours: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(t, 4 * fours)) * np.exp2(rng.integers(-9, 9, (t, 1)))).astype(np.float32)
    x[rng.random(t) < 0.1] = 0
    tensor = random_grid(m, 4 * fours, "int4", 3, symmetric=False)
    grid = linear_of(tensor)
    wanted = reference.rounded_products(tensor.rotated(), tensor.rotation.apply(x))
    for linear in (grid, RoundedLinear(grid)):
        assert np.array_equal(linear(x), wanted)
        assert np.array_equal(np.concatenate([linear(token[None]) for token in x]), wanted)


def tokens_of(tensor: QuantizedTensor, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return tokens, and as float64 what rotation and then what int8 makes of them."""
    x = rng.normal(size=(11, tensor.shape[1])).astype(np.float32)
    x[3] *= 1000
    rotated = tensor.rotation.apply(x)
    integers, scales = zip(*map(reference.quantize_activations, rotated), strict=True)
    step = np.array(scales, np.float64)[:, None]
    return x, rotated.astype(np.float64), step, step * np.array(integers, np.float64)


def by_ones(linear: TiledLinear | RoundedLinear, x: np.ndarray) -> np.ndarray:
    """Return the products of tokens one by one."""
    return np.concatenate([linear(token[None]) for token in x])


@pytest.mark.parametrize(("q", "k", "cell", "seed"), CODES)
def test_codewords_cost_the_rounding_of_activations_alone(
    q: int, k: int, cell: str, seed: int | None, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k, seed, cell=cell)
    linear, matrix = linear_of(tensor), tensor.rotated().astype(np.float64)
    x, rotated, step, rounded = tokens_of(tensor, rng)
    # A block's dot is exact; a block rounds its scale, the product and the sum, once each.
    float_error = (48 / 8 + 8) * ROUNDING * (np.abs(rounded) @ np.abs(matrix).T)
    allowed = HALF * step * np.abs(matrix).sum(axis=1) + float_error
    for y in (linear(x), by_ones(linear, x)):
        assert (np.abs(y - rounded @ matrix.T) <= float_error).all()
        assert (np.abs(y - rotated @ matrix.T) <= allowed).all()
    assert (np.abs(linear(x) - by_ones(linear, x)) <= 2 * float_error).all()


def assert_rounds_both(linear: TiledLinear | RoundedLinear, tensor: QuantizedTensor) -> None:
    """Check what rounding both sides to int8 costs: a/2 of ‖w‖₁, b/2 of ‖x‖₁, and N a b / 4."""
    x, rotated, step, _ = tokens_of(tensor, np.random.default_rng(5))
    matrix = tensor.rotated().astype(np.float64)
    unit = reference.round_rows(tensor.rotated())[1].astype(np.float64)
    sizes = np.abs(rotated) @ np.abs(matrix).T
    allowed = HALF * step * np.abs(matrix).sum(axis=1)
    allowed = allowed + HALF * unit * np.abs(rotated).sum(axis=1, keepdims=True)
    allowed = allowed + HALF**2 * matrix.shape[1] * step * unit + 8 * ROUNDING * sizes
    assert (np.abs(linear(x) - rotated @ matrix.T) <= allowed).all()
    assert np.array_equal(linear(x), by_ones(linear, x))


@pytest.mark.parametrize(("kind", "group", "symmetric", "block"), GRIDS)
def test_grids_cost_the_rounding_of_both_sides(
    kind: str, group: int, symmetric: bool, block: int | None
) -> None:
    tensor = grid_of(kind, group, symmetric, block)
    assert_rounds_both(linear_of(tensor), tensor)
    assert_rounds_both(RoundedLinear(linear_of(tensor)), tensor)


@pytest.mark.parametrize(("q", "k", "cell", "seed"), CODES)
def test_rounded_codewords_cost_the_rounding_of_both_sides(
    q: int, k: int, cell: str, seed: int | None
) -> None:
    tensor = random_nest(37, 48, q, k, seed, cell=cell)
    linear = linear_of(tensor)
    assert isinstance(linear, NestLinear)
    assert_rounds_both(RoundedLinear(linear), tensor)
    assert_rounds_both(RoundedLinear(linear_of(tensor, None, "float32")), tensor)


@settings(max_examples=FEW)
@given(fours=st.integers(1, 40), t=TOKENS, larger=st.sampled_from([1, 10, 100, 1e4]), seed=SEEDS)
def test_two_parts_of_a_token_hold_sixteen_bits(
    fours: int, t: int, larger: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensor = Int8().quantize(rng.normal(size=(33, 4 * fours)))
    x = rng.normal(size=(t, 4 * fours)).astype(np.float32)
    x[:, rng.integers(4 * fours)] *= larger
    linear, matrix = linear_of(tensor), tensor.rotated().astype(np.float64)
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    sizes = np.abs(x).astype(np.float64) @ np.abs(matrix).T
    # What the first part leaves is a/2 at most; a' is a 127th of that, and its half is left.
    allowed = 1.001 * largest / (4 * 127**2) * np.abs(matrix).sum(axis=1) + 8 * ROUNDING * sizes
    together, alone = linear(x), by_ones(linear, x)
    for y in (together, alone):
        assert (np.abs(y - x.astype(np.float64) @ matrix.T) <= allowed).all()
    assert (np.abs(together - alone) <= 8 * ROUNDING * sizes + 1e-30).all()


@pytest.mark.parametrize(("channels", "allowed"), [(10, 1e-4), (1, 2.5e-4)])
def test_channels_that_stand_out_cost_the_head_little(
    channels: int, allowed: float, rng: np.random.Generator
) -> None:
    # Uniform errors of max|x| / (4 · 127²) make sqrt(N / 3) max|x| / (4 · 127² ‖x‖) of a product.
    weights = rng.normal(size=(200, 576))
    x = rng.normal(size=(20, 576)).astype(np.float32)
    x[:, rng.choice(576, channels, replace=False)] = rng.choice([-100, 100], (20, channels))
    wanted = x.astype(np.float64) @ Int8().quantize(weights).dequantize().T
    linear = int8_linear(weights)
    for y in (linear(x), by_ones(linear, x)):
        assert np.linalg.norm(y - wanted) < allowed * np.linalg.norm(wanted)


@pytest.mark.parametrize("count", [1, 19])
def test_threads_change_nothing(count: int, rng: np.random.Generator) -> None:
    linears = [*each_behind_more(rng), linear_of(random_nest(150, 64, 16, 4))]
    x = rng.normal(size=(count, 64)).astype(np.float32)
    one, two = (
        with_threads(threads, lambda: b"".join(linear(x).tobytes() for linear in linears))
        for threads in (1, 2)
    )
    assert one == two


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_tokens_that_are_no_numbers_stay_visible_and_alone(
    bad: float, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(11, 64)).astype(np.float32)
    spoilt, others = x.copy(), np.arange(11) != 4
    spoilt[4, 5] = bad
    for linear in each_behind_more(rng):
        with quiet_numpy():
            together, alone = linear(spoilt), linear(spoilt[4:5])
        for found in (together[4], alone[0]):
            assert not np.isfinite(found).any()
            assert np.isnan(found).all() or np.isinf(bad)
        assert np.array_equal(together[others], linear(x)[others])


def test_zeros_and_bias(rng: np.random.Generator) -> None:
    bias = rng.normal(size=20).astype(np.float32)
    x = rng.normal(size=(9, 64)).astype(np.float32)
    x[5] = 0
    state = rng.bit_generator.state
    plain = each_behind_more(rng)
    rng.bit_generator.state = state
    for linear, without in zip(each_behind_more(rng, bias), plain, strict=True):
        for tokens in (x, x[:1], x[5:6]):
            assert np.array_equal(linear(tokens), without(tokens) + bias)
        assert np.array_equal(linear(x)[5], bias)
        assert np.array_equal(linear(x[5:6])[0], bias)
        if isinstance(linear, TiledLinear):
            assert np.array_equal(linear.multiply_rotated(np.zeros((2, 64), "f4")), [bias] * 2)


def test_rows_of_zeros_give_zeros(rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, 64)).astype(np.float32)
    values = integer_tokens(rng, 20, 64)
    values[10] = 0
    tensors = [  # of which row 10 is zero
        random_nest(20, 64, 16, 4),
        random_nest(20, 64, 20, 4),
        random_nest(20, 64, 16, 8, cell="d8"),
        random_grid(20, 64, "nf4", 16),
        int8_matrix(values),
    ]
    for tensor in tensors:
        for linear in (linear_of(tensor), linear_of(tensor, None, "float32")):
            for y in (linear(x), linear(x[:1]), RoundedLinear(linear)(x)):
                assert not y[:, 10].any()
                assert y[:, :10].all()


@pytest.mark.parametrize("n", [4, 8, 12, 20, 28, 36, 40, 72])
def test_widths_of_no_whole_sixteens(n: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(9, n)).astype(np.float32)
    grid = random_grid(18, n, "int4", 5, rotation=Rotation(n, None, "none"))
    assert_rounds_both(linear_of(grid), grid)
    wide = Int8().quantize(rng.normal(size=(18, n)))
    bound = np.abs(x).max() * np.abs(wide.rotated()).sum(axis=1) / 60000
    for y in (linear_of(wide)(x), by_ones(linear_of(wide), x)):
        assert (np.abs(y - x @ wide.rotated().T) <= bound).all()


def test_no_tokens_have_no_products(rng: np.random.Generator) -> None:
    for linear in each_behind_more(rng):
        assert linear(np.empty((0, 64), np.float32)).shape == (0, 20)


def test_rows_too_wide_for_integer_sums_are_multiplied_in_float32() -> None:
    n = MAX_COLUMNS + 32
    codes = np.full((16, n), 15, np.uint8)  # the largest of a row: 127 once rounded
    scales = np.ones((16, n // 32), np.float16)
    tensor = GridTensor((16, n), "int4", 32, Rotation(n, None, "none"), codes, scales)
    linear = linear_of(tensor)
    x = np.ones((3, n), np.float32)
    assert np.array_equal(linear(x), np.full((3, 16), 7 * n))
    assert isinstance(make_packed_linear(packed(tensor), None, "int8"), GridLinear)
    with pytest.raises(InputError, match=f"{n} columns; int8 rows are exact in 32 bits up to"):
        RoundedLinear(linear)
