"""What a quantization will do, decided and checked before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latticeq.errors import InputError
from latticeq.model.config import LlamaConfig
from latticeq.model.loader import Weights, expected_tensors
from latticeq.model.source import is_gguf, model_config
from latticeq.quantizers.feedback import DAMPING
from latticeq.quantizers.nestquant import NestQuant, nest_nbytes
from latticeq.quantizers.scalar import int8_nbytes

__all__ = ["Options", "PlannedTensor", "disk_bytes", "plan"]


@dataclass(frozen=True)
class Options:
    """Everything that decides the bytes, besides the model and the calibration text.

    Parameters
    ----------
    method : "nestquant"
    regime : "w"
        What is quantized: weights.
    q, k, shaping, betas, selection, rotate, seed
        Of `NestQuant`.
    feedback : "ldlq" or "none"
    damping : float
        Relative damping of the Hessians.
    embedding : "int8" or "keep"
        How token embeddings and the output head are stored.
    calibration_tokens : int
        How many tokens of the calibration text are used; rounded down to whole windows.
    calibration_context : int
        Length of those windows.
    """

    method: str = "nestquant"
    regime: str = "w"
    q: int = 16
    k: int = 4
    shaping: str = "voronoi"
    betas: str | tuple[float, ...] = "tuned"
    selection: str = "opt"
    rotate: str = "hadamard"
    seed: int | None = None
    feedback: str = "ldlq"
    damping: float = DAMPING
    embedding: str = "int8"
    calibration_tokens: int = 32768
    calibration_context: int = 2048

    def __post_init__(self) -> None:
        allowed = {
            "method": ("nestquant",),
            "regime": ("w",),
            "feedback": ("ldlq", "none"),
            "embedding": ("int8", "keep"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                given = getattr(self, name)
                raise InputError(f"{name} is {given!r}; it must be one of {', '.join(values)}")
        if self.calibration_context < 2 or self.calibration_tokens < self.calibration_context:
            raise InputError(
                f"{self.calibration_tokens} calibration tokens in windows of "
                f"{self.calibration_context}: give at least one window of at least 2 tokens"
            )
        if not 0 <= self.damping < float("inf"):
            raise InputError(f"damping is {self.damping}; it must be a number of at least 0")

    def quantizer(self) -> NestQuant:
        """Return the quantizer of the linears."""
        return NestQuant(
            self.q, self.k, self.shaping, self.betas, self.selection, self.rotate, self.seed
        )


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
    longest = config.max_position_embeddings
    if options.feedback != "none" and options.calibration_context > longest:
        raise InputError(
            f"calibration windows of {options.calibration_context} tokens; the model's context is "
            f"{longest} (max_position_embeddings)"
        )
    weights = None if is_gguf(source) else Weights(source, config)
    if weights is not None and weights.entries:
        raise InputError(f"{source} is quantized already; give the folder of the float model")
    quantizer = options.quantizer()
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


def _planned_linear(name: str, size: tuple[int, int], quantizer: NestQuant) -> PlannedTensor:
    if size[1] % 8:
        raise InputError(
            f"{name} has {size[1]} columns; blocks of 8 need a multiple of 8. This model cannot be "
            "quantized with E8"
        )
    nbytes = nest_nbytes(*size, quantizer.q, quantizer.k)
    method = f"nestquant q={quantizer.q} k={quantizer.k}"
    note = quantizer.rotation(size[1]).describe()
    return PlannedTensor(name, size, method, *_bits(nbytes, size), note)


def _bits(nbytes: int, size: tuple[int, int]) -> tuple[float, int]:
    return 8 * nbytes / (size[0] * size[1]), nbytes


def _matrices(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in expected_tensors(config).items() if len(shape) == 2}
