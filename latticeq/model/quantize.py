"""Quantize a model, one block at a time, into a checkpoint folder.

Calibration text runs through the float model block by block, and beside it through the model as far
as it is quantized; each block's linears are quantized for the inputs that they will have
(`latticeq.model.quantize_block`) and kept as a finished part (`latticeq.model.job`). One block's
weights, the states of all calibration tokens and the moments of one input are all that is in memory
at once. Everything that can be refused is refused before this starts.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError, LatticeqError, context
from latticeq.linear.base import Linear
from latticeq.linear.coded import CodedLinear
from latticeq.model.builtin_text import calibration_text
from latticeq.model.calibrate import STAGES, Stream
from latticeq.model.engine import Engine, HostEngine
from latticeq.model.fitting import FITTED_WINDOWS, fit_scales
from latticeq.model.job import Job, check_output, open_job
from latticeq.model.kv.cache import FloatCache
from latticeq.model.kv.new import new_cache
from latticeq.model.llama import BLOCK_LINEARS, BLOCK_NORMS, Block
from latticeq.model.loader import (
    Weights,
    expected_tensors,
    load_config,
    load_embedding,
    load_kv_coding,
)
from latticeq.model.options import Options
from latticeq.model.plan import TABLE_CHUNK, PlannedTensor, disk_bytes, plan
from latticeq.model.quantize_block import (
    LayerReport,
    Streams,
    float_block,
    prepared,
    quantize_block,
)
from latticeq.model.smoothing import BlockTensors
from latticeq.model.source import check_finite, float_folder, is_gguf, weights_fingerprint
from latticeq.model.tokenizer import Tokenizer
from latticeq.quantizers.scalar import Int8, Int8Tensor
from latticeq.storage.assemble import json_bytes, write_checkpoint
from latticeq.storage.checkpoint import FORMAT_VERSION, checksum, describe, pack, verify
from latticeq.storage.disk import disk_errors
from latticeq.version import package_version

__all__ = ["LayerReport", "QuantizeReport", "quantize"]

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "LICENSE",
)

_SCALES = "scales"  # the part of fitted ones


@dataclass(frozen=True)
class QuantizeReport:
    """What a quantization made.

    ``bits_per_weight`` is effective, over the linears of all blocks; ``nbytes`` is the size of the
    weights' files.
    """

    seconds: float
    bits_per_weight: float
    nbytes: int
    embedding_bits_per_weight: float
    layers: list[LayerReport] = field(default_factory=list)


Reporter = Callable[[str, Any], None]
"""Called with an event and its value: ("check", (done, total)) for each matrix that is read before
all starts, ("damaged", name) for a part of a resumed job that is made again, ("fit", (done, total))
as scales are fitted, ("layer", LayerReport), and ("stage", (block, stage)) when the linears of one
input are done.
"""


def quantize(
    source: str | Path,
    out: str | Path,
    *,
    calibration: str | Path = "builtin",
    resume: bool = False,
    force: bool = False,
    report: Reporter | None = None,
    engine: Engine | None = None,
    **options: Any,
) -> QuantizeReport:
    """Quantize a float model into a checkpoint folder.

    Parameters
    ----------
    source : path
        A Hugging Face folder with float weights, or a GGUF file.
    out : path
        The folder to make. It appears when it is complete and verified.
    calibration : path or "builtin"
        A UTF-8 text file, or the text that CPython brings along.
    resume, force : bool
        Go on with an unfinished job; or delete it, and an existing output, first.
    report : callable, optional
        Called as the work goes on, see `Reporter`.
    engine : Engine, optional
        What does the work: the CPU if omitted.
    **options
        Fields of `Options`.

    Returns
    -------
    QuantizeReport

    Raises
    ------
    InputError
        If an option, the model or the calibration text does not fit, or `out` exists.
    FormatError
        If a file of the source is missing or damaged.
    LatticeqError
        If the disk is too small, or a layer cannot be quantized; the message names it.
    """
    start = time.perf_counter()
    source, out = Path(source), Path(out)
    chosen, engine = Options(**options), engine or HostEngine()
    engine.check(chosen)
    planned = plan(source, chosen)
    if source.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{out} is or holds the source; choose another folder for the output")
    check_output(out, resume=resume, force=force)
    _check_room(out, planned, is_gguf(source))
    with float_folder(source, out, progress=report is not None) as folder:
        windows, fingerprint = _calibration(folder, calibration, chosen)
        check_finite(Weights(folder, load_config(folder)), report)
        settings = {
            "source": str(source.resolve()),
            "weights": weights_fingerprint(source),
            "options": asdict(chosen),
            "calibration": fingerprint,
            "format_version": FORMAT_VERSION,
            **engine.settings,
        }
        job = open_job(out, settings, resume=resume, force=force)
        reporter = report or (lambda event, value: None)
        for name in job.drop_damaged():
            reporter("damaged", name)
        _quantize_parts(job, folder, chosen, windows, reporter, engine)
        seconds = time.perf_counter() - start
        software = _software() | dict(engine.software)
        return _assemble(job, folder, out, chosen, fingerprint, software, force, seconds)


def _calibration(
    source: Path, text: str | Path, options: Options
) -> tuple[NDArray[np.int64] | None, dict[str, Any] | None]:
    """Return token windows, (windows, context), and what says where they are from."""
    tokenizer = Tokenizer.from_folder(source)
    if not options.is_calibrated:
        return None, None
    name = str(text)
    if name == "builtin":
        content = calibration_text()
    else:
        with context(f"calibration text {name}"):
            try:
                content = Path(name).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot be read as UTF-8 text: {error}") from error
    ids = np.array(tokenizer.tokenize(content), np.int64)
    count = options.calibration_tokens // options.calibration_context
    needed = count * options.calibration_context
    if len(ids) < needed:
        raise InputError(
            f"calibration text {name} has {len(ids)} tokens; {needed} were asked for: give a "
            "longer text or fewer --calibration-tokens"
        )
    vocabulary = load_config(source).vocab_size
    if ids.max() >= vocabulary:
        raise InputError(
            f"the tokenizer made id {ids.max()} of the calibration text; the model has ids 0 to "
            f"{vocabulary - 1}. Tokenizer and model must be of one folder"
        )
    fingerprint = {
        "text": name if name == "builtin" else Path(name).name,
        "sha256": checksum(content.encode("utf-8")),
        "tokens": needed,
        "context": options.calibration_context,
    }
    return ids[:needed].reshape(count, -1), fingerprint


def _check_room(out: Path, planned: list[PlannedTensor], is_converted: bool) -> None:
    """Refuse early what the disk cannot hold."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
    needed = disk_bytes(planned, is_converted)
    if free < needed:
        raise LatticeqError(
            f"{out.parent} has {free / 1e6:.0f} MB free; the job needs {needed / 1e6:.0f} MB. Free "
            "some space or choose another disk"
        )


