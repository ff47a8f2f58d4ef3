"""Products of quantized tensors: exact integers, a bound on floats, and a basis in common."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import latticeq
from latticeq import NestQuant
from latticeq.codes.nested import CELLS
from latticeq.errors import InputError
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.linear.coded_kernels import coded_products
from latticeq.linear.matmul import coded_operand, matmul
from latticeq.quantizers.scalar import Int8
from reference import matmul as reference

FEW = 40 if IS_JIT else 8
ROUNDING = 2.0**-24


def random_points(rng: np.random.Generator, rows: int, n: int, largest: int) -> np.ndarray:
    """Return points of which a third are as large as they may be."""
    points = rng.integers(-largest, largest + 1, (rows, n))
    ends = rng.choice([-largest, largest], points.shape)
    return np.where(rng.random(points.shape) < 1 / 3, ends, points).astype(np.int8)


def bound(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how far a float32 product of rows coded in blocks may be from the exact one."""
    norms = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(y, axis=-1)
    return (x.shape[-1] / 8 + 2) * ROUNDING * norms


@settings(max_examples=FEW)
@given(
    t=st.integers(1, 20),
    m=st.integers(1, 40),
    blocks=st.integers(1, 10),
    largest=st.sampled_from([1, 28, 32, 62, 63, 64, 126, 127]),
    seed=st.integers(0, 2**32 - 1),
)
def test_integer_products_are_exact(t: int, m: int, blocks: int, largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (random_points(rng, rows, 8 * blocks, largest) for rows in (t, m))
    ones = np.ones((max(t, m), blocks), np.float32)
    found = coded_products(x, ones[:t], y, ones[:m])
    # At most 127² · 80 < 2**24, so float32 holds every sum.
    assert found.dtype == np.float32
    assert np.array_equal(found, reference.block_products(x, y).sum(axis=-1))
    assert np.array_equal(found, x.astype(np.int64) @ y.T.astype(np.int64))


def test_each_block_is_exact_and_scaled_alone(rng: np.random.Generator) -> None:
    x, y = random_points(rng, 9, 48, 127), random_points(rng, 17, 48, 127)
    wanted = reference.block_products(x, y)
    for block in range(6):
        only = np.zeros((17, 6), np.float32)
        only[:, block] = 2.0 ** np.arange(17)
        found = coded_products(x, only[:9], y, only)
        scales = only[:9, None, block] * only[None, :, block]
        assert np.array_equal(found, wanted[..., block] * scales)


@pytest.mark.parametrize(("t", "m", "n"), [(1, 1, 8), (300, 70, 1032), (7, 130, 2064)])
@pytest.mark.parametrize("largest", [32, 127])
def test_tiles_are_put_together(t: int, m: int, n: int, largest: int) -> None:
    rng = np.random.default_rng([t, m, n])
    if not IS_JIT:
        t, m, n = min(t, 3), min(m, 18), min(n, 1032)
    x, y = random_points(rng, t, n, largest), random_points(rng, m, n, largest)
    a, b = (rng.uniform(0.1, 2, (rows, n // 8)).astype(np.float32) for rows in (t, m))
    exact = np.repeat(a.astype(np.float64), 8, 1) * x, np.repeat(b.astype(np.float64), 8, 1) * y
    error = np.abs(coded_products(x, a, y, b) - exact[0] @ exact[1].T)
    assert (error <= bound(*exact)).all()


def test_results_do_not_depend_on_threads_or_neighbours(rng: np.random.Generator) -> None:
    x, y = random_points(rng, 24, 64, 60), random_points(rng, 40, 64, 60)
    a, b = (rng.normal(size=(rows, 8)).astype(np.float32) for rows in (24, 40))
    whole = coded_products(x, a, y, b)
    alone = coded_products(x[5:6], a[5:6], y[30:31], b[30:31])
    assert alone[0, 0] == whole[5, 30]
    before = threads()
    set_threads(1)
    try:
        assert coded_products(x, a, y, b).tobytes() == whole.tobytes()
    finally:
        set_threads(before)


def test_no_rows_have_no_products(rng: np.random.Generator) -> None:
    x, s = random_points(rng, 3, 16, 30), np.ones((3, 2), np.float32)
    assert coded_products(x[:0], s[:0], x, s).shape == (0, 3)
    assert coded_products(x, s, x[:0], s[:0]).shape == (3, 0)


def test_a_row_without_a_number_spoils_no_other(rng: np.random.Generator) -> None:
    x, y = random_points(rng, 9, 16, 30), random_points(rng, 18, 16, 30)
    a, b = np.ones((9, 2), np.float32), np.ones((18, 2), np.float32)
    whole = coded_products(x, a, y, b)
    a[3, 1] = np.nan
    found = coded_products(x, a, y, b)
    assert np.isnan(found[3]).all()
    keep = np.arange(9) != 3
    assert np.array_equal(found[keep], whole[keep])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("q", "k", "seed"), [(16, 4, None), (14, 4, 7)])
def test_two_nest_tensors(
    cell: str, q: int, k: int, seed: int | None, rng: np.random.Generator
) -> None:
    betas = tuple(np.geomspace(3, 6, k) / q)
    quantizer = NestQuant(q, k, shaping=cell, betas=betas, seed=seed)
    other = NestQuant(8, 1, betas=(0.5,), seed=seed)  # another code, the same rotation
    a, b, c = (rng.standard_normal((rows, 96), np.float32) for rows in (5, 18, 3))
    x = quantizer.quantize(a)
    for y in (quantizer.quantize(b), other.quantize(c)):
        found = matmul(x, y)
        points, scales = zip(*map(coded_operand, (x, y)), strict=True)
        rows = [
            v * np.repeat(s.astype(np.float64), 8, 1) for v, s in zip(points, scales, strict=True)
        ]
        assert (np.abs(found - rows[0] @ rows[1].T) <= bound(*rows)).all()
        assert np.array_equal(rows[0].astype(np.float32), x.rotated())
        wide = x.dequantize().astype(np.float64), y.dequantize().astype(np.float64)
        # Rotating back to read the tensors rounds a few more times.
        assert (np.abs(found - wide[0] @ wide[1].T) <= 3 * bound(*wide)).all()


def test_other_pairs_multiply_what_they_stand_for(rng: np.random.Generator) -> None:
    a, b = (rng.standard_normal((rows, 96), np.float32) for rows in (6, 20))
    pairs = [
        (NestQuant(seed=1).quantize(a), NestQuant(seed=2).quantize(b)),
        (NestQuant(rotate="none").quantize(a), NestQuant().quantize(b)),
        (NestQuant().quantize(a), Int8().quantize(b)),
        (NestQuant(rotate="none").quantize(a), Int8().quantize(b)),
        (Int8().quantize(a), Int8().quantize(b)),
    ]
    for x, y in pairs:
        wide = x.dequantize().astype(np.float64), y.dequantize().astype(np.float64)
        assert (np.abs(matmul(x, y) - wide[0] @ wide[1].T) <= 8 * bound(*wide)).all()


def test_leading_axes_stay(rng: np.random.Generator) -> None:
    a = NestQuant().quantize(rng.normal(size=(2, 3, 64)))
    b, row = NestQuant().quantize(rng.normal(size=(5, 64))), rng.normal(size=64)
    found = matmul(a, b)
    assert found.shape == (2, 3, 5)
    assert np.allclose(found, np.inner(a.dequantize(), b.dequantize()), atol=1e-4)
    assert matmul(NestQuant().quantize(row), b).shape == (5,)
    assert matmul(NestQuant().quantize(row), Int8().quantize(row)).shape == ()


def test_it_is_a_public_name() -> None:
    assert latticeq.matmul is matmul


def test_misfits_are_refused(rng: np.random.Generator) -> None:
    a, b = NestQuant().quantize(np.ones((2, 64))), NestQuant().quantize(np.ones((2, 32)))
    with pytest.raises(InputError, match=r"\(2, 64\) and \(2, 32\).*last axes must be equal"):
        matmul(a, b)
    v, s = np.ones((2, 16), np.int8), np.ones((2, 2), np.float32)
    for operands, message in (
        ((v.astype(np.int16), s, v, s), "points_a are int16"),
        ((v, s, v[0], s), r"points_b are int8 of shape \(16,\)"),
        ((v[:, :12], s, v, s), r"multiple of 8"),
        ((v, s[:, :1], v, s), r"block_scale_a is float32 of shape \(2, 1\).*\(2, 2\)"),
        ((v, s, v, s.astype(np.float64)), "block_scale_b is float64"),
        ((v[:, :8], s[:, :1], v, s), "8 and of 16 entries"),
    ):
        with pytest.raises(InputError, match=message):
            coded_products(*operands)
