"""The choice of a token from logits: what is likely is drawn often, and what is cut off never."""

from collections import Counter

import numpy as np
import pytest

from latticeq.errors import LatticeqError
from latticeq.model.sampling import Sampling, choose


def sampling(temperature, top_p=1.0):
    return Sampling(temperature, top_p, np.random.default_rng(0))


def test_uniform_logits_are_sampled_uniformly():
    law = sampling(1.0)
    counts = Counter(choose(np.zeros(4, np.float32), law) for _ in range(4000))
    assert set(counts) == {0, 1, 2, 3}
    # Five standard deviations of a binomial with p = 1/4.
    assert all(abs(count - 1000) < 5 * np.sqrt(4000 * 3 / 16) for count in counts.values())


def test_temperature_sharpens():
    logits = np.log(np.float32([0.6, 0.4]))
    law = sampling(0.5)
    share = np.mean([choose(logits, law) == 0 for _ in range(4000)])
    assert share == pytest.approx(0.36 / (0.36 + 0.16), abs=0.04)
    assert choose(logits, sampling(1e-300)) == 0


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.1, {2}), (0.5, {2}), (0.51, {2, 0}), (0.8, {2, 0}), (0.85, {2, 0, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    # In float64, as the logits are only those of float32: halves and quarters stay exact enough.
    logits = np.log(np.array([0.3, 0.075, 0.5, 0.125])).astype(np.float32)
    top_p += -1e-6 if top_p in (0.5, 0.8) else 0  # the sums are only as exact as float32 logits
    law = sampling(1.0, top_p)
    assert {choose(logits, law) for _ in range(500)} == kept


def test_top_p_breaks_ties_by_id():
    law = sampling(1.0, 0.5)
    assert {choose(np.zeros(4, np.float32), law) for _ in range(200)} == {0, 1}


def test_a_larger_logit_comes_first_however_little_the_probabilities_differ():
    law = sampling(1e12, 0.5)  # all probabilities are 1/4 in float64
    logits = np.float32([1, 2, 3, 4])
    assert {choose(logits, law) for _ in range(200)} == {3, 2}


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_an_error(wrong, temperature):
    with pytest.raises(LatticeqError, match=r"NaN or infinite numbers.*latticeq verify"):
        choose(np.float32([0, wrong, 1]), sampling(temperature))
