"""Packed linears: exact integer products, the dequantized matrix's bits, and no surprises."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.voronoi import decode_doubled
from latticeq.errors import InputError
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.linear.base import Linear, Table, apply_shared
from latticeq.linear.int8_kernels import quantize_row
from latticeq.linear.packed import Int8Linear, VoronoiLinear
from latticeq.quantizers.scalar import Int8
from latticeq.storage.bits import pack_digits, pack_int8, pack_scale_index
from latticeq.storage.checkpoint import PackedInt8, PackedVoronoi
from latticeq.transforms.rotation import Rotation
from reference import int8 as reference
from tests.storage.packed_models import packed_int8, packed_voronoi, random_nest

FEW = 30 if IS_JIT else 5


def integer_voronoi(
    rng: np.random.Generator, m: int, n: int, q: int, k: int
) -> tuple[PackedVoronoi, np.ndarray]:
    """Return packed codewords that stand for integers, and these; scales are 1 to k."""
    digits = rng.integers(0, q, (m, n // 8, 8), dtype=np.uint8)
    index = rng.integers(0, k, (m, n // 8), dtype=np.uint8)
    doubled = decode_doubled(digits.reshape(-1, 8), q).reshape(digits.shape).astype(np.int64)
    packed = PackedVoronoi(
        (m, n),
        q,
        np.arange(1, k + 1, dtype=np.float32) * 2,
        Rotation(n, None, "none"),
        pack_digits(digits, q),
        pack_scale_index(index, k),
        np.ones(m, np.float16),
    )
    return packed, (doubled * (index + 1)[..., None]).reshape(m, n)


def integer_token(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return integers that are their own int8 under a scale of one: the largest is 127."""
    x = rng.choice([-127, 127, 0, 1, int(rng.integers(-127, 128))], n)
    x[int(rng.integers(n))] = 127
    return x


