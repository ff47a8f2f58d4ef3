"""LDLQ: the factor, the recursion, and what it is worth; damping and its schedule."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.errors import InputError, LatticeqError
from latticeq.quantizers.feedback import DAMPING_LIMIT, PANEL, factor, ldlq
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.scalar import Scalar
from reference import ldlq as reference


def random_hessian(rng: np.random.Generator, n: int, tokens: int) -> np.ndarray:
    mixing = rng.normal(size=(n, n)) / np.sqrt(n) + 0.5 * np.eye(n)
    x = rng.normal(size=(tokens, n)) @ mixing
    return np.asarray(x.T @ x / tokens)


def rounded(_: object, target: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(4 * target) / 4)


@settings(max_examples=20)
@given(st.integers(1, 12), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32 - 1))
def test_the_factor_is_that_of_block_elimination(blocks: int, block: int, seed: int) -> None:
    n = blocks * block
    hessian = random_hessian(np.random.default_rng(seed), n, 4 * n)
    lower, diagonal = reference.block_ldl(reference.damped(hessian, 0.01), block)
    found = factor(hessian, block, 0.01)
    np.testing.assert_allclose(found.lower, lower, atol=1e-9)
    assert (found.block, found.damping) == (block, 0.01)
    damped = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(n)
    np.testing.assert_allclose(lower @ diagonal @ lower.T, damped, atol=1e-9)


@pytest.mark.parametrize("n", [8, 64, PANEL, PANEL + 8, 2 * PANEL + 40])
def test_panels_do_what_the_recursion_says(n: int, rng: np.random.Generator) -> None:
    hessian = random_hessian(rng, n, 2 * n)
    weights = rng.normal(size=(5, n))
    wanted = reference.ldlq(weights, reference.damped(hessian, 0.01), 8, rounded)
    found = ldlq(weights, factor(hessian, 8, 0.01), rounded)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("block", [1, 2, 8, 24])
def test_the_identity_feeds_nothing_back(block: int, rng: np.random.Generator) -> None:
    weights = rng.normal(size=(3, 48))
    found = ldlq(weights, factor(np.eye(48), block), rounded)
    assert np.array_equal(found, rounded(None, weights))


def test_blocks_come_last_to_first_once_each(rng: np.random.Generator) -> None:
    seen = []

    def record(columns: slice, target: np.ndarray) -> np.ndarray:
        seen.append((columns.start, columns.stop))
        return target

    weights = rng.normal(size=(2, 32))
    assert np.array_equal(ldlq(weights, factor(np.eye(32)), record), weights)
    assert seen == [(24, 32), (16, 24), (8, 16), (0, 8)]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_feedback_lowers_the_proxy_loss(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hessian = random_hessian(rng, 48, 200)
    weights = rng.normal(size=(40, 48))
    plain = reference.proxy_loss(weights, rounded(None, weights), hessian)
    fed_back = ldlq(weights, factor(hessian), rounded)
    assert reference.proxy_loss(weights, fed_back, hessian) < 0.95 * plain


def test_the_loss_is_that_of_the_bare_errors(rng: np.random.Generator) -> None:
    hessian = random_hessian(rng, 32, 100)
    weights = rng.normal(size=(4, 32))
    errors = np.zeros_like(weights)

    def record(columns: slice, target: np.ndarray) -> np.ndarray:
        values = rounded(None, target)
        errors[:, columns] = target - values
        return values

    quantized = ldlq(weights, factor(hessian, 8, 0.0), record)
    _, diagonal = reference.block_ldl(hessian, 8)
    bare = np.trace(errors @ diagonal @ errors.T)
    assert np.isclose(reference.proxy_loss(weights, quantized, hessian), bare)


def test_damping_is_raised_until_the_factor_exists(rng: np.random.Generator) -> None:
    v = rng.normal(size=(3, 32))
    singular = v.T @ v
    assert factor(singular, 8, 1e-2).damping == 1e-2
    assert factor(singular, 8, 0.0).damping == pytest.approx(1e-4)
    indefinite = np.eye(32)
    indefinite[0, 0] = -0.05  # its mean diagonal is 0.967: a tenth of it mends that, 1e-2 does not
    assert factor(indefinite, 8, 1e-3).damping == pytest.approx(0.1)
    assert factor(np.zeros((16, 16)), 8, 1e-2).damping == 1e-2


def test_what_no_damping_mends_is_refused() -> None:
    hopeless = np.eye(16)
    hopeless[0, 0] = -10.0
    with pytest.raises(LatticeqError, match=f"rank 16 .* damping {DAMPING_LIMIT:g}.*more tokens"):
        factor(hopeless)


@pytest.mark.parametrize(
    ("hessian", "damping", "message"),
    [
        (np.ones((8, 9)), 0.01, "square"),
        (np.eye(12), 0.01, "multiple of 8"),
        (np.eye(8), -1.0, "at least 0"),
        (np.eye(8), float("nan"), "damping is nan"),
        (np.eye(8), float("inf"), "damping is inf"),
        (np.full((8, 8), np.nan), 0.01, "not finite"),
    ],
)
def test_bad_hessians_are_refused(hessian: np.ndarray, damping: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        factor(hessian, 8, damping)


@pytest.mark.parametrize("quantizer", [NestQuant(), NestQuant(seed=3), Scalar("int4")])
def test_a_factor_serves_in_place_of_its_hessian(
    quantizer: NestQuant | Scalar, rng: np.random.Generator
) -> None:
    inputs = rng.normal(size=(200, 32)) @ rng.normal(size=(32, 32))
    hessian, weights = inputs.T @ inputs / 200, rng.normal(size=(16, 32))
    factored = quantizer.factor(hessian, 0.1)
    assert quantizer.factor(factored) is factored
    found, wanted = quantizer.quantize(weights, factored), quantizer.quantize(weights, hessian, 0.1)
    assert np.array_equal(found.dequantize(), wanted.dequantize())
    assert found.damping == wanted.damping == 0.1


def test_a_factor_of_other_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="blocks of 1; this quantizer needs blocks of 8"):
        NestQuant().quantize(np.ones((2, 16)), Scalar("int4").factor(np.eye(16)))
