"""What a quantization will cost: memory from shapes, time from a short measurement.

The time counts floating-point operations and codewords, and divides by what this machine was just
measured to do; other programs on it, and everything that is not counted, make it an estimate.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from latticeq.model.config import LlamaConfig
from latticeq.model.plan import Options, PlannedTensor
from latticeq.quantizers.calibration import Hessian

__all__ = ["Estimate", "Speeds", "estimate", "measure_speeds"]

_PROGRAM_BYTES = 350 * 10**6  # the interpreter, libraries and compiled kernels
_EMBEDDING_S = 60e-9  # a weight of the int8 tables, in NumPy on one thread
_EXPONENTIAL_S = 1e-9  # a score of attention
_FLOPS = 4e9  # of a timed product
_HESSIAN_SIZE = 2048  # of the timed one, at most: the widest Hessian takes most of the time
_ENCODED_ROWS = 512


@dataclass(frozen=True)
class Speeds:
    """What this machine does in a second.

    Parameters
    ----------
    float32, float64 : float
        Floating-point operations: of a product with weights, and of gathering a Hessian.
    encoded : float
        Weights that are quantized without feedback.
    """

    float32: float
    float64: float
    encoded: float


@dataclass(frozen=True)
class Estimate:
    """What a quantization is expected to cost.

    Parameters
    ----------
    seconds : float
    memory_bytes : int
        The most that is resident at once, besides the mapped weights, which the system may drop.
    """

    seconds: float
    memory_bytes: int


def measure_speeds(options: Options, config: LlamaConfig) -> Speeds:
    """Time a few of the products that are to come, on random numbers: a second, once compiled.

    Parameters
    ----------
    options : Options
        Which code.
    config : LlamaConfig
        The shapes: speed depends on them.
    """
    width, wide = config.hidden_size, config.intermediate_size
    tokens = int(min(max(_FLOPS / (2 * width * wide), 64), options.calibration_context))
    rng = np.random.default_rng(0)
    states = rng.standard_normal((tokens, width), np.float32)
    weights = rng.standard_normal((width, wide), np.float32)
    inner = rng.standard_normal((tokens, min(wide, _HESSIAN_SIZE)), np.float32)
    hessian = Hessian(inner.shape[1])
    quantizer = options.quantizer()
    rows = rng.standard_normal((_ENCODED_ROWS, width))
    quantizer.quantize(rows[:64])  # compiles
    return Speeds(
        float32=2.0 * weights.size * tokens / _seconds(lambda: states @ weights),
        float64=inner.shape[1] * inner.size / _seconds(lambda: hessian.update(inner)),
        encoded=rows.size / _seconds(lambda: quantizer.quantize(rows)),
    )


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median of three times: the first may pay for starting threads."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[1]


def estimate(
    config: LlamaConfig, planned: list[PlannedTensor], options: Options, speeds: Speeds
) -> Estimate:
    """Estimate time and memory of a quantization from its plan.

    Parameters
    ----------
    config : LlamaConfig
    planned : list of PlannedTensor
    options : Options
    speeds : Speeds
    """
    linears = [row.shape for row in planned if row.name.startswith("model.layers.")]
    tables = [row.shape for row in planned if not row.name.startswith("model.layers.")]
    entries = sum(m * n for m, n in linears)
    seconds = entries / speeds.encoded
    if options.embedding == "int8":
        seconds += _EMBEDDING_S * sum(m * n for m, n in tables)
    if options.feedback == "ldlq":
        # Encoded once more without feedback, to show what it gains.
        seconds += entries / speeds.encoded + _calibration_seconds(config, linears, options, speeds)
    return Estimate(seconds, _memory(config, linears, tables, options))


def _inputs(config: LlamaConfig) -> list[int]:
    """Return the widths of a block's observed inputs: of qkv, o, gate and up, down."""
    attention = config.num_attention_heads * config.head_dim
    return [config.hidden_size, attention, config.hidden_size, config.intermediate_size]


def _calibration_seconds(
    config: LlamaConfig, linears: list[tuple[int, int]], options: Options, speeds: Speeds
) -> float:
    tokens, window = options.calibration_tokens, options.calibration_context
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    scores = tokens * window * heads * layers / 2  # causal: half of all pairs
    forward = 2.0 * tokens * sum(m * n for m, n in linears) + 4 * scores * config.head_dim
    # Symmetric products: half of the entries. Then for each linear a Cholesky factor, the feedback
    # and three losses of two products each.
    hessians = layers * tokens * sum(n * n for n in _inputs(config))
    feedback = sum(n**3 / 3 + 13.0 * m * n * n for m, n in linears)
    return (
        forward / speeds.float32 + (hessians + feedback) / speeds.float64 + scores * _EXPONENTIAL_S
    )


def _memory(
    config: LlamaConfig,
    linears: list[tuple[int, int]],
    tables: list[tuple[int, int]],
    options: Options,
) -> int:
    """Return the peak: either a table or a linear is being quantized, in float64 throughout."""
    calibration, square = 0, 0
    if options.feedback == "ldlq":
        width, wide = config.hidden_size, config.intermediate_size
        states = 4 * options.calibration_tokens * width
        activations = 4 * options.calibration_context * (3 * wide + 8 * width)
        hessians = 2 * 8 * sum(n * n for n in _inputs(config))  # their sums and their means
        calibration, square = states + activations + hessians, 6
    linear = max(8 * (8 * m * n + square * n * n) for m, n in linears)
    table = max((8 * 4 * m * n for m, n in tables), default=0)
    return _PROGRAM_BYTES + max(calibration + linear, table if options.embedding == "int8" else 0)