def _quantize_parts(
    job: Job,
    source: Path,
    options: Options,
    windows: NDArray[np.int64] | None,
    report: Reporter,
    engine: Engine,
) -> None:
    """Make every part that the job does not have yet."""
    config = load_config(source)
    weights = Weights(source, config)
    _quantize_ends(job, weights, options)
    _fit(job, weights, options, windows, report, engine)
    options = _with_scales(job, options)
    missing = [i for i in range(config.num_hidden_layers) if not job.has(_part(i))]
    if not missing:
        return
    streams = None if windows is None else _streams(weights, options, windows)
    for index in range(missing[-1] + 1):
        tensors = _block_tensors(weights, index)
        if index not in missing:
            if streams is not None:
                _replay(job, index, tensors, options, streams, engine)
            report("stage", (index, len(STAGES) - 1))
            continue
        made = quantize_block(index, tensors, config, options, streams, report, engine)
        record = {"tensors": made.entries, "layers": made.layers}
        job.write(_part(index), made.tensors, record)


def _fit(
    job: Job,
    weights: Weights,
    options: Options,
    windows: NDArray[np.int64] | None,
    report: Reporter,
    engine: Engine,
) -> None:
    """Make the part that holds fitted scales, where there are to be any."""
    if not options.fits_scales or job.has(_SCALES):
        return
    stream = None
    if windows is not None and (options.regime != "w" or options.smooths):
        stream = _streams(weights, options, windows[:FITTED_WINDOWS]).clean
    config = weights.config
    blocks = (_block_tensors(weights, index) for index in range(config.num_hidden_layers))
    found = fit_scales(blocks, config, options, stream, report, engine)
    job.write(_SCALES, {}, {"betas": found})


def _with_scales(job: Job, options: Options) -> Options:
    """Return the options with the scales that were fitted."""
    if not options.fits_scales:
        return options
    found = job.record(_SCALES)["betas"]
    return replace(options, betas={kind: tuple(betas) for kind, betas in found.items()})


def _streams(weights: Weights, options: Options, windows: NDArray[np.int64]) -> Streams:
    """Return the calibration text at the beginning of the first block."""

    def embedded() -> Stream:
        return Stream(weights.config, [load_embedding(weights).rows(ids) for ids in windows])

    return Streams(embedded(), embedded() if options.feedback == "qa-ldlq" else None)


def _replay(
    job: Job,
    index: int,
    tensors: BlockTensors,
    options: Options,
    streams: Streams,
    engine: Engine,
) -> None:
    """Let the streams go through a block that is finished."""
    config, length = streams.clean.config, len(streams.clean.hidden[0])
    tensors, _ = prepared(tensors, config, options, streams, engine)  # rounded in the same way
    streams.clean.run(float_block(tensors, config, engine), FloatCache(config, length, layers=1))
    if streams.coded is None:
        return
    name = _part(index)
    quantized = {**options.run_coding().to_config(), "tensors": job.record(name)["tensors"]}
    prefix = f"model.layers.{index}."
    part = Weights(job.folder / name, config, quantized, prefix)
    cache = new_cache(config, length, load_kv_coding(part, [index]), layers=1)
    streams.coded.run(_finished_block(part, prefix, engine), cache)
    part.folder.close()


