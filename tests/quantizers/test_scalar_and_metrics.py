"""Int8 rows, round to nearest, losses and calibration statistics."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from latticeq.errors import InputError, LatticeqError
from latticeq.quantizers.calibration import Hessian
from latticeq.quantizers.metrics import proxy_loss, relative_error
from latticeq.quantizers.scalar import Int8, round_to_nearest
from reference import int8 as reference
from reference import ldlq


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.integers(1, 8).map(lambda n: 4 * n)),
        elements=st.floats(-1000, 1000, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
    )
)
def test_int8_is_the_reference_and_within_half_a_step(x: np.ndarray) -> None:
    quantized = Int8().quantize(x)
    values, scale = reference.quantize_rows(x.astype(np.float64))
    assert np.array_equal(quantized.values, values)
    assert quantized.row_scale.tobytes() == scale.tobytes()
    # Half a step, and what rounding the scale to float16 shifts the ends by.
    bound = scale.astype(np.float64)[:, None] * (0.5 + 127 * 2.0**-10)
    assert (np.abs(quantized.dequantize() - x) <= bound).all()
    assert quantized.nbytes == 16 * -(-len(x) // 16) * x.shape[1] + 2 * len(x)


@settings(max_examples=20)
@given(arrays(np.int8, (5, 8), elements=st.integers(-127, 127)), st.integers(-8, 4))
def test_valid_int8_rows_quantize_to_themselves(values: np.ndarray, power: int) -> None:
    values[:, 0] = 127  # so that the scale is what it was
    x = values * np.float32(2.0**power)
    quantized = Int8().quantize(x)
    assert np.array_equal(quantized.values, values)
    assert np.array_equal(quantized.dequantize(), x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 6)), "multiple of 4"),
        (np.full((1, 4), 1e-9), "largest magnitude 1e-09"),
        (np.full((1, 4), 1e8), "largest magnitude 1e"),
        (np.full((1, 4), np.nan), "nan"),
    ],
)
def test_bad_int8_tensors_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Int8().quantize(x)


def test_round_to_nearest(rng: np.random.Generator) -> None:
    w = rng.normal(size=(4, 64))
    rounded = round_to_nearest(w, bits=4, group=32)
    step = np.abs(w.reshape(-1, 32)).max(axis=1, keepdims=True) / 7
    assert (np.abs(rounded - w).reshape(-1, 32) <= step / 2 + 1e-12).all()
    assert np.array_equal(round_to_nearest(w, group=48), round_to_nearest(w, group=64))
    assert not round_to_nearest(np.zeros((1, 32))).any()
    assert np.array_equal(round_to_nearest(2 * w), 2 * rounded)


def test_losses_are_the_traces_they_stand_for(rng: np.random.Generator) -> None:
    w, v = rng.normal(size=(2, 5, 16))
    x = rng.normal(size=(50, 16))
    hessian = x.T @ x / 50
    wanted = ldlq.proxy_loss(w, v, hessian) / ldlq.proxy_loss(w, 0 * w, hessian)
    assert np.isclose(proxy_loss(w, v, hessian), wanted)
    outputs = np.square(x @ (w - v).T).sum() / np.square(x @ w.T).sum()
    assert np.isclose(proxy_loss(w, v, hessian), outputs)
    assert proxy_loss(0 * w, 0 * w, hessian) == relative_error(0 * w, 0 * w) == 0
    assert np.isclose(relative_error(w, v), np.square(w - v).sum() / np.square(w).sum())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_the_hessian_is_the_mean_over_tokens(batches: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(sum(batches), 6)).astype(np.float32)
    hessian = Hessian(6)
    for batch in np.split(x, np.cumsum(batches)[:-1]):
        hessian.update(batch)
    assert hessian.tokens == len(x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(hessian.mean(), wide.T @ wide / len(x), atol=1e-12)
    assert np.array_equal(hessian.mean(), hessian.mean().T)


def test_bad_activations_are_refused() -> None:
    hessian = Hessian(4)
    with pytest.raises(LatticeqError, match="no token"):
        hessian.mean()
    with pytest.raises(InputError, match=r"\(T, 4\)"):
        hessian.update(np.ones((2, 5)))
    with pytest.raises(LatticeqError, match="NaN or infinite"):
        hessian.update(np.full((1, 4), np.inf))
