"""What a quantization will do, decided and checked before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latticeq.errors import InputError, context
from latticeq.model.config import LlamaConfig
from latticeq.model.loader import Weights, expected_tensors
from latticeq.model.options import Options
from latticeq.model.source import is_gguf, model_config
from latticeq.quantizers.grid_tensor import grid_nbytes
from latticeq.quantizers.nestquant import NestQuant, nest_nbytes
from latticeq.quantizers.pvq import PVQ, pvq_nbytes
from latticeq.quantizers.scalar import Scalar, int8_nbytes

__all__ = ["TABLE_CHUNK", "PlannedTensor", "disk_bytes", "plan"]

TABLE_CHUNK = 1 << 20
"""Weights of an embedding or a head that are coded at once."""


@dataclass(frozen=True)
class PlannedTensor:
    """What will become of a matrix: a row of the plan."""

    name: str
    shape: tuple[int, int]
    method: str
    bits_per_weight: float
    nbytes: int
    note: str


def plan(source: Path, options: Options) -> list[PlannedTensor]:
    """Return what quantizing would make of every matrix, reading no weights.

    Parameters
    ----------
    source : Path
        A Hugging Face folder or a GGUF file.
    options : Options

    Raises
    ------
    InputError
        If a matrix cannot be quantized with these options, or the options themselves are wrong.
    FormatError
        If the source folder is not a float model.
    """
    config = model_config(source)
    longest = config.longest_context
    if options.is_calibrated and options.calibration_context > longest:
        raise InputError(
            f"calibration windows of {options.calibration_context} tokens; the model's context is "
            f"{longest}, {config.context_limit}"
        )
    weights = None if is_gguf(source) else Weights(source, config)
    if weights is not None and weights.entries:
        raise InputError(f"{source} is quantized already; give the folder of the float model")
    quantizer = options.quantizer()
    if (cache := options.run_coding().cache) is not None:
        with context(f"head_dim of {config.head_dim}, in which keys and values are coded"):
            cache.coding(config.head_dim, None)
    rows = []
    for name, shape in _matrices(config).items():
        size = (shape[0], shape[1])
        if name.startswith("model.layers."):
            rows.append(_planned_linear(name, size, quantizer))
        elif options.embedding == "int8":
            nbytes = int8_nbytes(*size)
            rows.append(PlannedTensor(name, size, "int8", *_bits(nbytes, size), ""))
        else:
            nbytes = weights.matrix(name).nbytes if weights else 4 * size[0] * size[1]
            rows.append(PlannedTensor(name, size, "as it is", *_bits(nbytes, size), ""))
    return rows


def disk_bytes(planned: list[PlannedTensor], is_converted: bool) -> int:
    """Return the disk space that a job needs at its end: its parts and the checkpoint made of them.

    Parameters
    ----------
    planned : list of PlannedTensor
    is_converted : bool
        Whether the source is a GGUF file, whose float32 weights lie there meanwhile.
    """
    converted = sum(4 * row.shape[0] * row.shape[1] for row in planned) if is_converted else 0
    return 2 * sum(tensor.nbytes for tensor in planned) + converted + 2**25


def _planned_linear(
    name: str, size: tuple[int, int], quantizer: NestQuant | PVQ | Scalar
) -> PlannedTensor:
    _check_columns(name, size, quantizer)
    with context(name):
        rotation, (text, nbytes) = quantizer.rotation(size[1]), _size(quantizer, size)
    return PlannedTensor(name, size, text, *_bits(nbytes, size), rotation.describe())


def _check_columns(name: str, size: tuple[int, int], quantizer: NestQuant | PVQ | Scalar) -> None:
    block = quantizer.group if isinstance(quantizer, PVQ) else 8
    if isinstance(quantizer, Scalar):  # int4 and nf4 have a shorter last group where need be
        block = quantizer.group_size(size[1]) if quantizer.is_float else 1
    if size[1] % block:
        raise InputError(
            f"{name} has {size[1]} columns; this method codes blocks of {block} and needs a "
            f"multiple of {block}: choose another --method or --group"
        )


def _size(quantizer: NestQuant | PVQ | Scalar, size: tuple[int, int]) -> tuple[str, int]:
    """Return how a method is called, and the bytes that it makes of a matrix."""
    if isinstance(quantizer, Scalar):
        group = quantizer.group_size(size[1])
        nbytes = grid_nbytes(*size, quantizer.kind, group, quantizer.symmetric)
        return f"{quantizer.kind} group={group}", nbytes
    if isinstance(quantizer, PVQ):
        split, group = quantizer.split(size[1]), quantizer.group
        spent = f"pulses={split.pulses} ({split.shape_bits} bits), gains {split.gain_bits} bits"
        nbytes = pvq_nbytes(*size, group, split.shape_bits, split.gain_bits)
        return f"pvq group={group} {spent}", nbytes
    text = f"nestquant q={quantizer.q} k={quantizer.k}"
    cell, packing = quantizer.cell, quantizer.packing
    return text, nest_nbytes(*size, quantizer.q, quantizer.k, cell, packing)


def _bits(nbytes: int, size: tuple[int, int]) -> tuple[float, int]:
    return 8 * nbytes / (size[0] * size[1]), nbytes


def _matrices(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}
