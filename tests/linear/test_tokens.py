"""Tokens on their way into a product: rotated, rounded to int8, and laid out for the kernels."""

import numpy as np
import pytest

from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.linear.int8_kernels import SMALLEST, quantize_row
from latticeq.linear.int8_tiles import Int8Rows
from latticeq.linear.nest_kernels import prepare_row
from latticeq.transforms.hadamard import hadamard_codes
from latticeq.transforms.rotation import Rotation

SIZES = [4, 12, 16, 64, 80, 96, 184, 600] + ([576, 1536, 2048] if IS_JIT else [])


def tokens(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    """Return tokens of all magnitudes, from the fourth on also those that have no scale."""
    x = rng.standard_normal((count, n)) * np.exp2(rng.integers(-20, 20, (count, 1)))
    x = x.astype(np.float32)
    if count > 6:
        x[3], x[4] = 0, SMALLEST / (4 * n)
        x[5, n // 2], x[6, n - 1] = np.nan, -np.inf
    return x


def rounded(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each token's int8 and its scale, by the definition."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(x).max(axis=1)
        scale = np.where(largest < SMALLEST, np.float32(1), largest / np.float32(127))
        scale[~np.isfinite(largest)] = np.nan
        inverse = np.where(largest < SMALLEST, np.float32(0), np.float32(1) / scale)
        values = np.nan_to_num(np.rint(x * inverse[:, None]), posinf=0, neginf=0)
    values[~np.isfinite(largest)] = 0
    return values.astype(np.int8), scale


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("count", [1, 8, 19])
def test_panels_hold_the_rounded_tokens(n: int, count: int, rng: np.random.Generator) -> None:
    x = tokens(rng, count, n)
    values, scale = rounded(x)
    rows = Int8Rows(x)
    panels, totals, scales = rows.operands
    assert (len(rows), rows.padded) == (count, 8 * len(panels))
    whole = np.zeros((rows.padded, n), np.int8)
    whole[:count] = values
    fours = whole.view(np.int32).reshape(-1, 8, n // 4)
    assert np.array_equal(panels, fours.swapaxes(1, 2))
    assert np.array_equal(totals.reshape(-1), -128 * whole.sum(axis=1, dtype=np.int32))
    assert np.array_equal(scales.reshape(-1)[:count], scale, equal_nan=True)
    assert not scales.reshape(-1)[count:].any()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # without the JIT NumPy warns
def test_rotating_with_rounding_is_rotating_first(n: int, rng: np.random.Generator) -> None:
    x = tokens(rng, 19, n)
    for rotation in (
        Rotation(n), Rotation(n, seed=3), Rotation(n, kind="none"), Rotation(n, block=4)
    ):  # fmt: skip
        wanted = Int8Rows(np.ascontiguousarray(rotation.apply(x))).operands
        found = Int8Rows(x, rotation).operands
        assert all(map(np.array_equal, found[:2], wanted[:2]))
        assert np.array_equal(found[2], wanted[2], equal_nan=True)


def test_panels_do_not_depend_on_threads(rng: np.random.Generator) -> None:
    x, rotation = rng.standard_normal((50, 96), np.float32), Rotation(96)
    wanted = Int8Rows(x, rotation).operands
    before = threads()
    set_threads(1)
    try:
        found = Int8Rows(x, rotation).operands
    finally:
        set_threads(before)
    assert all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("n", [n for n in SIZES if n % 8 == 0 and Rotation(n).is_plain])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_one_token_is_laid_out_in_pairs(n: int, rotate: bool, rng: np.random.Generator) -> None:
    for x in tokens(rng, 8, n):
        values, pairs = np.empty(n, np.int8), np.full((n // 8, 3), -1, np.int32)
        wanted = quantize_row(Rotation(n).apply(x) if rotate else x, values)
        found = prepare_row(x, hadamard_codes(n) if rotate else None, pairs)
        assert np.array_equal(found, wanted, equal_nan=True)
        blocks = values.reshape(-1, 8)
        for column, some in enumerate((blocks[:, ::2], blocks[:, 1::2])):
            words = np.ascontiguousarray(some).view(np.int32)[:, 0]
            assert np.array_equal(pairs[:, column], words)
        assert np.array_equal(pairs[:, 2], blocks.sum(axis=1, dtype=np.int32))
