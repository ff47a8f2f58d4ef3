"""Int8 rows, and round to nearest."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from latticeq.errors import InputError
from latticeq.quantizers.scalar import Int8, round_to_nearest
from reference import int8 as reference


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
