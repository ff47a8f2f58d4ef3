"""One block, quantized: linear after linear, in the order in which activations meet them.

What a linear's input is like decides how its weights are quantized, and the linears that are done
decide what the next inputs are like. All of it runs from the packed bytes that are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import context
from latticeq.linear.base import Linear
from latticeq.linear.coded import DecodedLinear, coded_rows
from latticeq.model.calibrate import STAGES, Stream, block_statistics
from latticeq.model.config import LlamaConfig
from latticeq.model.engine import Engine
from latticeq.model.kv.cache import FloatCache, KVCache
from latticeq.model.kv.new import new_cache
from latticeq.model.llama import Block
from latticeq.model.options import Options
from latticeq.model.smoothing import BlockTensors, smooth
from latticeq.quantizers.calibration import Moment
from latticeq.quantizers.coding import Coding
from latticeq.quantizers.objective import (
    Objective,
    general,
    isotropic_noise,
    plain,
    with_noise,
)
from latticeq.storage.checkpoint import packed
from latticeq.transforms.rotation import Rotation

__all__ = [
    "LayerReport",
    "Made",
    "Streams",
    "float_block",
    "prepared",
    "quantize_block",
]

STATISTICS_WINDOWS = 4
"""Calibration windows that smoothing and mean keys are measured on: means need few tokens."""

Reporter = Callable[[str, Any], None]


@dataclass(frozen=True)
class LayerReport:
    """How one linear came out.

    ``proxy_loss`` is the share of the layer's output that is lost on the calibration text, by
    quantizing its weights; ``proxy_loss_plain`` the same without feedback, ``proxy_loss_rtn`` with
    int4 rounded to nearest in groups of 32. They are None when no calibration was done.
    """

    name: str
    bits_per_weight: float
    relative_error: float
    seconds: float
    proxy_loss: float | None = None
    proxy_loss_plain: float | None = None
    proxy_loss_rtn: float | None = None
    damping: float | None = None


@dataclass
class Streams:
    """The calibration text in the float model, and in the quantized one where that is minded."""

    clean: Stream
    coded: Stream | None


@dataclass
class Made:
    """A quantized block: its arrays, what config.json says of them, reports, and what runs."""

    tensors: dict[str, NDArray[Any]]
    entries: dict[str, dict[str, Any]]
    layers: list[dict[str, Any]]
    block: Block
    key_offset: NDArray[np.float32] | None


def float_block(tensors: BlockTensors, config: LlamaConfig, engine: Engine) -> Block:
    """Return a block that runs in float32."""
    linears = {
        name: engine.linear(weight, tensors.biases.get(name))
        for name, weight in tensors.linears.items()
    }
    return Block(config, linears, tensors.norms)


def quantize_block(
    index: int,
    tensors: BlockTensors,
    config: LlamaConfig,
    options: Options,
    streams: Streams | None,
    report: Reporter,
    engine: Engine,
) -> Made:
    """Quantize the linears of a block; the streams go past it.

    Parameters
    ----------
    index : int
        Of the block, for names.
    tensors : BlockTensors
    config : LlamaConfig
    options : Options
    streams : Streams, optional
        At the block's beginning; None where nothing is calibrated.
    report : callable
        Called with ("layer", LayerReport) and ("stage", (index, stage)) as they are done.
    engine : Engine
    """
    tensors, offset = prepared(tensors, config, options, streams, engine)
    clean = float_block(tensors, config, engine)
    prefix = f"model.layers.{index}."
    made = Made(_float_arrays(tensors, prefix, offset), {}, [], clean, offset)
    linears: dict[str, Linear] = dict(clean.linears)
    caches = _caches(config, options, streams, offset)
    for stage, names in enumerate(STAGES):
        objective = None
        if streams is not None:
            _advance(streams, clean, made.block, stage, caches)
            if options.feedback != "none":
                tokens = sum(map(len, streams.clean.inputs))
                objective = replace(_objective(streams, options, engine), tokens=tokens)
        for name in names:
            with context(f"tensor {prefix}{name}.weight"):
                linears[name] = _quantize_linear(
                    made, prefix, name, tensors, options, objective, engine
                )
            report("layer", LayerReport(**made.layers[-1]))
        made.block = Block(config, linears, tensors.norms)
        report("stage", (index, stage))
    if streams is not None:
        _advance(streams, clean, made.block, len(STAGES), caches)
    return made


def prepared(
    tensors: BlockTensors,
    config: LlamaConfig,
    options: Options,
    streams: Streams | None,
    engine: Engine,
) -> tuple[BlockTensors, NDArray[np.float32] | None]:
    """Return a block's tensors, smoothed, and its mean keys, (G, K), where options ask for them.

    The streams, at the block's beginning, are not changed.
    """
    if streams is None or not (options.smooths or options.centres_keys):
        return tensors, None
    windows = streams.clean.hidden[:STATISTICS_WINDOWS]
    found = block_statistics(float_block(tensors, config, engine), windows, config)
    if options.smooths:
        tensors = smooth(tensors, found.squares, config, options.smooths)
    return tensors, found.key_mean if options.centres_keys else None


def _float_arrays(
    tensors: BlockTensors, prefix: str, offset: NDArray[np.float32] | None
) -> dict[str, NDArray[Any]]:
    """Return the arrays that stay float32, by their names in the checkpoint."""
    arrays = {f"{prefix}{name}.weight": norm for name, norm in tensors.norms.items()}
    arrays |= {f"{prefix}{name}.bias": bias for name, bias in tensors.biases.items()}
    if offset is not None:
        arrays[f"{prefix}self_attn.key_offset"] = offset
    return arrays


def _caches(
    config: LlamaConfig,
    options: Options,
    streams: Streams | None,
    offset: NDArray[np.float32] | None,
) -> tuple[KVCache, KVCache] | None:
    """Return caches of one layer for the clean and the coded stream."""
    if streams is None:
        return None
    context_length = len(streams.clean.hidden[0])
    cache, coding = options.run_coding().cache, None
    if cache is not None:
        coding = cache.coding(config.head_dim, None if offset is None else offset[None])
    return (
        FloatCache(config, context_length, layers=1),
        new_cache(config, context_length, coding, layers=1),
    )


def _advance(streams: Streams, clean: Block, coded: Block, stage: int, caches: Any) -> None:
    streams.clean.advance(clean, stage, caches[0])
    if streams.coded is not None:
        streams.coded.advance(coded, stage, caches[1])


def _objective(streams: Streams, options: Options, engine: Engine) -> Objective:
    """Measure the inputs of a stage, and return what its weights are quantized towards.

    Where activations are coded, the coded stream's inputs become what the code makes of them, in
    the rotated basis: what the linears that are quantized here take next.
    """
    n = streams.clean.inputs[0].shape[1]
    if streams.coded is None:
        hessian = engine.moment(n)
        for x in streams.clean.inputs:
            hessian.update(x)
        return plain(hessian.mean())
    rotation, coding = options.quantizer().rotation(n), options.input_coding()
    if options.qa_form != "general":
        assert coding is not None  # options refuse it
        return _noise_objective(streams.coded, rotation, coding, options)
    metric, cross = engine.moment(n), engine.moment(n)
    given = streams.coded.inputs
    for number, wanted in enumerate(streams.clean.inputs):
        x = given[number] if coding is None else _code(given, number, rotation, coding)
        metric.update(x)
        cross.update(wanted, x)
    return general(metric.mean(), cross.mean(), options.strength)


def _code(
    inputs: list[NDArray[np.float32]], number: int, rotation: Rotation, coding: Coding
) -> NDArray[np.float32]:
    """Replace an input by its decoded code, and return that in the input's own basis: (T, N)."""
    inputs[number] = coded_rows(inputs[number], rotation, coding.codec(rotation.n))
    return rotation.apply_transpose(inputs[number])


def _noise_objective(
    stream: Stream, rotation: Rotation, coding: Coding, options: Options
) -> Objective:
    """Take the code's error for noise that is independent of the input."""
    n = rotation.n
    hessian, noise = Moment(n), Moment(n)
    for number, x in enumerate(stream.inputs):
        hessian.update(x)
        coded = _code(stream.inputs, number, rotation, coding)
        if options.qa_form != "isotropic":
            noise.update(coded - x)
    clean = hessian.mean()
    if options.qa_form == "isotropic":
        covariance = isotropic_noise(clean, _gaussian_error(coding, n))
    elif options.qa_form == "full":
        covariance = noise.mean()
    else:  # a diagonal where the code works: in the rotated basis
        diagonal = np.diag(np.diag(rotation.apply_both_sides(noise.mean())))
        covariance = rotation.apply_transpose(rotation.apply_transpose(diagonal).T)
    return with_noise(clean, covariance, options.strength)


def _gaussian_error(coding: Coding, n: int) -> float:
    """Return the code's mean squared error on rows of N(0, 1)."""
    x = np.random.default_rng(0).normal(size=(max(1, 2**17 // n), n)).astype(np.float32)
    codec = coding.codec(n)
    return float(np.mean(np.square(codec.decode(codec.encode(x)) - x)))


def _quantize_linear(
    made: Made,
    prefix: str,
    name: str,
    tensors: BlockTensors,
    options: Options,
    objective: Objective | None,
    engine: Engine,
) -> Linear:
    """Quantize one matrix, keep its bytes and its report, and return what runs from them."""
    start = time.perf_counter()
    original, full = tensors.linears[name], f"{prefix}{name}.weight"
    found = engine.quantize(options.quantizer(name), original, objective, options.damping)
    bytes_of = packed(found.tensor)
    made.tensors |= {f"{full}.{suffix}": array for suffix, array in bytes_of.arrays.items()}
    made.entries[full] = {**bytes_of.entry, "nbytes": bytes_of.nbytes}
    linear = engine.packed_linear(bytes_of, tensors.biases.get(name))
    if options.input_coding() is not None:  # `_objective` leaves inputs coded
        linear = DecodedLinear(linear)
    seconds = round(time.perf_counter() - start, 3)
    bits = 8 * bytes_of.nbytes / original.size
    row = LayerReport(full, bits, found.relative_error, seconds, **found.losses)
    made.layers.append(asdict(row))
    result: Linear = linear
    return result
