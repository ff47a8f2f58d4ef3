"""Perplexity follows its protocol on models whose likelihoods are known."""

import numpy as np
import pytest

from latticeq.errors import InputError, LatticeqError
from latticeq.model.loader import load
from latticeq.model.perplexity import perplexity
from tests.tiny_llama import CONFIGS, random_ids, random_weights, write_folder


class Cache:
    length = 0

    def clear(self):
        self.length = 0


class Scripted:
    """A model that gives target t the likelihood exp(-nll(t)), and checks how it is asked."""

    bits_per_weight = 4.25

    def __init__(self, nll):
        self.likelihood = np.vectorize(nll, otypes=[np.float64])

    def new_cache(self, context=None):
        return Cache()

    def hidden(self, ids, cache):
        assert cache.length == 0
        cache.length = len(ids)
        return np.asarray(ids, np.float32)[:, None]

    def nll(self, hidden, targets):
        assert len(hidden) == len(targets)
        return self.likelihood(targets)


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    result = perplexity(Scripted(lambda _: np.log(64)), np.zeros(100, int), context=10)
    assert result.perplexity == pytest.approx(64, rel=1e-14)
    assert result.perplexity_second_half == pytest.approx(64, rel=1e-14)
    assert result.stderr == pytest.approx(0, abs=1e-12)
    assert (result.tokens, result.windows) == (90, 10)
    assert result.bits_per_weight == 4.25


def test_windows_do_not_overlap_and_the_tail_is_dropped():
    seen = []
    model = Scripted(lambda target: seen.append(int(target)) or 1.0)
    perplexity(model, np.arange(11), context=4)
    assert seen == [1, 2, 3, 5, 6, 7]


def test_windows_that_are_measured_are_not_measured_again():
    model, ids = Scripted(lambda target: 1 + target / 100), np.arange(70)
    every, rest = [], []
    wanted = perplexity(model, ids, context=16, report=every.append)
    found = perplexity(model, ids, context=16, measured=every[:2], report=rest.append)
    assert found == wanted
    assert (len(every), rest) == (4, every[2:])
    assert perplexity(model, ids, context=16, windows=1, measured=every).windows == 1


def test_value_and_standard_error_over_windows():
    means = np.array([1.0, 2.0, 4.0])
    ids = np.repeat([0, 1, 2], 5)
    result = perplexity(Scripted(lambda target: means[int(target)]), ids, context=5)
    assert result.perplexity == pytest.approx(np.exp(means.mean()))
    expected = np.exp(means.mean()) * means.std(ddof=1) / np.sqrt(3)
    assert result.stderr == pytest.approx(expected)
    first = perplexity(Scripted(lambda target: means[int(target)]), ids, context=5, windows=1)
    assert first.perplexity == pytest.approx(np.e)
    assert first.windows == 1
    assert first.as_dict()["stderr"] is None


@pytest.mark.parametrize(("context", "scored"), [(8, [5, 6, 7]), (9, [5, 6, 7, 8]), (2, [1])])
def test_the_second_half_has_half_a_window_before_it(context, scored):
    model = Scripted(lambda target: 2.0 if target in scored else 1.0)
    result = perplexity(model, np.arange(context), context=context)
    assert result.perplexity_second_half == pytest.approx(np.exp(2.0))
    if context > 2:
        assert result.perplexity < result.perplexity_second_half


def test_a_real_model_equals_its_own_logits(tmp_path):
    config = CONFIGS["llama"]
    model = load(write_folder(tmp_path, config, random_weights(config)))
    ids = random_ids(config, 13)
    result = perplexity(model, ids.tolist(), context=6)
    nll = []
    for window in (ids[:6], ids[6:12]):
        logits = model.logits(window).astype(np.float64)[:-1]
        logs = np.log(np.exp(logits).sum(axis=1))
        nll.append(logs - logits[np.arange(5), window[1:]])
    assert result.perplexity == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    assert result.bits_per_weight == 32


def test_the_bar_shows_the_running_value(capsys):
    perplexity(Scripted(lambda _: 0.0), np.zeros(8, int), context=4, progress=True)
    shown = capsys.readouterr()
    assert "perplexity" in shown.err
    assert "1.000" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 1}, "context is 1"),
        ({"windows": 0}, "windows is 0"),
        ({"context": 11}, "the text has 10 tokens, less than one window of 11"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(InputError, match=message):
        perplexity(Scripted(lambda _: 1.0), np.zeros(10, int), **options)


def test_likelihoods_that_are_not_numbers_are_an_error():
    model = Scripted(lambda target: np.inf if target == 7 else 1.0)
    with pytest.raises(LatticeqError, match="window 1"):
        perplexity(model, np.arange(8), context=4)