def _finished_block(part: Weights, prefix: str, engine: Engine) -> Block:
    """Return the block that a part holds, as it ran when it was made."""

    def linear(name: str) -> Linear:
        bias = part.float32(f"{name}.bias") if f"{name}.bias" in part else None
        found = engine.packed_linear(part.packed(f"{name}.weight"), bias)
        coding = part.coding.inputs
        if coding is not None:
            found = CodedLinear(found, coding.codec(found.in_features))
        result: Linear = found
        return result

    return Block(
        part.config,
        {name: linear(prefix + name) for name in BLOCK_LINEARS},
        {name: part.float32(f"{prefix}{name}.weight") for name in BLOCK_NORMS},
    )


def _block_tensors(weights: Weights, index: int) -> BlockTensors:
    """Read the float tensors of a block."""
    prefix = f"model.layers.{index}."
    biased = [name for name in BLOCK_LINEARS if f"{prefix}{name}.bias" in weights]
    return BlockTensors(
        {name: weights.matrix_float32(f"{prefix}{name}.weight") for name in BLOCK_LINEARS},
        {name: weights.float32(f"{prefix}{name}.weight") for name in BLOCK_NORMS},
        {name: weights.float32(f"{prefix}{name}.bias") for name in biased},
    )


def _part(index: int) -> str:
    return f"block-{index:04d}"


def _quantize_ends(job: Job, weights: Weights, options: Options) -> None:
    """Make the part that holds what is outside the blocks."""
    if job.has("ends"):
        return
    tensors: dict[str, NDArray[Any]] = {}
    entries = {}
    for name, shape in expected_tensors(weights.config).items():
        if name.startswith("model.layers."):
            continue
        if len(shape) == 1:
            tensors[name] = weights.float32(name)
        elif options.embedding == "keep":
            tensors[name] = np.asarray(weights.matrix(name))
        else:
            coded = _coded_table(weights, name)
            tensors |= {f"{name}.{suffix}": array for suffix, array in pack(coded).items()}
            entries[name] = describe(coded) | {"nbytes": coded.nbytes}
    job.write("ends", tensors, {"tensors": entries, "layers": []})


def _coded_table(weights: Weights, name: str) -> Int8Tensor:
    """Code a table in int8, some rows at a time: it may be the largest matrix of the model."""
    shape = weights.matrix(name).shape
    values, scales = np.empty(shape, np.int8), np.empty(shape[0], np.float16)
    step = max(1, TABLE_CHUNK // shape[1])
    for first in range(0, shape[0], step):
        rows = slice(first, first + step)
        with context(f"tensor {name}, rows from {first} on"):
            coded = Int8().quantize(weights.matrix_float32(name, rows))
        values[rows], scales[rows] = coded.values, coded.row_scale
    return Int8Tensor(shape, values, scales)


def _assemble(
    job: Job,
    source: Path,
    out: Path,
    options: Options,
    calibration: dict[str, Any] | None,
    software: dict[str, str],
    force: bool,
    seconds: float,
) -> QuantizeReport:
    """Make the checkpoint of all parts, verify it, and only then give it its name."""
    config = json.loads((source / "config.json").read_text("utf-8"))
    fitted = _with_scales(job, options)
    names = ["ends", *(_part(i) for i in range(load_config(source).num_hidden_layers))]
    records = [job.record(name) for name in names]
    entries = {name: entry for record in records for name, entry in record["tensors"].items()}
    layers = [LayerReport(**row) for record in records for row in record["layers"]]
    linears = {name: e for name, e in entries.items() if name.startswith("model.layers.")}
    config["quantization_config"] = {
        "quant_method": "latticeq",
        "format_version": FORMAT_VERSION,
        "method": options.method,
        "regime": options.regime,
        "parameters": asdict(options),
        "scales": fitted.betas if options.fits_scales else None,
        **fitted.run_coding().to_config(),
        "calibration": calibration,
        "software": software,
        "tensors": {
            name: {field: value for field, value in entry.items() if field != "nbytes"}
            for name, entry in entries.items()
        },
    }
    files = {
        "config.json": json_bytes(config),
        # But for the times: equal jobs make equal folders, byte for byte.
        "quantization_report.json": json_bytes(
            [{k: v for k, v in asdict(layer).items() if k != "seconds"} for layer in layers]
        ),
    }
    files |= {n: (source / n).read_bytes() for n in COPIED if (source / n).is_file()}

    def write(folder: Path) -> None:
        with job.tensors(names) as parts:
            write_checkpoint(folder, parts, files)
        verify(folder)

    job.finish(out, write, replace=force)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return QuantizeReport(
        round(seconds, 3),
        _mean_bits(linears),
        size,
        _mean_bits({name: e for name, e in entries.items() if name not in linears}),
        layers,
    )


def _mean_bits(entries: Mapping[str, Mapping[str, Any]]) -> float:
    numbers = sum(entry["shape"][0] * entry["shape"][1] for entry in entries.values())
    return 8 * sum(entry["nbytes"] for entry in entries.values()) / numbers if numbers else 0.0


def _software() -> dict[str, str]:
    packages = {name: version(name) for name in ("numpy", "numba", "scipy")}
    return {"latticeq": package_version(), "python": platform.python_version(), **packages}
