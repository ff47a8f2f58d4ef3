"""Laws of the Hadamard transform: orthonormal, exact to rounding, the same in any batch."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from latticeq import jit
from latticeq.errors import InputError
from latticeq.transforms.hadamard import (
    PARALLEL_ENTRIES,
    hadamard,
    hadamard_codes,
    hadamard_factors,
    hadamard_inverse,
    hadamard_matrix,
    largest_block,
)
from latticeq.transforms.hadamard_kernels import hadamard_row

SMALL = [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 52, 64, 76, 96, 100, 128, 144, 200, 256, 296]
MODELS = [576, 768, 896, 1536, 2048]
LARGE = [2560, 3072, 3584, 4096, 4864, 5120, 5632, 8960, 9216, 11008, 13824, 14336, 18944, 28672]

Transform = Callable[[NDArray[Any]], NDArray[Any]]
sizes = pytest.mark.parametrize("n", SMALL + MODELS)
types = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def bound(x: NDArray[Any]) -> NDArray[np.float64]:
    """The module's error bound, with a hundredth added for terms of second order, and underflow."""
    n = x.shape[-1]
    m, k = hadamard_factors(n) or (1, 0)
    roundings = 1.01 * (m / 16 + k + 10)
    unit = np.finfo(x.dtype).eps / 2
    norm = np.abs(x.astype(np.float64)).sum(axis=-1, keepdims=True)
    return np.asarray(
        roundings * unit * norm / np.sqrt(n) + 2 * n * np.finfo(x.dtype).smallest_subnormal
    )


@sizes
@types
def test_equals_the_dense_matrix(n: int, dtype: type, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, n)).astype(dtype)
    matrix = hadamard_matrix(n)
    rounding_of_the_product = n * 2.0**-53 * np.abs(x).sum(axis=-1, keepdims=True) / np.sqrt(n)
    allowed = bound(x) + rounding_of_the_product
    assert (np.abs(hadamard(x) - x.astype(np.float64) @ matrix.T) <= allowed).all()
    assert (np.abs(hadamard_inverse(x) - x.astype(np.float64) @ matrix) <= allowed).all()


@pytest.mark.parametrize("n", LARGE)
def test_large_sizes_give_rows_of_the_matrix_and_go_back(n: int, rng: np.random.Generator) -> None:
    units = np.zeros((2, n))
    units[0, 0] = units[1, n - 1] = 1
    columns = hadamard(units)
    assert np.allclose(np.abs(columns) * np.sqrt(n), 1)
    assert abs(columns[0] @ columns[1]) < 1e-12
    x = rng.standard_normal(n)
    assert np.allclose(hadamard_inverse(hadamard(x)), x, atol=1e-12)
    assert np.isclose(hadamard(x) @ hadamard(x), x @ x)


@pytest.mark.parametrize("n", SMALL)
def test_matrix_is_hadamard_in_integers(n: int) -> None:
    signs = np.rint(hadamard_matrix(n) * np.sqrt(n)).astype(np.int64)
    assert set(np.unique(signs)) <= {-1, 1}
    assert np.array_equal(signs @ signs.T, n * np.eye(n))


@given(
    data=st.data(),
    n=st.sampled_from([1, 2, 4, 12, 28, 48, 64, 72, 80]),
    transform=st.sampled_from([hadamard, hadamard_inverse]),
)
def test_linear_isometry(data: st.DataObject, n: int, transform: Transform) -> None:
    values = st.floats(-1e6, 1e6, width=32)
    x = data.draw(hnp.arrays(np.float32, (2, n), elements=values))
    y = transform(x)
    total = transform(x[:1] + x[1:])[0]
    slack = bound(x).sum() + bound(x[0] + x[1]).sum() + 2.0**-24 * np.abs(x).sum()
    assert (np.abs(total - (y[0].astype(np.float64) + y[1])) <= slack).all()
    norms = [np.linalg.norm(a.astype(np.float64), axis=-1) for a in (x, y)]
    assert (np.abs(norms[0] - norms[1]) <= np.sqrt(n) * bound(x)[:, 0]).all()


