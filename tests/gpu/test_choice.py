"""The choice of a token by the host, the device, and the device's text run on a CPU: one law.

What is to be chosen is reckoned in long double. Where a sum is as near to what it is compared with
as `latticeq.gpu.choice` states, the tokens on both sides are right.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import LatticeqError
from latticeq.gpu.choice import CONSTANTS, Chooser
from latticeq.gpu.device import cupy
from latticeq.model.sampling import Sampling, choose, not_numbers
from tests.gpu.on_cpu import address, build, needs_compiler

Choice = Callable[[np.ndarray, Sampling], int]

RUNS = """
extern "C" bool run(const float* logits, int count, double temperature, double top_p, double number,
                    double* weights, int* list, int* token) {
    blockDim = {THREADS, 1, 1};
    if (!run_block([&] { likeliest(logits, count, token); })) return false;
    if (temperature == 0) return true;
    for (blockIdx.x = 0; THREADS * blockIdx.x < count; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < THREADS; threadIdx.x++)
            weigh(logits, count, temperature, token, weights);
    return run_block([&] { draw(logits, weights, count, top_p, number, list, token); });
}
"""


class Number(np.random.Generator):
    """A generator that gives one number, and only once."""

    def __init__(self, number: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.left = [number]

    def random(self) -> float:
        return self.left.pop()


def by_device(logits: np.ndarray, sampling: Sampling) -> int:
    return Chooser()(cupy().asarray(logits), sampling)


def by_text(folder: Path) -> Choice:
    kernels = build(folder, "choose.cu", RUNS, neighbours=True, BITS=CONSTANTS["BITS"], THREADS=64)
    kernels.run.restype = ctypes.c_bool

    def run(logits: np.ndarray, sampling: Sampling) -> int:
        token, ids = np.empty(1, np.int32), np.empty(len(logits), np.int32)
        weights = np.full(len(logits), np.nan)
        number = 0.0 if sampling.is_greedy else sampling.number()
        numbers = (sampling.temperature, sampling.top_p, number)
        has_ended = kernels.run(
            address(logits), len(logits), *map(ctypes.c_double, numbers), address(weights),
            address(ids), address(token),
        )  # fmt: skip
        assert has_ended
        if token[0] < 0:
            raise not_numbers()
        return int(token[0])

    return run


@pytest.fixture(
    scope="module",
    params=[
        "host",
        pytest.param("text", marks=needs_compiler),
        pytest.param("device", marks=pytest.mark.gpu),
    ],
)
def chosen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Choice:
    if request.param == "text":
        return by_text(tmp_path_factory.mktemp("choice"))
    return {"host": choose, "device": by_device}[request.param]


def right(logits: np.ndarray, temperature: float, top_p: float, number: float) -> set[int]:
    """Return the tokens that may be chosen: one, unless a sum is within the bound."""
    bound = np.longdouble(len(logits) + 100) * 2.0**-52
    order = np.argsort(-logits, kind="stable")
    scaled = logits[order].astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        exponents = (scaled - scaled[0]) / temperature
        sums = np.cumsum(np.exp(exponents.astype(np.longdouble)))
        last = int((np.exp(exponents) > 0).sum()) - 1  # what weighs nothing is never drawn
    reached = sums[-1] * np.longdouble(top_p) * np.array([1 - bound, 1 + bound])
    ends = np.minimum(np.searchsorted(sums, reached, side="left"), last)  # of the nucleus
    drawn = sums[ends] * np.longdouble(number) * np.array([1 - bound, 1 + bound])
    first, final = np.minimum(np.searchsorted(sums, drawn, side="right"), ends)
    return set(order[first : final + 1].tolist())


def check_token(
    chosen: Choice, logits: np.ndarray, temperature: float, top_p: float, number: float
) -> None:
    sampling = Sampling(temperature, top_p, Number(number))
    assert chosen(logits, sampling) in right(logits, temperature, top_p, number)
    assert sampling.rng.left == []  # one number was taken


FINITE = st.floats(-(2.0**127), 2.0**127, width=32)
NUMBERS = st.floats(0, 1, exclude_max=True)


@given(
    logits=st.one_of(
        st.lists(FINITE, min_size=1, max_size=40),
        st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, -30.0]), min_size=1, max_size=300),
    ),
    temperature=st.one_of(st.floats(0.05, 5), st.floats(0, 1e300, exclude_min=True)),
    top_p=st.one_of(st.just(1.0), st.floats(0, 1, exclude_min=True)),
    number=NUMBERS,
)
def test_a_number_stands_for_its_token(chosen, logits, temperature, top_p, number):
    check_token(chosen, np.array(logits, np.float32), temperature, top_p, number)


@given(st.lists(FINITE, min_size=1, max_size=200))
def test_greedy_takes_the_first_of_the_largest_and_draws_nothing(chosen, logits):
    values = np.array(logits, np.float32)
    sampling = Sampling(rng=Number(0.5))
    assert chosen(values, sampling) == int(np.argmax(values))
    assert sampling.rng.left == [0.5]


@pytest.mark.parametrize("size", [1, 2, 31, 511, 513, 2000, 49152])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.95), (1.0, 1.0), (3.0, 0.999)])
def test_vocabularies_of_every_size(chosen, size, temperature, top_p, request):
    is_host = "host" in request.node.name
    rng = np.random.default_rng([size, int(10 * temperature)])
    logits = (2 * rng.standard_normal(size)).astype(np.float32)
    certain, repeats = 0, 50 if is_host else 8  # sanitizers are slow
    for number in rng.random(repeats):
        check_token(chosen, logits, temperature, top_p, number)
        certain += len(right(logits, temperature, top_p, number)) == 1
    assert certain >= repeats - 1  # the bound is no excuse


def test_equal_logits_are_drawn_by_id(chosen):
    logits = np.full(1000, -7.25, np.float32)
    for number in (0.0, 0.1234, 0.5005, 0.9999):
        sampling = Sampling(0.3, 1.0, Number(number))
        assert chosen(logits, sampling) == int(number * 1000)
    four = np.zeros(4, np.float32)
    assert {chosen(four, Sampling(1.0, 0.5, Number(n / 8))) for n in range(8)} == {0, 1}


def test_zeros_of_both_signs_are_equal(chosen):
    logits = np.array([-0.0, 0.0, -0.0, 0.0], np.float32)
    assert chosen(logits, Sampling()) == 0
    for number in np.arange(16) / 16:  # quarters are exact: each is the next token's
        assert chosen(logits, Sampling(1.0, 1.0, Number(number))) == int(4 * number)


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
def test_a_tiny_nucleus_or_temperature_leaves_the_likeliest(chosen, number):
    logits = np.random.default_rng(5).standard_normal(700).astype(np.float32)
    best = int(np.argmax(logits))
    for temperature, top_p in ((1.0, 1e-9), (1.0, 1e-320), (1e-9, 1.0), (1e-320, 0.9)):
        assert chosen(logits, Sampling(temperature, top_p, Number(number))) == best
    logits[123] = 3e38  # far beyond all others
    assert chosen(logits, Sampling(5.0, 1.0, Number(number))) == 123
    logits[:] = -3e38
    logits[3] = 3e38
    assert chosen(logits, Sampling(1.0, 1.0, Number(number))) == 3


@pytest.mark.parametrize("lowest", [0.3, 1.0])
def test_no_number_leads_out_of_the_nucleus(chosen, lowest):
    """The last number before 1 is nearer to the end than sums are exact."""
    rng = np.random.default_rng(11)
    for top_p in rng.uniform(lowest, 1, 60):
        logits = (2 * rng.standard_normal(250)).astype(np.float32)
        logits[:40] = -1e4  # weighs nothing, and is never drawn
        allowed = right(logits, 1.0, top_p, 1 - 2**-53)
        assert not allowed & set(range(40))
        check_token(chosen, logits, 1.0, top_p, 1 - 2**-53)


@pytest.mark.parametrize("wrong", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("place", [0, 1, 599])
def test_what_is_no_number_is_an_error(chosen, wrong, temperature, place):
    logits = np.random.default_rng(5).standard_normal(600).astype(np.float32)
    logits[place] = wrong
    with pytest.raises(LatticeqError, match=r"NaN or infinite numbers.*latticeq verify"):
        chosen(logits, Sampling(temperature, 0.9, Number(0.5)))


@needs_compiler
def test_threads_that_wait_in_vain_are_seen(tmp_path):
    """The tests of the text would pass over a kernel that hangs, were it not for this."""
    extra = """
    extern "C" bool meets(bool everywhere) {
        blockDim = {64, 1, 1};
        return run_block([&] {
            if (everywhere || threadIdx.x % 2) __syncthreads();
            else __syncwarp();
        });
    }
    """
    meets = build(tmp_path, "reduce.cuh", extra, neighbours=True).meets
    meets.restype = ctypes.c_bool
    assert [meets(everywhere) for everywhere in (True, False)] == [True, False]
