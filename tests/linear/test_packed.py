"""Packed linears: what they are made from, what they share, and what they refuse."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from latticeq.errors import InputError
from latticeq.linear.base import Linear, Table, apply_shared
from latticeq.linear.int8_kernels import quantize_row
from latticeq.linear.int8_tiles import Int8Rows
from latticeq.linear.packed import GridLinear, NestLinear
from latticeq.linear.rounded import RoundedLinear
from latticeq.linear.tiled import TILED_RUNTIMES
from latticeq.quantizers.scalar import Int8Tensor
from latticeq.transforms.rotation import Rotation
from reference import int8 as reference
from tests.linear.linears import each_behind_more, int8_linear, linear_of, one_of_each, quiet_numpy
from tests.storage.packed_models import random_grid, random_nest


@pytest.mark.parametrize("q", [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
def test_mixed_radix_changes_nothing(q: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 56)).astype(np.float32)
    for runtime in TILED_RUNTIMES:
        plain, radix = (
            linear_of(random_nest(20, 56, q, 3, packing=packing), None, runtime)
            for packing in ("digits", "radix")
        )
        assert radix.nbytes < plain.nbytes
        for count in (1, 3):
            assert np.array_equal(plain(x[:count]), radix(x[:count]))


NUMBERS = st.floats(-1000, 1000, width=32) | st.sampled_from([0.5, 1.5, -2.5, 127.0, 1e30, 1e-36])


@given(arrays(np.float32, st.integers(1, 70), elements=NUMBERS))
def test_activations_round_as_the_reference(x: np.ndarray) -> None:
    values = np.empty(len(x), np.int8)
    scale = quantize_row(x, values)
    wanted, wanted_scale = reference.quantize_activations(x)
    assert np.array_equal(values, wanted)
    assert np.float32(scale) == wanted_scale
    if np.abs(x).max() > reference.SMALLEST:
        assert (np.abs(values * np.float64(scale) - x) <= 0.5001 * scale).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_panels_hold_every_token_as_the_reference_rounds_it(t: int, fours: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(t, 4 * fours)) * np.exp2(rng.integers(-9, 9, (t, 1)))).astype(np.float32)
    x[rng.random(t) < 0.1] = 0
    x[rng.random(t) < 0.1, 0] = np.nan
    rows = Int8Rows(x)
    panels, totals, scales = rows.operands
    assert (len(rows), rows.padded) == (t, 8 * -(-t // 8))
    values = panels.swapaxes(1, 2).copy().view(np.int8).reshape(rows.padded, 4 * fours)
    wanted, wanted_scales = zip(*map(reference.quantize_activations, x), strict=True)
    assert np.array_equal(values[:t], wanted)
    assert np.array_equal(scales.ravel()[:t], wanted_scales, equal_nan=True)
    assert np.array_equal(totals.ravel()[:t], -128 * np.sum(wanted, axis=1, dtype=np.int64))
    for beyond in (values, totals.ravel(), scales.ravel()):
        assert not beyond[t:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 15, 16, 31, 35])
def test_a_token_that_is_no_numbers_has_no_scale(bad: float, place: int) -> None:
    x, values = np.ones(36, np.float32), np.full(36, 7, np.int8)
    x[place] = bad
    with quiet_numpy():
        assert np.isnan(quantize_row(x, values))
    assert not values.any()


def test_tiny_activations_count_as_zero() -> None:
    values = np.full(8, 7, np.int8)
    assert quantize_row(np.full(8, 1e-38, np.float32), values) == 1
    assert not values.any()


def test_several_matrices_at_once_give_what_each_gives(rng: np.random.Generator) -> None:
    same = [linear_of(random_nest(m, 48, 16, k)) for m, k in ((37, 4), (16, 1), (5, 8), (48, 2))]
    words = [linear_of(random_nest(m, 48, 16, 8, cell="d8")) for m in (37, 16)]
    grids = [linear_of(random_grid(m, 48, "int4", 16)) for m in (37, 5)]
    turned = linear_of(random_grid(20, 48, "nf4", 16, rotation=Rotation(48, 3)))
    other = [
        linear_of(random_nest(20, 48, q, 4, seed, cell=cell))
        for q, seed, cell in (
            (14, None, "voronoi"), (16, 3, "voronoi"), (20, None, "voronoi"), (16, None, "cubic")
        )
    ]  # fmt: skip
    int8 = [int8_linear(rng.normal(size=(3, 48))) for _ in range(2)]
    exact = [
        linear_of(random_nest(37, 48, 16, 4), None, "float32"),
        linear_of(random_grid(37, 48, "int4", 16), None, "float32"),
        int8_linear(rng.normal(size=(3, 48)), None, "float32"),
    ]
    rounded = [RoundedLinear(linear) for linear in (*same, *grids, turned, int8[0])]
    groups: list[list[Linear]] = [
        [*same], [*other], [*same, *other], [*words], [*words, *same], [*grids], [*grids, turned],
        [*int8], [*same[:2], int8[0], grids[0]], [*rounded], [rounded[0], same[0]],
        [same[0], exact[0]], [exact[0], same[0]], [grids[0], exact[1]], [exact[1], grids[0]],
        [int8[0], exact[2]], [exact[2], int8[0]],
    ]  # fmt: skip
    for group in groups:
        for count in (1, 3, 9):
            x = rng.normal(size=(count, 48)).astype(np.float32)
            found = apply_shared(group, x)
            assert all(np.array_equal(y, f(x)) for y, f in zip(found, group, strict=True))


def test_linears_may_come_and_go(rng: np.random.Generator) -> None:
    # What a linear remembers of its neighbours must not outlive them.
    first = linear_of(random_nest(16, 16, 16, 2))
    x = rng.normal(size=(1, 16)).astype(np.float32)
    for m in range(16, 56):
        second = linear_of(random_nest(m, 16, 16, 2))
        assert np.array_equal(apply_shared([first, second], x)[1], second(x))
        del second


def test_protocols() -> None:
    tensor = random_nest(20, 24, 16, 4)
    linear, table = linear_of(tensor), int8_linear(np.eye(4))
    assert isinstance(linear, Linear)
    assert isinstance(linear, NestLinear)
    assert linear.runtime == "packed"
    assert isinstance(linear_of(random_grid(20, 24, "nf4", 8)), GridLinear)
    assert isinstance(table, Table)
    assert (linear.out_features, linear.in_features) == (20, 24)
    assert linear.nbytes == tensor.nbytes
    assert linear.rotation == tensor.rotation
    assert linear.dtype == "nestquant"
    assert table.dtype == "int8"
    assert table.rotation == Rotation(4, None, "none")
    rounded = RoundedLinear(linear)
    assert isinstance(rounded, Linear)
    assert (rounded.out_features, rounded.in_features) == (20, 24)
    assert (rounded.nbytes, rounded.dtype) == (linear.nbytes, linear.dtype)
    assert rounded.rotation == linear.rotation


def test_products_are_new_arrays_of_float32(rng: np.random.Generator) -> None:
    for linear in each_behind_more(rng):
        for count in (1, 9):
            x = rng.normal(size=(count, 64)).astype(np.float32)
            before, y = x.copy(), linear(x)
            assert (y.dtype, y.shape, y.flags.c_contiguous) == (np.float32, (count, 20), True)
            kept, again = y.copy(), linear(x)
            again += 1
            assert np.array_equal(x, before)
            assert np.array_equal(y, kept)
            wide = np.zeros((count, 80), np.float32)
            wide[:, 3:67] = x
            assert np.array_equal(linear(wide[:, 3:67]), y)


@pytest.mark.parametrize(
    "x", [np.zeros((1, 65), np.float32), np.zeros((1, 64)), np.zeros(64, np.float32)]
)
def test_bad_inputs_are_refused(x: np.ndarray, rng: np.random.Generator) -> None:
    for linear in one_of_each(rng):
        for multiply in (linear, linear.multiply_rotated, RoundedLinear(linear)):
            with pytest.raises(InputError, match=r"must be float32 of shape \(tokens, 64\)"):
                multiply(x)


def test_a_bad_bias_is_refused() -> None:
    with pytest.raises(InputError, match=r"bias has shape \(3,\)"):
        int8_linear(np.ones((20, 24)), np.zeros(3, np.float32))


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(InputError, match="runtime is 'bf16'; it must be 'packed', 'int8'"):
        int8_linear(np.ones((20, 24)), None, "bf16")


def test_int8_takes_whole_fours_of_columns() -> None:
    grid = linear_of(random_grid(5, 6, "int4", 6))
    with pytest.raises(InputError, match="6 columns; int8 takes them four at a time"):
        RoundedLinear(grid)


def test_int8_rows_too_long_for_exact_sums_are_refused() -> None:
    values = np.zeros((1, 2**16 + 4), np.int8)
    with pytest.raises(InputError, match="65536"):
        linear_of(Int8Tensor(values.shape, values, np.ones(1, np.float16)))
