"""The limits of distortion: printed values, the tangent that defines R*, and shape."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq.errors import InputError
from latticeq.quantizers.limits import CRITICAL_RATE, distortion_limit, product_limit

rates = st.floats(0, 12)


def f(rate: float) -> float:
    return 2 * 2.0 ** (-2 * rate) - 2.0 ** (-4 * rate)


def test_the_critical_rate_is_where_the_chord_touches() -> None:
    slope = -4 * np.log(2) * (2.0 ** (-2 * CRITICAL_RATE) - 2.0 ** (-4 * CRITICAL_RATE))
    assert f(CRITICAL_RATE) - CRITICAL_RATE * slope == pytest.approx(1, abs=1e-14)
    step = 1e-6
    below, above = product_limit(CRITICAL_RATE - step), product_limit(CRITICAL_RATE + step)
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-5)


@given(rates)
def test_above_it_two_independent_errors_and_below_it_the_chord(rate: float) -> None:
    limit = product_limit(rate)
    assert limit <= f(rate) + 1e-15
    if rate >= CRITICAL_RATE:
        assert limit == pytest.approx(f(rate), rel=1e-14)
    else:
        share = rate / CRITICAL_RATE
        assert limit == pytest.approx(1 - share + share * f(CRITICAL_RATE), rel=1e-14)


@given(rates, rates, st.floats(0, 1))
def test_limits_fall_and_are_convex(left: float, right: float, share: float) -> None:
    between = share * left + (1 - share) * right
    for limit in (distortion_limit, product_limit):
        assert limit(between) <= share * limit(left) + (1 - share) * limit(right) + 1e-15
        assert limit(max(left, right)) <= limit(min(left, right))


@pytest.mark.parametrize("rate", [-0.1, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    for limit in (distortion_limit, product_limit):
        with pytest.raises(InputError, match="at least 0"):
            limit(rate)
