"""Generation on models that have no weights: what is chosen, and when it ends."""

import numpy as np
import pytest

from latticeq.errors import InputError, LatticeqError
from latticeq.model.generate import generate
from latticeq.model.loader import load
from latticeq.model.sampling import Sampling
from latticeq.model.token_cache import Decoder, TokenCache
from tests.tiny_llama import CONFIGS, random_ids, random_weights, write_folder


class Given(list):
    """What a model was given; a cache to `generate`."""

    def truncate(self, length):
        assert length <= len(self)
        del self[length:]


class Fixed(Decoder):
    """A model whose logits are the same after every token; it notes what it was given."""

    def __init__(self, logits, context=100):
        self.logits = np.asarray(logits, np.float32)
        self.context = context
        self.given = Given()
        self.n_taken_in = 0
        self.capacity = None

    def new_cache(self, context=None):
        self.capacity = self.context if context is None else context
        return self.given

    def prefill(self, ids, cache):
        cache.extend(ids)
        self.n_taken_in += len(ids)
        assert len(cache) <= self.capacity
        return self.logits

    def decode_step(self, token, cache):
        return self.prefill([token], cache)


class Counting(Fixed):
    """A model that is sure that each token is followed by the next number."""

    def prefill(self, ids, cache):
        super().prefill(ids, cache)
        return np.eye(len(self.logits), dtype=np.float32)[(ids[-1] + 1) % len(self.logits)]


def run(*args, **options):
    """Return the tokens and why they ended."""
    generator, tokens = generate(*args, **options), []
    while True:
        try:
            tokens.append(next(generator))
        except StopIteration as end:
            return tokens, end.value


def test_greedy_follows_the_model():
    model = Counting(np.zeros(50))
    assert run(model, [3, 4], max_tokens=5) == ([5, 6, 7, 8, 9], "length")
    assert model.given == [3, 4, 5, 6, 7, 8]  # the last token is not fed back


def test_greedy_takes_the_first_of_equals():
    assert run(Fixed(np.zeros(9)), [1], max_tokens=2) == ([0, 0], "length")


def test_a_stop_id_ends_and_is_not_yielded():
    assert run(Counting(np.zeros(50)), [3], stop_ids={6, 40}) == ([4, 5], "stop")
    assert run(Counting(np.zeros(50)), [3], stop_ids=frozenset([4])) == ([], "stop")


@pytest.mark.parametrize("length", [1, 7, 19])
def test_a_full_context_ends(length):
    model = Counting(np.zeros(50), context=20)
    tokens, reason = run(model, list(range(length)), max_tokens=100)
    assert reason == "context"
    assert len(model.given) == 20  # every place is used
    assert len(tokens) == 20 - length + 1


def test_a_generation_that_just_fits_ends_by_length():
    model = Counting(np.zeros(50), context=20)
    assert run(model, [0], max_tokens=20)[1] == "length"


def test_a_long_prompt_is_taken_in_whole():
    model = Counting(np.zeros(50), context=2000)
    prompt = [int(i) for i in np.arange(1300) % 50]
    assert run(model, prompt, max_tokens=1)[0] == [(prompt[-1] + 1) % 50]
    assert model.given == prompt


def test_a_kept_cache_takes_in_only_what_is_new():
    model = Counting(np.zeros(50))
    cache = TokenCache(model)
    assert run(model, [3, 4], max_tokens=3, cache=cache) == ([5, 6, 7], "length")
    assert cache.ids == (3, 4, 5, 6)
    model.n_taken_in = 0
    assert run(model, [3, 4, 5, 9], max_tokens=2, cache=cache) == ([10, 11], "length")
    assert model.given == [3, 4, 5, 9, 10]
    assert model.n_taken_in == 2
    assert run(model, [3, 4], max_tokens=1, cache=cache) == ([5], "length")
    assert model.given == [3, 4]  # the last token of a prompt is always taken in
    assert model.n_taken_in == 3


def test_a_generation_is_interrupted_between_tokens():
    model = Counting(np.zeros(50))
    asked = iter([False, False, True])  # after the prompt, and after each token
    assert run(model, [3], interrupted=lambda: next(asked)) == ([4, 5], "interrupted")
    assert model.given == [3, 4]


def test_a_long_prompt_is_interrupted_between_its_parts():
    model = Counting(np.zeros(50), context=2000)
    cache = TokenCache(model)
    asked = iter([False, True])
    options = {"cache": cache, "interrupted": lambda: next(asked)}
    assert run(model, [1] * 1300, **options) == ([], "interrupted")
    assert cache.ids == (1,) * 1024


def test_a_random_generator_goes_on_drawing():
    rng = np.random.default_rng(5)
    model = Fixed(np.zeros(1000))
    whole = run(model, [1], max_tokens=20, temperature=1.0, seed=5)[0]
    cache, tokens = TokenCache(model), []
    for _ in range(4):
        prompt = [1, *tokens]
        options = {"max_tokens": 5, "temperature": 1.0, "seed": rng, "cache": cache}
        tokens += run(model, prompt, **options)[0]
    assert tokens == whole


def test_a_seed_repeats_and_another_differs():
    model = Fixed(np.zeros(1000))
    runs = [
        run(model.__class__(model.logits), [1], max_tokens=20, temperature=1.0, seed=seed)[0]
        for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_model_that_chooses_is_asked_to():
    class Choosing(Counting):
        def next_token(self, ids, cache, sampling):
            assert sampling == Sampling(0.5, 0.25, sampling.rng)
            super().prefill(ids, cache)
            return (ids[-1] + 2) % 50

    model = Choosing(np.zeros(50))
    assert run(model, [3], max_tokens=3, temperature=0.5, top_p=0.25) == ([5, 7, 9], "length")
    assert model.given == [3, 5, 7]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt has 0 tokens; it must have from 1 to 99"),
        ([1] * 100, {}, "the prompt has 100 tokens"),
        ([1], {"max_tokens": 0}, "max_tokens is 0"),
        ([1], {"temperature": -1}, "temperature is -1"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"top_p": 0}, "top_p is 0"),
        ([1], {"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_errors_come_before_any_work(prompt, options, message):
    model = Fixed(np.zeros(3))
    with pytest.raises(InputError, match=message):
        generate(model, prompt, **options)
    assert model.capacity is None


def test_logits_that_are_not_numbers_are_an_error():
    with pytest.raises(LatticeqError, match="NaN"):
        run(Fixed([0, np.nan]), [1])


def test_a_real_model_generates_what_its_logits_say(tmp_path):
    config = CONFIGS["tied"]
    model = load(write_folder(tmp_path, config, random_weights(config)))
    prompt = random_ids(config, 4).tolist()
    tokens = model.generate(prompt, max_tokens=4)
    whole = model.logits(prompt + tokens)
    assert tokens == whole[3:-1].argmax(axis=1).tolist()