@settings(max_examples=FEW)
@given(
    m=st.integers(1, 40),
    blocks=st.integers(1, 12),
    q=st.integers(2, 40),
    k=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
def test_integer_products_are_exact(m: int, blocks: int, q: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    packed, matrix = integer_voronoi(rng, m, 8 * blocks, q, k)
    x = integer_token(rng, 8 * blocks)
    found = VoronoiLinear(packed)(x[None].astype(np.float32))
    # 16 · 8 · 2q · 127 a block, twelve of them: below 2**24, so float32 holds every sum.
    assert np.array_equal(found[0], matrix @ x)
    many = VoronoiLinear(packed)(np.stack([x, -x]).astype(np.float32))
    assert np.array_equal(many, np.stack([matrix @ x, -(matrix @ x)]))


@settings(max_examples=FEW)
@given(m=st.integers(1, 40), fours=st.integers(1, 250), seed=st.integers(0, 2**32 - 1))
def test_int8_products_are_exact(m: int, fours: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.choice([-127, 127, 5, -1], (m, 4 * fours)).astype(np.int8)
    linear = Int8Linear(PackedInt8((m, 4 * fours), pack_int8(values), np.ones(m, np.float16)))
    x = integer_token(rng, 4 * fours)
    wanted = reference.integer_products(values, x.astype(np.int8))  # at most 127² · 1000 < 2**24
    assert np.array_equal(linear(x[None].astype(np.float32))[0], wanted)
    assert np.array_equal(linear.rows(np.arange(m)), values)


@settings(max_examples=FEW)
@given(
    m=st.integers(1, 40),
    blocks=st.integers(1, 6),
    q=st.integers(2, 63),
    k=st.integers(1, 16),
)
def test_tiles_are_the_dequantized_matrix_bit_for_bit(m: int, blocks: int, q: int, k: int) -> None:
    tensor = random_nest(m, 8 * blocks, q, k)
    tiles = [(rows, tile.copy()) for rows, tile in VoronoiLinear(packed_voronoi(tensor))._tiles()]
    assert [rows.start for rows, _ in tiles] == [0]
    found = np.concatenate([tile for _, tile in tiles], axis=1).T
    assert found.tobytes() == tensor.rotated().tobytes()


def test_int8_tiles_and_rows_are_the_dequantized_matrix(rng: np.random.Generator) -> None:
    weights = rng.normal(size=(35, 20))
    dequantized = Int8().quantize(weights).dequantize()
    linear = Int8Linear(packed_int8(weights))
    found = np.concatenate([tile.copy() for _, tile in linear._tiles()], axis=1).T
    assert np.array_equal(found, dequantized)
    ids = rng.integers(0, 35, 50)
    assert np.array_equal(linear.rows(ids), dequantized[ids])


@pytest.mark.parametrize(("q", "k", "seed"), [(16, 4, None), (14, 3, 5), (24, 8, None), (3, 1, 1)])
def test_many_tokens_multiply_as_the_dequantized_matrix(
    q: int, k: int, seed: int | None, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k, seed)
    linear, x = VoronoiLinear(packed_voronoi(tensor)), rng.normal(size=(5, 48)).astype(np.float32)
    wanted = x.astype(np.float64) @ tensor.dequantize().T
    sizes = np.abs(x).astype(np.float64) @ np.abs(tensor.dequantize()).T
    assert (np.abs(linear(x) - wanted) <= 1e-5 * sizes.max(axis=0) + 1e-30).all()


@pytest.mark.parametrize(("q", "k"), [(16, 4), (9, 16), (32, 2)])
def test_one_token_is_within_the_rounding_of_its_activations(
    q: int, k: int, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k)
    linear, x = VoronoiLinear(packed_voronoi(tensor)), rng.normal(size=(1, 48)).astype(np.float32)
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
    same = [VoronoiLinear(packed_voronoi(random_nest(m, 48, 16, k))) for m, k in
            ((37, 4), (16, 1), (5, 8), (48, 2))]  # fmt: skip
    other = [
        VoronoiLinear(packed_voronoi(random_nest(20, 48, q, 4, seed)))
        for q, seed in ((14, None), (16, 3), (20, None))
    ]
    for group in (
        same,
        other,
        same + other,
        [*same[:2], Int8Linear(packed_int8(np.ones((3, 48))))],
    ):
        for count in (1, 3):
            x = rng.normal(size=(count, 48)).astype(np.float32)
            found = apply_shared(group, x)
            assert all(np.array_equal(y, f(x)) for y, f in zip(found, group, strict=True))


def test_linears_may_come_and_go(rng: np.random.Generator) -> None:
    # What a linear remembers of its neighbours must not outlive them.
    first = VoronoiLinear(packed_voronoi(random_nest(16, 16, 16, 2)))
    x = rng.normal(size=(1, 16)).astype(np.float32)
    for m in range(16, 56):
        second = VoronoiLinear(packed_voronoi(random_nest(m, 16, 16, 2)))
        assert np.array_equal(apply_shared([first, second], x)[1], second(x))
        del second


def test_threads_change_nothing(rng: np.random.Generator) -> None:
    linears: list[Linear] = [
        VoronoiLinear(packed_voronoi(random_nest(100, 64, 16, 4))),
        Int8Linear(packed_int8(rng.normal(size=(100, 64)))),
    ]
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
    for linear in (
        VoronoiLinear(packed_voronoi(random_nest(20, 24, 16, 4)), bias),
        Int8Linear(packed_int8(rng.normal(size=(20, 24))), bias),
    ):
        for count in (1, 2):
            assert np.array_equal(linear(np.zeros((count, 24), np.float32)), [bias] * count)


def test_protocols() -> None:
    tensor = random_nest(20, 24, 16, 4)
    voronoi, table = VoronoiLinear(packed_voronoi(tensor)), Int8Linear(packed_int8(np.eye(4)))
    assert isinstance(voronoi, Linear)
    assert isinstance(table, Table)
    assert (voronoi.out_features, voronoi.in_features) == (20, 24)
    assert voronoi.nbytes == tensor.nbytes
    assert voronoi.dtype == "nestquant"
    assert table.dtype == "int8"


@pytest.mark.parametrize(
    "x", [np.zeros((1, 25), np.float32), np.zeros((1, 24)), np.zeros(24, np.float32)]
)
def test_bad_inputs_are_refused(x: np.ndarray) -> None:
    for linear in (
        VoronoiLinear(packed_voronoi(random_nest(20, 24, 16, 4))),
        Int8Linear(packed_int8(np.ones((20, 24)))),
    ):
        with pytest.raises(InputError, match=r"must be float32 of shape \(tokens, 24\)"):
            linear(x)


def test_a_bad_bias_is_refused() -> None:
    with pytest.raises(InputError, match=r"bias has shape \(3,\)"):
        Int8Linear(packed_int8(np.ones((20, 24))), np.zeros(3, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_activations_that_are_no_numbers_stay_visible(bad: float) -> None:
    linear = VoronoiLinear(packed_voronoi(random_nest(20, 64, 16, 4)))
    head = Int8Linear(packed_int8(np.random.default_rng(0).normal(size=(20, 64))))
    x = np.ones((1, 64), np.float32)
    x[0, 5] = bad
    for y in (linear(x), head(x)):
        assert np.isnan(y).all()


def test_tiny_activations_count_as_zero() -> None:
    values = np.full(8, 7, np.int8)
    assert quantize_row(np.full(8, 1e-38, np.float32), values) == 1
    assert not values.any()


def test_int8_rows_too_long_for_exact_sums_are_refused() -> None:
    packed = PackedInt8((1, 2**16 + 4), np.zeros((1, 2**14 + 1, 16, 4), np.uint8), np.ones(1, "f2"))
    with pytest.raises(InputError, match="65536"):
        Int8Linear(packed)
