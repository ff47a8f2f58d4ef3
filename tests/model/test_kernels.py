"""The element-wise kernels equal float64 NumPy within stated bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference.llama
from latticeq.jit import IS_JIT, kernel, set_threads, threads
from latticeq.model.attention import attend_heads, tiled
from latticeq.model.config import LlamaConfig
from latticeq.model.kernels import exp, exp_lanes, nll_rows, rms_norm, rotate, swiglu
from latticeq.model.rope import frequencies, rotary
from latticeq.simd import load, store
from tests.tiny_llama import CONFIGS


@kernel
def exp_all(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


def test_exp_is_accurate_over_its_range():
    x = np.linspace(-87, 88, 100_001 if IS_JIT else 1001).astype(np.float32)
    out = np.empty_like(x)
    exp_all(x, out)
    true = np.exp(x.astype(np.float64))
    assert (np.abs(out - true) / true).max() < 3e-7


def test_exp_saturates_instead_of_overflowing():
    x = np.array([-np.inf, -1e30, -100, 100, np.inf], np.float32)
    out = np.empty_like(x)
    exp_all(x, out)
    assert (out[:3] < 2e-38).all()
    assert (out[3:] > 1e38).all()
    assert np.isfinite(out).all()


def test_exp_of_zero_is_one():
    out = np.empty(2, np.float32)
    exp_all(np.array([0.0, -0.0], np.float32), out)
    np.testing.assert_array_equal(out, 1)


@kernel
def exp_by_lanes(x, out):
    for i in range(0, x.size, 16):
        store(out, i, exp_lanes(load(x, i)))


def test_exp_of_lanes_is_accurate_and_saturates():
    x = np.linspace(-87, 88, 100_000 if IS_JIT else 1600).astype(np.float32)
    out = np.empty_like(x)
    exp_by_lanes(x, out)
    true = np.exp(x.astype(np.float64))
    assert (np.abs(out - true) / true).max() < 3e-7
    edges = np.tile(np.float32([-np.inf, -1e30, -0.0, 0.0, 1e30, np.inf, -100, 100]), 2)
    exp_by_lanes(edges, out[:16])
    assert (out[[0, 1, 6]] < 2e-38).all()
    np.testing.assert_array_equal(out[2:4], 1)
    assert (out[[4, 5, 7]] > 1e38).all()
    assert np.isfinite(out[:16]).all()


def test_exp_of_lanes_keeps_what_is_not_a_number():
    x = np.zeros(16, np.float32)
    x[3] = np.nan
    out = np.empty_like(x)
    exp_by_lanes(x, out)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(x))


@pytest.mark.skipif(not IS_JIT, reason="needs threads")
def test_tokens_do_not_depend_on_threads_or_on_each_other(rng):
    x, gate, logits = (rng.standard_normal((37, n)).astype(np.float32) for n in (90, 91, 200))
    weight, turn = rng.standard_normal(90).astype(np.float32), rng.standard_normal(16)
    targets = rng.integers(0, 200, 37)

    def results(rows):
        normed, up, turned = np.empty_like(x[rows]), gate[rows][:, ::-1].copy(), x[rows].copy()
        mixed, nll = gate[rows].copy(), np.empty(len(normed))
        rms_norm(x[rows], weight, 1e-5, normed)
        swiglu(mixed, up)
        heads = turned[:, :64].reshape(-1, 2, 32).copy()
        positions = np.arange(37)[rows, None] * turn
        rotate(heads, np.cos(positions).astype(np.float32), np.sin(positions).astype(np.float32))
        nll_rows(logits[rows].copy(), targets[rows], nll)
        return normed, mixed, heads, nll

    before = threads()
    whole = results(slice(None))
    try:
        set_threads(1)
        alone = results(slice(None))
    finally:
        set_threads(before)
    single = [results(slice(t, t + 1)) for t in range(37)]
    for part, expected in enumerate(whole):
        np.testing.assert_array_equal(alone[part], expected)
        np.testing.assert_array_equal(np.concatenate([one[part] for one in single]), expected)


@given(
    n_tokens=st.integers(1, 3),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_rms_norm(n_tokens, width, scale, seed):
    rng = np.random.default_rng(seed)
    x = (scale * rng.standard_normal((n_tokens, width))).astype(np.float32)
    weight = rng.standard_normal(width).astype(np.float32)
    out = np.empty_like(x)
    rms_norm(x, weight, 1e-5, out)
    expected = reference.llama.rms_norm(x.astype(np.float64), weight, 1e-5)
    np.testing.assert_allclose(out, expected, rtol=4e-7)


def test_rms_norm_survives_a_massive_entry():
    x = np.full((1, 1000), 1e-3, np.float32)
    x[0, 0] = 1e4
    out = np.empty_like(x)
    rms_norm(x, np.ones(1000, np.float32), 1e-5, out)
    assert np.mean(out.astype(np.float64) ** 2) == pytest.approx(1, rel=1e-6)


def test_swiglu(rng):
    gate = np.concatenate([rng.standard_normal(50) * 5, [-1e4, -90, 0, 90, 1e4]])
    gate = gate.astype(np.float32)[None]
    up = rng.standard_normal(gate.shape).astype(np.float32)
    expected = reference.llama.silu(np.maximum(gate.astype(np.float64), -700)) * up
    swiglu(gate, up)
    np.testing.assert_allclose(gate, expected, rtol=1e-6, atol=1e-33)


@pytest.mark.parametrize("name", ["llama", "linear_rope", "llama3_rope", "wide_heads"])
def test_rotations_equal_the_reference(name, rng):
    config = CONFIGS[name]
    turn = frequencies(LlamaConfig.from_dict(config))
    np.testing.assert_allclose(turn, reference.llama.frequencies(config), rtol=1e-6)
    x = rng.standard_normal((9, 3, config["head_dim"])).astype(np.float32)
    expected = reference.llama.rope(x.astype(np.float64), turn)
    later = x[4:].copy()
    rotate(x, *rotary(turn, 0, 9))
    np.testing.assert_allclose(x, expected, atol=2e-6)
    rotate(later, *rotary(turn, 4, 5))
    np.testing.assert_array_equal(later, x[4:])


def test_llama3_frequencies_have_three_regimes():
    config = LlamaConfig.from_dict(CONFIGS["llama3_rope"])
    plain = frequencies(LlamaConfig.from_dict(CONFIGS["llama"] | {"rope_theta": 500000.0}))
    ratio = plain / frequencies(config)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(8)
    assert (np.diff(ratio) >= 0).all()


@given(
    n_tokens=st.sampled_from([1, 1, 2, 19]),
    start=st.integers(0, 150 if IS_JIT else 20),
    heads=st.sampled_from([(1, 1), (2, 2), (6, 2), (3, 1)]),
    width=st.sampled_from([2, 6, 8, 64]),
    scale=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_attention_equals_the_reference(n_tokens, start, heads, width, scale, seed):
    rng = np.random.default_rng(seed)
    seen = start + n_tokens
    q = rng.standard_normal((seen, heads[0], width)) * scale
    k, v = rng.standard_normal((2, seen, heads[1], width))
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    expected = reference.llama.attention(*(x.astype(np.float64) for x in (q, k, v)))[start:]

    # What lies behind the written positions is whatever memory held: it must not matter.
    def read(g):
        keys, mixed = tiled(k[:, g], v[:, g])
        keys.transpose(0, 2, 1).reshape(-1, width)
        mixed[seen:] = np.nan
        return keys, mixed

    out = attend_heads(q[start:], heads[1], read, start)
    # Scores of size `scale` carry errors of scale * 2**-20, which exp turns into relative errors.
    np.testing.assert_allclose(out, expected.reshape(n_tokens, -1), atol=3e-6 * (1 + scale))


@given(
    vocabulary=st.integers(1, 200), scale=st.sampled_from([0.0, 1.0, 1e3]), seed=st.integers(0, 9)
)
def test_nll_rows(vocabulary, scale, seed):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((3, vocabulary))).astype(np.float32)
    targets = rng.integers(0, vocabulary, 3)
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1, keepdims=True)
    expected = np.log(np.exp(wide - largest).sum(axis=1)) + largest[:, 0] - wide[range(3), targets]
    out = np.empty(3, np.float64)
    nll_rows(logits, targets, out)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
