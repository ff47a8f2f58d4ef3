"""The reference model's own laws, so that it can be trusted as an oracle."""

import doctest

import numpy as np
import pytest

import reference.llama
from tests.tiny_llama import CONFIGS, random_ids, random_weights


def test_examples_hold():
    result = doctest.testmod(reference.llama)
    assert result.attempted > 0
    assert result.failed == 0


def test_attention_to_one_token_is_its_value(rng):
    q, k, v = rng.standard_normal((3, 1, 4, 6))
    np.testing.assert_allclose(reference.llama.attention(q, k, v), v)


def test_equal_keys_average_the_values_so_far(rng):
    q, v = rng.standard_normal((2, 5, 2, 6))
    out = reference.llama.attention(q, np.ones((5, 2, 6)), v)
    counts = np.arange(1, 6)[:, None, None]
    np.testing.assert_allclose(out, np.cumsum(v, axis=0) / counts)


def test_rotated_products_depend_on_distance_only(rng):
    turn = reference.llama.frequencies(CONFIGS["llama"])
    q, k = (np.repeat(x, 9, axis=0) for x in rng.standard_normal((2, 1, 1, 8)))
    products = reference.llama.rope(q, turn)[:, 0] @ reference.llama.rope(k, turn)[:, 0].T
    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)  # angles are float32


@pytest.mark.parametrize("name", CONFIGS)
def test_likelihoods_are_those_of_a_distribution(name):
    config = CONFIGS[name]
    weights = random_weights(config)
    ids = random_ids(config, 4)
    total = 0.0
    for last in range(config["vocab_size"]):
        total += np.exp(-reference.llama.nll([*ids, last], weights, config)[-1])
    assert total == pytest.approx(1)