@given(power=st.integers(-20, 20), n=st.sampled_from([12, 64, 72]), seed=st.integers(0, 99))
def test_scaling_by_a_power_of_two_is_exact(power: int, n: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    scale = np.float32(2.0**power)
    assert np.array_equal(hadamard(x * scale), hadamard(x) * scale)


@pytest.mark.parametrize("n", [12, 64, 576, 1536])
def test_a_row_does_not_depend_on_its_batch(n: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((PARALLEL_ENTRIES // n + 1, n)).astype(np.float32)
    parallel = hadamard(x)
    threads = jit.threads()
    try:
        jit.set_threads(1)
        one_thread = hadamard(x)
    finally:
        jit.set_threads(threads)
    assert np.array_equal(parallel, one_thread)
    assert np.array_equal(parallel[:3], hadamard(x[:3]))
    row = np.empty(n, np.float32)
    hadamard_row(x[1], row, hadamard_codes(n))
    assert np.array_equal(parallel[1], row)


def in_order(x: NDArray[Any], transpose: bool) -> NDArray[Any]:
    """Transform a row with the additions, one by one, in the order that fixes what floats become.

    Sums of four are added one by one until a multiple of four of them is left, then four at a time;
    stages go from the highest bit of the column to the lowest.
    """
    codes = hadamard_codes(x.size, transpose)
    m, groups = codes.shape
    scale = x.dtype.type(1 / np.sqrt(x.size))
    y = x.reshape(m, -1) * scale
    if groups:
        a, b, c, d = x.reshape(groups, 4, -1).swapaxes(0, 1)
        ab = np.stack([(a + b) * scale, (a - b) * scale])
        cd = np.stack([(c + d) * scale, (c - d) * scale])
        ab, cd = np.concatenate([ab, -ab[::-1]]), np.concatenate([cd, -cd[::-1]])
        sums = [ab[codes[:, g] // 4, g] + cd[codes[:, g] % 4, g] for g in range(groups)]
        y = np.zeros_like(y)
        alone = groups % 4
        for g in range(alone):
            y += sums[g]
        for g in range(alone, groups, 4):
            y += (sums[g] + sums[g + 1]) + (sums[g + 2] + sums[g + 3])
    distance = y.shape[1] // 2
    while distance:
        pairs = y.reshape(m, -1, 2, distance)
        first, second = pairs[:, :, 0].copy(), pairs[:, :, 1].copy()
        pairs[:, :, 0], pairs[:, :, 1] = first + second, first - second
        distance //= 2
    return y.reshape(-1)


@pytest.mark.parametrize("n", [*SMALL, *MODELS, 16, 32, 512, 1024, 4096, 5632, 8192, 11008, 16384])
@types
def test_the_order_of_additions_is_fixed(n: int, dtype: type, rng: np.random.Generator) -> None:
    x = (rng.standard_normal((2, n)) * np.exp2(rng.integers(-20, 20, (2, n)))).astype(dtype)
    x[1] = rng.choice([0.0, -0.0, 1.0], n)
    for row, there, back in zip(x, hadamard(x), hadamard_inverse(x), strict=True):
        assert there.tobytes() == in_order(row, False).tobytes()
        assert back.tobytes() == in_order(row, True).tobytes()


@pytest.mark.parametrize("n", [1, 64, 72, 96, 576])
def test_out_layout_and_shape(n: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, n)).astype(np.float32)
    expected = hadamard(x)
    kept = x.copy()
    out = np.empty_like(x)
    assert hadamard(x, out) is out
    assert np.array_equal(out, expected)
    assert np.array_equal(x, kept)
    strided = np.repeat(x, 2, axis=-1)[..., ::2]
    assert np.array_equal(hadamard(strided), expected)
    assert hadamard(x, x) is x
    assert np.array_equal(x, expected)
    line = kept[0, 0].copy()
    assert np.array_equal(hadamard(line, line), expected[0, 0])


def test_overlapping_out_is_as_good_as_a_separate_one(rng: np.random.Generator) -> None:
    memory = rng.standard_normal((4, 12))
    expected = hadamard(memory[:3].copy())
    assert np.array_equal(hadamard(memory[:3], memory[1:]), expected)


def test_no_rows_and_not_a_number() -> None:
    assert hadamard(np.empty((0, 12))).shape == (0, 12)
    assert np.isnan(hadamard(np.array([1, np.nan, 0, 0]))).all()


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (np.zeros(92), None, "size 92.*Rotation\\(92\\), which rotates blocks of 4"),
        (np.zeros(0), None, "size 0"),
        (np.zeros(()), None, "size 0"),
        (np.zeros(4, np.int64), None, "int64.*convert it to float32"),
        (np.zeros(4), np.zeros(8), "out is float64 \\(8,\\).*array \\(4,\\)"),
        (np.zeros(4), np.zeros(4, np.float32), "out is float32"),
        (np.zeros(4), np.zeros(8)[::2], "C-contiguous"),
    ],
)
def test_wrong_arguments(x: NDArray[Any], out: NDArray[Any] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        hadamard(x, out)


@given(n=st.integers(1, 40_000))
@example(n=11008)
@example(n=2 * 92)
@example(n=4 * 2053)
def test_factors_and_blocks_divide(n: int) -> None:
    factors = hadamard_factors(n)
    block = largest_block(n)
    assert n % block == 0
    assert (factors is not None) == (block == n)
    if factors is not None:
        m, k = factors
        assert m * 2**k == n
        assert m == 1 or hadamard_factors(m) == (m, 0)


@pytest.mark.parametrize("n", MODELS + LARGE)
def test_sizes_of_real_models_need_no_blocks(n: int) -> None:
    assert largest_block(n) == n


PLAIN_PYTHON = """
import numpy as np
from latticeq import jit
from latticeq.transforms.hadamard import hadamard, hadamard_inverse, hadamard_matrix
assert not jit.IS_JIT
for n in (1, 2, 8, 12, 24, 72, 76, 160):
    x = np.random.default_rng(n).standard_normal((2, n))
    assert np.allclose(hadamard(x), x @ hadamard_matrix(n).T, atol=1e-13)
    assert np.allclose(hadamard_inverse(hadamard(x)), x, atol=1e-13)
print("same")
"""


def test_kernels_run_as_plain_python() -> None:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", PLAIN_PYTHON]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr
