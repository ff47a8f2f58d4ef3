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
from numpy.typing import NDArray

from latticeq.model.config import LlamaConfig
from latticeq.model.engine import TIMED_FLOPS, Engine
from latticeq.model.fitting import FITTED_BLOCKS, FITTED_WINDOWS
from latticeq.model.options import Options
from latticeq.model.plan import TABLE_CHUNK, PlannedTensor
from latticeq.model.quantize_block import STATISTICS_WINDOWS

__all__ = ["Estimate", "Speeds", "estimate", "measure_speeds"]

_PROGRAM_BYTES = 350 * 10**6  # the interpreter, libraries and compiled kernels
_EMBEDDING_S = 60e-9  # a weight of the int8 tables, in NumPy on one thread
_EXPONENTIAL_S = 1e-9  # a score of attention
_MOMENT_SIZE = 2048  # of the timed one, at most: the widest moment takes most of the time
_ENCODED_ROWS = 512
_FIT_TRIALS = 100  # times that a search encodes its blocks, about


@dataclass(frozen=True)
class Speeds:
    """What this machine does in a second.

    Parameters
    ----------
    float32, moment, float64 : float
        Floating-point operations: of a product with weights, of gathering a moment E[x yᵀ], and of
        error feedback.
    encoded : float
        Weights that are quantized without feedback.
    """

    float32: float
    moment: float
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


def measure_speeds(options: Options, config: LlamaConfig, engine: Engine) -> Speeds:
    """Time a few of the products that are to come, on random numbers: a second, once compiled.

    Parameters
    ----------
    options : Options
        Which code.
    config : LlamaConfig
        The shapes: speed depends on them.
    engine : Engine
        What will do the work.
    """
    width, wide = config.hidden_size, config.intermediate_size
    tokens = int(min(max(engine.timed_flops / (2 * width * wide), 64), options.calibration_context))
    more = int(engine.timed_flops / TIMED_FLOPS)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((tokens, width), np.float32)
    weights = rng.standard_normal((wide, width), np.float32)
    inner = rng.standard_normal((tokens, min(wide, more * _MOMENT_SIZE)), np.float32)
    other = inner[::-1].copy()
    moment, linear = engine.moment(inner.shape[1]), engine.linear(weights, None)
    quantizer = options.quantizer()
    rows = rng.standard_normal((_ENCODED_ROWS, width), np.float32)
    rows = np.tile(rows, (min(more, -(-wide // _ENCODED_ROWS)), 1))

    def encode(rows: NDArray[np.float32]) -> object:
        return engine.quantize(quantizer, rows, None, options.damping)

    encode(rows[:64])  # compiles
    return Speeds(
        float32=2.0 * weights.size * tokens / _seconds(lambda: linear(states)),
        moment=2.0 * inner.shape[1] * inner.size / _seconds(lambda: moment.update(inner, other)),
        float64=2.0 * wide * width * width / engine.double_seconds(wide, width),
        encoded=rows.size / _seconds(lambda: encode(rows)),
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
    config: LlamaConfig,
    planned: list[PlannedTensor],
    options: Options,
    speeds: Speeds,
    *,
    on_device: bool = False,
) -> Estimate:
    """Estimate time and memory of a quantization from its plan.

    Parameters
    ----------
    config : LlamaConfig
    planned : list of PlannedTensor
    options : Options
    speeds : Speeds
    on_device : bool
        Whether moments, factors and what a matrix is made of lie in a device's memory, which is not
        counted.
    """
    linears = [row.shape for row in planned if row.name.startswith("model.layers.")]
    tables = [row.shape for row in planned if not row.name.startswith("model.layers.")]
    entries = sum(m * n for m, n in linears)
    seconds = entries / speeds.encoded
    if options.embedding == "int8":
        seconds += _EMBEDDING_S * sum(m * n for m, n in tables)
    if options.fits_scales:
        seconds += len(options.scale_kinds) * _FIT_TRIALS * 8 * FITTED_BLOCKS / speeds.encoded
    if options.is_calibrated:
        seconds += _calibration_seconds(config, linears, options, speeds)
    return Estimate(seconds, _memory(config, linears, tables, options, on_device))


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
    seconds = forward / speeds.float32 + scores * _EXPONENTIAL_S
    products = layers * tokens * sum(n * n for n in _inputs(config))
    entries = sum(m * n for m, n in linears)
    is_aware = options.feedback == "qa-ldlq"
    # The float model, the quantized one, and the first windows once more for statistics.
    share = min(STATISTICS_WINDOWS * window / tokens, 1.0)
    has_statistics = bool(options.smooths or options.centres_keys)
    passes = 1 + is_aware + share * has_statistics
    if options.fits_scales and (options.regime != "w" or options.smooths):
        passes += min(FITTED_WINDOWS * window / tokens, 1.0) * (1 + has_statistics)
    seconds *= passes
    if options.feedback != "none":
        # A symmetric moment is half the work of another. Then for each linear a Cholesky factor,
        # the feedback, and three losses; encoded once more without feedback, to show what it gains.
        seconds += (3 if is_aware else 1) * products / speeds.moment + entries / speeds.encoded
        seconds += sum(n**3 / 3 + 4.0 * m * n * n for m, n in linears) / speeds.float64
        seconds += sum(8.0 * m * n * n for m, n in linears) / speeds.float32
    if options.regime == "w+kv+a":
        coded = tokens * layers * sum(_inputs(config))
        seconds += (1 + is_aware) * coded / speeds.encoded
    return seconds


def _memory(
    config: LlamaConfig,
    linears: list[tuple[int, int]],
    tables: list[tuple[int, int]],
    options: Options,
    on_device: bool,
) -> int:
    """Return the peak: either a table or a linear is being quantized, in float64 throughout."""
    calibration, square = 0, 0
    if options.is_calibrated:
        width, wide = config.hidden_size, config.intermediate_size
        streams = 2 if options.feedback == "qa-ldlq" else 1
        # Of all tokens the residual stream and the widest input; of one window what a block makes.
        states = 4 * options.calibration_tokens * (width + wide + max(width, wide)) * streams
        activations = 4 * options.calibration_context * (3 * wide + 8 * width)
        moments = 0 if on_device else (8 + 4) * streams * max(n * n for n in _inputs(config))
        calibration, square = states + activations + moments, 6
    linear = max(8 * (8 * m * n + square * n * n) for m, n in linears)
    if on_device:  # the floats of a block and its bytes; of one matrix digits, before and after
        block = sum(m * n for m, n in linears) // config.num_hidden_layers
        linear = 5 * block + 4 * max(m * n for m, n in linears)
    # Every table's bytes until they are written; of one its values too, and floats of some rows.
    sizes = [m * n for m, n in tables] if options.embedding == "int8" else []
    most = max(sizes, default=0)
    table = sum(sizes) + 2 * most + 8 * 5 * min(most, TABLE_CHUNK)
    return _PROGRAM_BYTES + max(calibration + linear, table)
