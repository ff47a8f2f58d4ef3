"""Packed linears: exact integer products, the dequantized matrix's bits, and no surprises."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.nested import CELLS
from latticeq.errors import InputError
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.linear.base import Linear, Table, apply_shared
from latticeq.linear.int8_kernels import quantize_row
from latticeq.linear.packed import GridLinear, Int8Linear, NestLinear, make_packed_linear
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.scalar import Int8, Int8Tensor
from latticeq.storage.checkpoint import packed
from latticeq.transforms.rotation import Rotation
from reference import int8 as reference
from tests.storage.packed_models import integer_nest, random_grid, random_nest

FEW = 30 if IS_JIT else 5
ROWS, BLOCKS, SEEDS = st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1)

CODES = [
    (16, 4, "voronoi", None),
    (14, 3, "voronoi", 5),
    (24, 8, "voronoi", None),
    (3, 1, "voronoi", 1),
    (16, 4, "nestquantm", None),
    (14, 4, "nestquantm", None),
    (31, 2, "nestquantm", None),
    (16, 8, "cubic", None),
    (6, 4, "cubic", 2),
    (62, 4, "cubic", None),
    (16, 8, "d8", None),
    (10, 5, "d8", None),
    (8, 8, "d8", None),
    (2, 1, "d8", None),
    (32, 8, "d8", 7),
]

GRIDS = [
    ("int4", 48, True, None),
    ("int4", 20, False, None),
    ("int4", 1, True, 12),
    ("nf4", 64, True, None),
    ("nf4", 32, True, None),
    ("mxfp4", 32, True, 32),
    ("nvfp4", 16, True, 16),
]


def linear_of(tensor: QuantizedTensor, bias: np.ndarray | None = None) -> Linear:
    """Return the linear of a quantized matrix, through its bytes."""
    return make_packed_linear(packed(tensor), bias)


def nest_linear(*arguments: object, **more: object) -> Linear:
    """Return the linear of a random matrix of codewords."""
    return linear_of(random_nest(*arguments, **more))  # type: ignore[arg-type]


def int8_linear(weights: np.ndarray, bias: np.ndarray | None = None) -> Int8Linear:
    """Return the linear of a matrix rounded to int8."""
    linear = linear_of(Int8().quantize(weights), bias)
    assert isinstance(linear, Int8Linear)
    return linear


def integer_token(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return integers that are their own int8 under a scale of one: the largest is 127."""
    x = rng.choice([-127, 127, 0, 1, int(rng.integers(-127, 128))], n)
    x[int(rng.integers(n))] = 127
    return x


