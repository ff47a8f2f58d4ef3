"""Smoothing and calibration streams: what they leave alone, and what they change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import reference.llama
from latticeq.model.calibrate import STAGES, Stream, block_statistics
from latticeq.model.config import LlamaConfig
from latticeq.model.engine import HostEngine
from latticeq.model.kv.cache import FloatCache
from latticeq.model.llama import BLOCK_LINEARS, BLOCK_NORMS
from latticeq.model.quantize_block import float_block
from latticeq.model.smoothing import BlockTensors, smooth, smoothing_scale
from tests.tiny_llama import CONFIGS, random_weights

PREFIX = "model.layers.0."


def tensors_of(config: dict[str, Any], weights: dict[str, Any]) -> BlockTensors:
    return BlockTensors(
        {name: weights[f"{PREFIX}{name}.weight"] for name in BLOCK_LINEARS},
        {name: weights[f"{PREFIX}{name}.weight"] for name in BLOCK_NORMS},
        {
            name: weights[f"{PREFIX}{name}.bias"]
            for name in BLOCK_LINEARS
            if f"{PREFIX}{name}.bias" in weights
        },
    )


@pytest.fixture(params=["llama", "mha", "biased", "wide_heads", "qwen2"])
def tiny(request: pytest.FixtureRequest) -> Any:
    """A block's tensors, its configuration, windows, and the raw weights."""
    raw = CONFIGS[request.param]
    weights = random_weights(raw)
    config = LlamaConfig.from_dict(raw)
    rng = np.random.default_rng(0)
    windows = [rng.normal(size=(7, 48)).astype(np.float32) for _ in range(3)]
    windows[1][:, 5] *= 30  # a loud channel
    return tensors_of(raw, weights), config, windows, weights, raw


def outputs(
    tensors: BlockTensors, config: LlamaConfig, windows: list[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    stream = Stream(config, [window.copy() for window in windows])
    stream.run(float_block(tensors, config, HostEngine()), FloatCache(config, 7, layers=1))
    return stream.hidden


def test_a_stream_does_what_the_block_does(tiny: Any) -> None:
    tensors, config, windows, weights, raw = tiny
    for window, found in zip(windows, outputs(tensors, config, windows), strict=True):
        wanted = reference.llama.block(window.astype(np.float64), weights, PREFIX[:-1], raw)
        np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())


def test_smoothing_changes_no_output(tiny: Any) -> None:
    tensors, config, windows, _, _ = tiny
    found = block_statistics(float_block(tensors, config, HostEngine()), windows, config)
    smoothed = smooth(tensors, found.squares, config, 0.5)
    assert not np.allclose(smoothed.linears["mlp.up_proj"], tensors.linears["mlp.up_proj"])
    before, after = outputs(tensors, config, windows), outputs(smoothed, config, windows)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(other, one, atol=2e-4 * np.abs(one).max())


def test_smoothing_evens_out_what_tokens_and_columns_hold(tiny: Any) -> None:
    tensors, config, windows, _, _ = tiny

    def cost(one: BlockTensors) -> dict[str, float]:
        squares = block_statistics(float_block(one, config, HostEngine()), windows, config).squares
        columns = {
            names[0]: sum(np.square(one.linears[name]).sum() for name in names) for names in STAGES
        }
        return {name: squares[name].sum() * columns[name] for name in squares}

    found = block_statistics(float_block(tensors, config, HostEngine()), windows, config)
    before, after = cost(tensors), cost(smooth(tensors, found.squares, config, 0.5))
    assert all(after[name] < before[name] for name in before if name != "self_attn.o_proj")
    assert after["self_attn.o_proj"] < 1.001 * before["self_attn.o_proj"]


def test_statistics_are_means_over_all_tokens(tiny: Any) -> None:
    tensors, config, windows, weights, raw = tiny
    given = [window.copy() for window in windows]
    found = block_statistics(float_block(tensors, config, HostEngine()), windows, config)
    assert all(np.array_equal(a, b) for a, b in zip(given, windows, strict=True))
    rows = np.concatenate(windows)
    norm = reference.llama.rms_norm(
        rows, weights[f"{PREFIX}input_layernorm.weight"], raw["rms_norm_eps"]
    )
    wanted = np.square(norm).mean(axis=0)
    np.testing.assert_allclose(found.squares["self_attn.q_proj"], wanted, rtol=1e-4)
    assert found.key_mean.shape == (config.num_key_value_heads, config.head_dim)


def test_scales_do_not_break_on_dead_channels() -> None:
    scale = smoothing_scale(np.array([0.0, 1.0, 4.0]), np.array([1.0, 0.0, 2.0]), 0.5)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert np.isclose(np.log(scale).mean(), 0, atol=1e-6)
    assert np.array_equal(smoothing_scale(np.ones(4), np.arange(4.0), 0.0), np.ones(4))
    assert np.array_equal(smoothing_scale(np.zeros(2), np.zeros(2), 0.5), np.ones(2))
