"""What weights are quantized towards: the laws of QA-LDLQ's target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import InputError, LatticeqError
from latticeq.quantizers.objective import (
    Objective,
    general,
    isotropic_noise,
    plain,
    with_noise,
)
from reference import ldlq

SEEDS = st.integers(0, 2**32 - 1)


def layer(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights (5, 8), wanted inputs and given ones, (60, 8) each."""
    rng = np.random.default_rng(seed)
    wanted = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8))
    given_inputs = 0.9 * wanted + 0.3 * rng.normal(size=wanted.shape)
    return rng.normal(size=(5, 8)), wanted, given_inputs


def moments(wanted: np.ndarray, given_inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return given_inputs.T @ given_inputs / 60, wanted.T @ given_inputs / 60


@given(SEEDS, st.floats(0, 0.5), st.floats(0, 1))
def test_the_target_is_the_references(seed: int, damping: float, strength: float) -> None:
    weights, wanted, given_inputs = layer(seed)
    expected, metric = ldlq.qa_target(weights, wanted, given_inputs, damping, strength)
    objective = general(*moments(wanted, given_inputs), strength)
    np.testing.assert_allclose(objective.metric, metric)
    np.testing.assert_allclose(objective.target(weights, damping), expected, atol=1e-9)


@given(SEEDS)
def test_the_loss_is_the_metrics_form_about_the_target(seed: int) -> None:
    weights, wanted, given_inputs = layer(seed)
    objective = general(*moments(wanted, given_inputs))
    target = objective.target(weights, 0.0)

    def loss(candidate: np.ndarray) -> float:
        return float(np.square(wanted @ weights.T - given_inputs @ candidate.T).sum() / 60)

    other = target + np.random.default_rng(seed).normal(size=target.shape)
    form = ldlq.proxy_loss(other, target, objective.metric)
    assert np.isclose(loss(other) - loss(target), form)


@given(SEEDS, st.floats(0, 1))
def test_an_input_that_is_right_leaves_the_weights_alone(seed: int, damping: float) -> None:
    weights, wanted, _ = layer(seed)
    hessian, cross = moments(wanted, wanted)
    for objective in (plain(hessian), general(hessian, cross)):
        np.testing.assert_allclose(objective.target(weights, damping), weights, atol=1e-9)


@given(SEEDS)
def test_noise_gives_the_published_target(seed: int) -> None:
    weights, wanted, given_inputs = layer(seed)
    hessian, _ = moments(wanted, wanted)
    noise = np.cov(given_inputs, rowvar=False)
    objective = with_noise(hessian, noise)
    published = weights @ hessian @ np.linalg.inv(hessian + noise)
    np.testing.assert_allclose(objective.target(weights, 0.0), published, atol=1e-8)
    half = Objective(objective.metric, objective.cross, 0.5).target(weights, 0.0)
    np.testing.assert_allclose(half, (weights + published) / 2, atol=1e-8)


def test_isotropic_noise_has_the_codes_share_of_the_inputs_power() -> None:
    hessian = np.diag([1.0, 2.0, 9.0])
    assert np.array_equal(isotropic_noise(hessian, 0.01), 0.04 * np.eye(3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(2, 2\) and \(3, 3\)"):
        general(np.eye(2), np.eye(3))
    with pytest.raises(InputError, match="strength is 2"):
        general(np.eye(2), np.eye(2), 2)
    with pytest.raises(LatticeqError, match="singular with damping 0"):
        general(np.zeros((2, 2)), np.eye(2)).target(np.eye(2), 0.0)