@settings(max_examples=3 * FEW)
@given(
    m=ROWS,
    blocks=BLOCKS,
    cell=st.sampled_from(CELLS),
    half_q=st.integers(1, 20),
    k=st.integers(1, 16),
    seed=SEEDS,
)
def test_integer_products_are_exact(
    m: int, blocks: int, cell: str, half_q: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q = 2 * half_q + (seed % 2 if cell in {"voronoi", "nestquantm"} else 0)
    tensor, matrix = integer_nest(rng, m, 8 * blocks, q, min(k, 8) if cell == "d8" else k, cell)
    x = integer_token(rng, 8 * blocks)
    linear = linear_of(tensor)
    # 16 · 8 · 2q · 127 a block, twelve of them: below 2**24, so float32 holds every sum.
    assert np.array_equal(linear(x[None].astype(np.float32))[0], matrix @ x)
    many = linear(np.stack([x, -x]).astype(np.float32))
    assert np.array_equal(many, np.stack([matrix @ x, -(matrix @ x)]))


@settings(max_examples=FEW)
@given(m=ROWS, fours=st.integers(1, 250), seed=SEEDS)
def test_int8_products_are_exact(m: int, fours: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([-127, 127, 5, -1], (m, 4 * fours)).astype(np.int8)
    linear = linear_of(Int8Tensor(values.shape, values, np.ones(m, np.float16)))
    x = integer_token(rng, 4 * fours)
    wanted = reference.integer_products(values, x.astype(np.int8))  # at most 127² · 1000 < 2**24
    assert np.array_equal(linear(x[None].astype(np.float32))[0], wanted)
    assert isinstance(linear, Table)
    assert np.array_equal(linear.rows(np.arange(m)), values)


def tiles_of(linear: Linear) -> np.ndarray:
    """Return the matrix that a linear decodes, tile after tile."""
    tiles = [(rows, tile.copy()) for rows, tile in linear._tiles()]  # type: ignore[attr-defined]
    assert [rows.start for rows, _ in tiles] == [0]
    return np.concatenate([tile for _, tile in tiles], axis=1).T


@settings(max_examples=3 * FEW)
@given(
    m=ROWS,
    blocks=st.integers(1, 6),
    cell=st.sampled_from(CELLS),
    half_q=st.integers(1, 31),
    k=st.integers(1, 16),
)
def test_tiles_are_the_dequantized_matrix_bit_for_bit(
    m: int, blocks: int, cell: str, half_q: int, k: int
) -> None:
    q = 2 * half_q + (m % 2 if cell in {"voronoi", "nestquantm"} else 0)
    tensor = random_nest(m, 8 * blocks, q, min(k, 8) if cell == "d8" else k, cell=cell)
    assert tiles_of(linear_of(tensor)).tobytes() == tensor.rotated().tobytes()


@pytest.mark.parametrize("q", [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_mixed_radix_changes_nothing(q: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 56)).astype(np.float32)
    plain, radix = (nest_linear(20, 56, q, 3, packing=packing) for packing in ("digits", "radix"))
    assert radix.nbytes < plain.nbytes
    for count in (1, 3):
        assert np.array_equal(plain(x[:count]), radix(x[:count]))


@settings(max_examples=FEW)
@given(
    m=ROWS,
    n=st.integers(1, 70),
    kind=st.sampled_from(["int4", "asymmetric int4", "nf4", "mxfp4", "nvfp4"]),
    group=st.integers(1, 70),
)
def test_tiles_of_grids_are_the_dequantized_matrix_bit_for_bit(
    m: int, n: int, kind: str, group: int
) -> None:
    size = {"mxfp4": 32, "nvfp4": 16}.get(kind)
    n, group = (n + -n % size, size) if size else (n, min(n, group))
    tensor = random_grid(
        m, n, kind.removeprefix("asymmetric "), group, symmetric=kind != "asymmetric int4"
    )
    assert tiles_of(linear_of(tensor)).tobytes() == tensor.rotated().tobytes()


def test_int8_tiles_and_rows_are_the_dequantized_matrix(rng: np.random.Generator) -> None:
    weights = rng.normal(size=(35, 20))
    dequantized = Int8().quantize(weights).dequantize()
    linear = int8_linear(weights)
    assert np.array_equal(tiles_of(linear), dequantized)
    ids = rng.integers(0, 35, 50)
    assert np.array_equal(linear.rows(ids), dequantized[ids])


def assert_multiplies_as(linear: Linear, tensor: QuantizedTensor, x: np.ndarray) -> None:
    """Check products in float32 against float64 ones of the dequantized matrix."""
    wanted = x.astype(np.float64) @ tensor.dequantize().T
    sizes = np.abs(x).astype(np.float64) @ np.abs(tensor.dequantize()).T
    bound = 1e-5 * sizes.max(axis=0) + 1e-30
    assert (np.abs(linear(x) - wanted) <= bound).all()
    rotated = linear.rotation.apply(x)  # type: ignore[attr-defined]
    for rows in (slice(None), slice(1)):
        found = linear.multiply_rotated(rotated[rows])  # type: ignore[attr-defined]
        assert (np.abs(found - wanted[rows]) <= bound).all()


@pytest.mark.parametrize(("q", "k", "cell", "seed"), CODES)
def test_many_tokens_multiply_as_the_dequantized_matrix(
    q: int, k: int, cell: str, seed: int | None, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k, seed, cell=cell)
    assert_multiplies_as(linear_of(tensor), tensor, rng.normal(size=(5, 48)).astype(np.float32))


@pytest.mark.parametrize(("kind", "group", "symmetric", "block"), GRIDS)
def test_grids_multiply_as_the_dequantized_matrix(
    kind: str, group: int, symmetric: bool, block: int | None, rng: np.random.Generator
) -> None:
    n = 96 if kind == "mxfp4" else 48
    tensor = random_grid(37, n, kind, group, symmetric, Rotation(n, 4, block=block))
    linear = linear_of(tensor)
    assert linear.dtype == kind
    for count in (1, 5):
        assert_multiplies_as(linear, tensor, rng.normal(size=(count, n)).astype(np.float32))


@pytest.mark.parametrize(("q", "k", "cell", "seed"), CODES)
def test_one_token_is_within_the_rounding_of_its_activations(
    q: int, k: int, cell: str, seed: int | None, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k, seed, cell=cell)
    linear, x = linear_of(tensor), rng.normal(size=(1, 48)).astype(np.float32)
    rotated = tensor.rotation.apply(x)
    step = np.abs(rotated).max() / 127
    bound = (0.5 * step + 1e-5) * np.abs(tensor.rotated()).sum(axis=1)
    assert (np.abs(linear(x)[0] - tensor.rotated() @ rotated[0]) <= bound).all()


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40))
def test_activations_round_as_the_reference(entries: list[float]) -> None:
    x = np.array(entries, np.float32)
    x[np.abs(x) < 1e-6] = 0
    values = np.empty(len(x), np.int8)
    scale = quantize_row(x, values)
    wanted, wanted_scale = reference.quantize_activations(x)
    assert np.array_equal(values, wanted)
    assert np.float32(scale) == wanted_scale
    assert (np.abs(values * np.float64(scale) - x) <= 0.5001 * scale).all()


def test_several_matrices_at_once_give_what_each_gives(rng: np.random.Generator) -> None:
    same = [nest_linear(m, 48, 16, k) for m, k in ((37, 4), (16, 1), (5, 8), (48, 2))]
    words = [nest_linear(m, 48, 16, 8, cell="d8") for m in (37, 16)]
    grids = [linear_of(random_grid(m, 48, "int4", 16)) for m in (37, 5)]
    turned = linear_of(random_grid(20, 48, "nf4", 16, rotation=Rotation(48, 3)))
    other = [
        nest_linear(20, 48, q, 4, seed, cell=cell)
        for q, seed, cell in (
            (14, None, "voronoi"), (16, 3, "voronoi"), (20, None, "voronoi"), (16, None, "cubic")
        )
    ]  # fmt: skip
    int8 = [int8_linear(rng.normal(size=(3, 48))) for _ in range(2)]
    for group in (
        same, other, same + other, words, words + same, grids, [*grids, turned], int8,
        [*same[:2], int8[0], grids[0]],
    ):  # fmt: skip
        for count in (1, 3):
            x = rng.normal(size=(count, 48)).astype(np.float32)
            found = apply_shared(group, x)
            assert all(np.array_equal(y, f(x)) for y, f in zip(found, group, strict=True))


def test_linears_may_come_and_go(rng: np.random.Generator) -> None:
    # What a linear remembers of its neighbours must not outlive them.
    first = nest_linear(16, 16, 16, 2)
    x = rng.normal(size=(1, 16)).astype(np.float32)
    for m in range(16, 56):
        second = nest_linear(m, 16, 16, 2)
        assert np.array_equal(apply_shared([first, second], x)[1], second(x))
        del second


def one_of_each(rng: np.random.Generator, bias: np.ndarray | None = None) -> list[Linear]:
    """Return a linear of each class and of each way to decode, 20 x 64."""
    return [
        linear_of(random_nest(20, 64, 16, 4), bias),
        linear_of(random_nest(20, 64, 20, 4), bias),
        linear_of(random_nest(20, 64, 16, 8, cell="d8"), bias),
        linear_of(random_nest(20, 64, 16, 8, cell="cubic"), bias),
        linear_of(random_grid(20, 64, "int4", 64), bias),
        int8_linear(rng.normal(size=(20, 64)), bias),
    ]


def test_threads_change_nothing(rng: np.random.Generator) -> None:
    linears = one_of_each(rng)
    x = rng.normal(size=(1, 64)).astype(np.float32)
    before = threads()
    results = set()
    try:
        for count in {1, min(2, before)}:
            set_threads(count)
            results.add(b"".join(linear(x).tobytes() for linear in linears))
    finally:
        set_threads(before)
    assert len(results) == 1


def test_zero_and_bias(rng: np.random.Generator) -> None:
    bias = rng.normal(size=20).astype(np.float32)
    for linear in one_of_each(rng, bias):
        for count in (1, 2):
            zero = np.zeros((count, 64), np.float32)
            assert np.array_equal(linear(zero), [bias] * count)
            found = linear.multiply_rotated(zero)  # type: ignore[attr-defined]
            assert np.array_equal(found, [bias] * count)


def test_protocols() -> None:
    tensor = random_nest(20, 24, 16, 4)
    linear, table = linear_of(tensor), int8_linear(np.eye(4))
    assert isinstance(linear, Linear)
    assert isinstance(linear, NestLinear)
    assert isinstance(linear_of(random_grid(20, 24, "nf4", 8)), GridLinear)
    assert isinstance(table, Table)
    assert (linear.out_features, linear.in_features) == (20, 24)
    assert linear.nbytes == tensor.nbytes
    assert linear.rotation == tensor.rotation
    assert linear.dtype == "nestquant"
    assert table.dtype == "int8"
    assert table.rotation == Rotation(4, None, "none")


@pytest.mark.parametrize(
    "x", [np.zeros((1, 65), np.float32), np.zeros((1, 64)), np.zeros(64, np.float32)]
)
def test_bad_inputs_are_refused(x: np.ndarray, rng: np.random.Generator) -> None:
    for linear in one_of_each(rng):
        for multiply in (linear, linear.multiply_rotated):  # type: ignore[attr-defined]
            with pytest.raises(InputError, match=r"must be float32 of shape \(tokens, 64\)"):
                multiply(x)


def test_a_bad_bias_is_refused() -> None:
    with pytest.raises(InputError, match=r"bias has shape \(3,\)"):
        int8_linear(np.ones((20, 24)), np.zeros(3, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_no_numbers_stay_visible(bad: float, rng: np.random.Generator) -> None:
    x = np.ones((1, 64), np.float32)
    x[0, 5] = bad
    for linear in one_of_each(rng):
        if linear.dtype != "int4" and not np.isinf(bad):
            assert np.isnan(linear(x)).all()
        assert not np.isfinite(linear(x)).any()


def test_tiny_activations_count_as_zero() -> None:
    values = np.full(8, 7, np.int8)
    assert quantize_row(np.full(8, 1e-38, np.float32), values) == 1
    assert not values.any()


def test_int8_rows_too_long_for_exact_sums_are_refused() -> None:
    values = np.zeros((1, 2**16 + 4), np.int8)
    with pytest.raises(InputError, match="65536"):
        linear_of(Int8Tensor(values.shape, values, np.ones(1, np.float16)))
