"""Scalar grids: nearest levels by brute force, ties, and small floats code by code."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from latticeq.codes import grids
from latticeq.codes.grids import E2M1, GRIDS, INT4, NF4, UINT4, Grid
from latticeq.errors import InputError
from reference import grids as reference

every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)

LEVELS = {
    "int4": reference.INT4,
    "uint4": reference.UINT4,
    "nf4": np.float64(NF4.by_code),  # their definition is a test of its own
    "e2m1": reference.E2M1,
}


def test_levels_are_those_of_their_definitions() -> None:
    assert INT4.levels == tuple(reference.INT4)
    assert UINT4.levels == tuple(reference.UINT4)
    assert E2M1.levels == tuple(reference.E2M1)
    assert [grid.peak for grid in (INT4, UINT4, NF4, E2M1)] == [7, 15, 1, 6]
    # The published numbers were computed in float32.
    np.testing.assert_allclose(NF4.levels, reference.nf4_levels(), atol=2e-7)
    assert all((np.float32(grid.levels) == grid.levels).all() for grid in GRIDS.values())


@every_grid
def test_every_code_reads_back_as_itself(grid: Grid) -> None:
    codes = np.arange(16, dtype=np.uint8)
    again = grid.encode(grid.decode(codes))
    assert np.array_equal(grid.decode(again), grid.decode(codes))
    expected = np.where(codes == 8, 0, codes) if grid is E2M1 else codes  # no negative zero
    assert np.array_equal(again, expected)


@every_grid
@given(arrays(np.float64, 20, elements=st.floats(-20, 20)))
def test_the_code_is_that_of_the_nearest_level(grid: Grid, x: np.ndarray) -> None:
    assert np.array_equal(grid.encode(x), reference.nearest(LEVELS[grid.name], x))


@every_grid
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_take_the_even_code_and_neighbours_the_nearer(grid: Grid, dtype: type) -> None:
    ordered = np.unique(LEVELS[grid.name])
    middles = (ordered[:-1] + ordered[1:]) / 2
    near = middles.astype(dtype)
    around = np.concatenate([np.nextafter(near, dtype(-99)), near, np.nextafter(near, dtype(99))])
    assert np.array_equal(grid.encode(around), reference.nearest(LEVELS[grid.name], around))
    tied = near.astype(np.float64) == middles
    assert (grid.encode(near[tied]) % 2 == 0).all()
    assert tied.all() or grid is NF4


def test_integers_round_as_rint_does(rng: np.random.Generator) -> None:
    x = np.concatenate([rng.normal(size=1000) * 4, np.arange(-40, 40) / 4])
    assert np.array_equal(INT4.decode(INT4.encode(x)), np.clip(np.rint(x), -8, 7))


@every_grid
def test_lanes_find_the_same_levels_and_codes(grid: Grid, rng: np.random.Generator) -> None:
    # The thresholds in float32 decide as those in float64 do, whatever the float32.
    x = rng.normal(size=2000).astype(np.float32) * np.float32(grid.peak / 2)
    x = np.concatenate([x, grid.thresholds32, np.nextafter(grid.thresholds32, np.float32(99))])
    counted = (x[:, None] > grid.thresholds32).sum(axis=1)
    assert np.array_equal(grid.codes[counted], grid.encode(x))


def test_e4m3_and_e8m0_read_as_their_fields_say() -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = grids.decode_e4m3(codes)
    numbers = codes & 0x7F != 0x7F
    expected = [reference.float_value(code, 4, 3, 7) for code in codes[numbers].tolist()]
    assert np.array_equal(values[numbers], expected)
    assert np.isnan(values[~numbers]).all()
    powers = grids.decode_e8m0(codes)
    assert np.array_equal(powers[:255], 2.0 ** (np.arange(255.0) - 127))
    assert np.isnan(powers[255])


def test_every_small_float_is_written_as_it_was_read() -> None:
    codes = np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0x80, 0xFF])
    assert np.array_equal(grids.encode_e4m3(grids.decode_e4m3(codes)), codes)
    codes = np.arange(255, dtype=np.uint8)
    assert np.array_equal(grids.encode_e8m0(grids.decode_e8m0(codes)), codes)
    bits = np.arange(0x7C00, dtype=np.uint16)
    halves = bits.view(np.float16).astype(np.float32)
    every = range(0, 0x7C00, 7)
    assert [grids.half_bits(halves[i]) for i in every] == list(every)
    assert [float(grids.half_value(i)) for i in every] == halves[::7].tolist()


def test_e4m3_is_nearest_with_ties_to_even() -> None:
    values = reference.E4M3
    middles = (values[:-1] + values[1:]) / 2
    near = middles.astype(np.float32)
    x = np.concatenate(
        [near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(1e9))]
    )
    assert np.array_equal(near, middles)
    assert np.array_equal(grids.encode_e4m3(x), reference.nearest(values, x))
    assert np.array_equal(grids.encode_e4m3(-near[1:]), grids.encode_e4m3(near[1:]) | 0x80)
    assert grids.encode_e4m3([448.0, 460.0, 1e30, np.inf, -1e9]).tolist() == [*[0x7E] * 4, 0xFE]
    assert grids.encode_e4m3(np.nan) == 0x7F


@given(st.floats(0, width=32, allow_nan=False, allow_infinity=False))
def test_e8m0_is_the_power_of_two_below(x: float) -> None:
    assert grids.encode_e8m0(x) == reference.floor_e8m0(x)


@given(st.floats(width=32, allow_nan=False))
def test_float16_is_numpys(x: float) -> None:
    value = np.float32(x)
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    bits = grids.half_bits(value)
    if np.isinf(half):
        assert bits == 0x7E00  # what does not fit is no number
        assert np.isnan(grids.half_value(bits))
    else:
        assert bits & 0x7FFF == half.view(np.uint16) & 0x7FFF
        assert grids.half_value(bits) == np.float32(half)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NF4.encode([0.0, np.nan]), "1 of the numbers are NaN, which nf4 lacks"),
        (lambda: INT4.decode([16]), "0..15"),
        (lambda: INT4.decode([-1]), "0..15"),
        (lambda: INT4.decode([1.0]), "integers"),
        (lambda: grids.encode_e8m0([1.0, -1.0]), "E8M0 has no sign"),
    ],
)
def test_what_has_no_code_is_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]
