"""Runtime "float32": tiles are the dequantized matrix bit for bit, products those of BLAS."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.nested import CELLS
from latticeq.jit import IS_JIT
from latticeq.linear import tiled
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.scalar import Int8
from tests.linear.linears import (
    CODES,
    GRIDS,
    ROUNDING,
    grid_of,
    int8_linear,
    linear_of,
    one_of_each,
    tiles_of,
)
from tests.storage.packed_models import random_grid, random_nest

FEW = 30 if IS_JIT else 5
ROWS = st.integers(1, 40)


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


def test_the_size_of_tiles_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    # Of the same seed both times: the last one's weights are random.
    linears = [one_of_each(np.random.default_rng(1), None, name) for name in tiled.TILED_RUNTIMES]
    before = [(tiles_of(f), f(x)) for group in linears for f in group]
    monkeypatch.setattr(tiled, "TILE_BYTES", 1)
    monkeypatch.setattr(tiled, "GROUPS_A_THREAD", 0)
    assert [list(f.tiles()) for group in linears for f in group] == [[(0, 1), (1, 1)]] * len(before)
    for f, (tiles, y) in zip([f for group in linears for f in group], before, strict=True):
        assert tiles_of(f).tobytes() == tiles.tobytes()
        bound = 64 * ROUNDING * (np.abs(f.rotation.apply(x)) @ np.abs(tiles).T)
        assert (np.abs(f(x) - y) <= bound).all()  # BLAS may sum a narrower tile otherwise
        assert f.runtime == "float32" or np.array_equal(f(x), y)


def assert_multiplies_as(tensor: QuantizedTensor, x: np.ndarray) -> None:
    """Check products in float32 against float64 ones of the dequantized matrix."""
    exact = linear_of(tensor, None, "float32")
    rotated = tensor.rotation.apply(x)
    matrix = tensor.rotated().astype(np.float64)
    sizes = np.abs(rotated).astype(np.float64) @ np.abs(matrix).T
    bound = (x.shape[1] + 1) * ROUNDING * sizes
    for rows in (slice(None), slice(1)):
        wanted = rotated[rows].astype(np.float64) @ matrix.T
        assert (np.abs(exact(x[rows]) - wanted) <= bound[rows]).all()
        for linear in (exact, linear_of(tensor)):
            found = linear.multiply_rotated(rotated[rows])
            assert found.dtype == np.float32
            assert np.array_equal(found, exact(x[rows]))
    back = x.astype(np.float64) @ tensor.dequantize().astype(np.float64).T
    assert (np.abs(exact(x) - back) <= 1e-5 * sizes.max(axis=0) + 1e-30).all()


@pytest.mark.parametrize(("q", "k", "cell", "seed"), CODES)
def test_codewords_multiply_as_the_dequantized_matrix(
    q: int, k: int, cell: str, seed: int | None, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k, seed, cell=cell)
    assert_multiplies_as(tensor, rng.normal(size=(11, 48)).astype(np.float32))


@pytest.mark.parametrize(("kind", "group", "symmetric", "block"), GRIDS)
def test_grids_multiply_as_the_dequantized_matrix(
    kind: str, group: int, symmetric: bool, block: int | None, rng: np.random.Generator
) -> None:
    tensor = grid_of(kind, group, symmetric, block)
    assert linear_of(tensor).dtype == kind
    assert_multiplies_as(tensor, rng.normal(size=(11, tensor.shape[1])).astype(np.float32))


@pytest.mark.parametrize("n", [1, 3, 7, 9, 30, 70])
@pytest.mark.parametrize("runtime", tiled.TILED_RUNTIMES)
def test_grids_of_no_whole_fours_are_multiplied_in_float32(
    n: int, runtime: str, rng: np.random.Generator
) -> None:
    tensor = random_grid(21, n, "int4", min(n, 4), symmetric=False)
    x = rng.normal(size=(10, n)).astype(np.float32)
    assert_multiplies_as(tensor, x)
    assert np.array_equal(
        linear_of(tensor, None, runtime)(x), linear_of(tensor, None, "float32")(x)
    )


def test_int8_rows_multiply_as_the_dequantized_matrix(rng: np.random.Generator) -> None:
    tensor = Int8().quantize(rng.normal(size=(37, 44)))
    assert_multiplies_as(tensor, rng.normal(size=(11, 44)).astype(np.float32))
