"""Moments over tokens, and the losses measured with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import InputError, LatticeqError
from latticeq.quantizers.calibration import Moment
from latticeq.quantizers.metrics import OutputLoss, relative_error
from reference import ldlq


def test_losses_are_the_traces_they_stand_for(rng: np.random.Generator) -> None:
    w, v = rng.normal(size=(2, 5, 16))
    x = rng.normal(size=(50, 16))
    hessian = x.T @ x / 50
    loss = OutputLoss(w, hessian)
    wanted = ldlq.proxy_loss(w, v, hessian) / ldlq.proxy_loss(w, 0 * w, hessian)
    assert np.isclose(loss(v), wanted, rtol=1e-5)
    outputs = np.square(x @ (w - v).T).sum() / np.square(x @ w.T).sum()
    assert np.isclose(loss(v), outputs, rtol=1e-5)
    assert OutputLoss(0 * w, hessian)(0 * w) == relative_error(0 * w, 0 * w) == 0
    assert np.isclose(relative_error(w, v), np.square(w - v).sum() / np.square(w).sum())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_moment_is_the_mean_over_tokens(batches: list[int], seed: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, sum(batches), 6)).astype(np.float32)
    hessian, cross = Moment(6), Moment(6)
    cuts = np.cumsum(batches)[:-1]
    for part, other in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
        hessian.update(part)
        cross.update(part, other)
    assert hessian.tokens == cross.tokens == len(x)
    wide, other = x.astype(np.float64), y.astype(np.float64)
    np.testing.assert_allclose(hessian.mean(), wide.T @ wide / len(x), atol=1e-5)
    np.testing.assert_allclose(cross.mean(), wide.T @ other / len(x), atol=1e-5)
    assert np.array_equal(hessian.mean(), hessian.mean().T)


def test_long_batches_are_added_in_float64() -> None:
    x = np.ones((5000, 2), np.float32)
    x[:, 1] = 1e-3
    moment = Moment(2)
    moment.update(x)
    np.testing.assert_allclose(moment.mean(), [[1, 1e-3], [1e-3, 1e-6]], rtol=1e-5)


def test_bad_activations_are_refused() -> None:
    moment = Moment(4)
    with pytest.raises(LatticeqError, match="no token"):
        moment.mean()
    with pytest.raises(InputError, match=r"\(T, 4\)"):
        moment.update(np.ones((2, 5), np.float32))
    with pytest.raises(InputError, match=r"\(2, 4\) and \(3, 4\)"):
        moment.update(np.ones((2, 4), np.float32), np.ones((3, 4), np.float32))
    for x, y in ((np.inf, 1), (1, np.nan)):
        with pytest.raises(LatticeqError, match="NaN or infinite"):
            moment.update(np.full((1, 4), x, np.float32), np.full((1, 4), y, np.float32))
