"""A dense linear multiplies as float64 does, in every stored dtype, for one token and for many."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.linear.base import Linear, Table, apply_shared
from latticeq.linear.dense import DenseLinear, _widen_rows
from latticeq.storage.safetensors import bfloat16_to_float32

DTYPES = ("float32", "float16", "bfloat16")
EPSILON = 2.0**-24  # the largest relative error of one float32 operation


def stored_and_true(weight, dtype):
    """Return a weight as stored in `dtype`, and the numbers that it then holds in float64."""
    if dtype == "bfloat16":
        bits = (weight.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return bits, bfloat16_to_float32(bits).astype(np.float64)
    stored = weight.astype(dtype)
    return stored, stored.astype(np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 1100 if IS_JIT else 100),
    n_tokens=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 99),
)
@example(m=17, n=512, n_tokens=1, seed=0)  # whole chunks: nothing is left for the rest
@example(m=3, n=576, n_tokens=1, seed=0)  # a chunk and a strip
@example(m=3, n=63, n_tokens=1, seed=0)  # less than a strip
def test_equals_float64_product(dtype, m, n, n_tokens, seed):
    rng = np.random.default_rng(seed)
    stored, true = stored_and_true(rng.standard_normal((m, n)).astype(np.float32), dtype)
    x = rng.standard_normal((n_tokens, n)).astype(np.float32)
    bias = rng.standard_normal(m).astype(np.float32)
    result = DenseLinear(stored, bias)(x)
    assert result.dtype == np.float32
    assert result.shape == (n_tokens, m)
    # A sum of n float32 products in any order: n + 1 roundings of at most sum |w x| each.
    bound = (n + 2) * EPSILON * (np.abs(x) @ np.abs(true).T + np.abs(bias))
    assert (np.abs(result - (x @ true.T + bias)) <= bound).all()


def test_many_tokens_cross_tile_borders(rng, monkeypatch):
    monkeypatch.setattr("latticeq.linear.dense._TILE_BYTES", 4 * 24 * 10)  # tiles of 10 rows
    stored, true = stored_and_true(rng.standard_normal((33, 24)).astype(np.float32), "bfloat16")
    x = rng.standard_normal((4, 24)).astype(np.float32)
    np.testing.assert_allclose(DenseLinear(stored)(x), x @ true.T, atol=1e-5)


def test_every_float16_is_widened_exactly():
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    if not IS_JIT:
        bits = np.ascontiguousarray(bits[::16, ::5])
    with np.errstate(invalid="ignore"):
        wide = np.empty(bits.shape, np.float32)
        _widen_rows(bits, False, wide)
    np.testing.assert_array_equal(wide, bits.view(np.float16).astype(np.float32))
    signs = np.signbit(wide) == np.signbit(bits.view(np.float16))
    assert signs.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_the_weights(dtype, rng):
    stored, true = stored_and_true(rng.standard_normal((9, 6)).astype(np.float32), dtype)
    rows = DenseLinear(stored).rows(np.array([8, 0, 8]))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, true[[8, 0, 8]])


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("float16", 16), ("bfloat16", 16)])
def test_size_is_that_of_the_stored_weight(dtype, bits, rng):
    stored, _ = stored_and_true(rng.standard_normal((4, 6)).astype(np.float32), dtype)
    linear = DenseLinear(stored, np.zeros(4, np.float32))
    assert (linear.out_features, linear.in_features) == (4, 6)
    assert linear.nbytes * 8 == bits * 24
    assert linear.dtype == dtype
    assert isinstance(linear, Linear)
    assert isinstance(linear, Table)


def test_a_mapped_weight_is_not_copied(tmp_path, rng):
    weight = rng.standard_normal((5, 8)).astype(np.float32)
    weight.tofile(tmp_path / "weight")
    mapped = np.memmap(tmp_path / "weight", np.float32, "r", shape=(5, 8))
    linear = DenseLinear(mapped)
    assert np.shares_memory(linear._stored, mapped)
    np.testing.assert_array_equal(linear.rows(np.arange(5)), weight)


def test_wrong_arguments_are_named():
    with pytest.raises(InputError, match="weight is int8"):
        DenseLinear(np.zeros((2, 3), np.int8))
    with pytest.raises(InputError, match=r"bias has shape \(3,\)"):
        DenseLinear(np.zeros((2, 3), np.float32), np.zeros(3, np.float32))
    with pytest.raises(InputError, match=r"shape \(tokens, 3\)"):
        DenseLinear(np.zeros((2, 3), np.float32))(np.zeros((1, 2), np.float32))


def test_linears_that_share_an_input_are_asked_as_a_group(rng):
    class Doubling(DenseLinear):
        groups = 0

        @staticmethod
        def apply_group(linears, x):
            Doubling.groups += 1
            doubled = x + x
            return [DenseLinear.__call__(linear, doubled) for linear in linears]

    weights = rng.standard_normal((2, 3, 4)).astype(np.float32)
    x = rng.standard_normal((5, 4)).astype(np.float32)
    plain = apply_shared([DenseLinear(w) for w in weights], x)
    grouped = apply_shared([Doubling(w) for w in weights], x)
    mixed = apply_shared([Doubling(weights[0]), DenseLinear(weights[1])], x)
    assert Doubling.groups == 1
    for alone, doubled, apart in zip(plain, grouped, mixed, strict=True):
        np.testing.assert_allclose(doubled, 2 * alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(apart, alone)
