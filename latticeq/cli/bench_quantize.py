"""The subject ``latticeq bench quantize``: how long weights take to quantize, Hessians given.

The matrices of one block of a model's shape, random, and a random second moment of each of their
inputs: of activations that share directions and whose channels differ in size. They are quantized
once for each layer, as ``latticeq quantize`` does it: moments are factored anew, losses are
measured, and bytes are packed. What is timed begins with float32 weights and ends with packed
bytes, both in the host's memory. The calibration text's way through the model is no part of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latticeq.cli.bench_kernels_gpu import chosen_device
from latticeq.cli.console import say
from latticeq.cli.quantize import quantizing_engine
from latticeq.cli.tables import duration, short, table
from latticeq.errors import InputError

if TYPE_CHECKING:
    from latticeq.model.engine import Engine
    from latticeq.quantizers.objective import Objective

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure how long a model's weights take to quantize, given the Hessians of their inputs"

TOKENS = 4096
"""Random activations that a moment is made of: fewer than the widest input, as damping expects."""

SHARED = 16
"""Directions that activations share."""

CHECKED = "self_attn.k_proj"
"""What ``--check`` quantizes on the CPU as well: the smallest matrix under a common width."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: its width, its feed-forward width, that of its keys, its layers."""

    width: int
    inner: int
    keys: int
    layers: int

    def stages(self) -> list[tuple[int, dict[str, int]]]:
        """Return the width of each input, and the rows of the matrices that take it."""
        return [
            (
                self.width,
                {
                    "self_attn.q_proj": self.width,
                    "self_attn.k_proj": self.keys,
                    "self_attn.v_proj": self.keys,
                },
            ),
            (self.width, {"self_attn.o_proj": self.width}),
            (self.width, {"mlp.gate_proj": self.inner, "mlp.up_proj": self.inner}),
            (self.inner, {"mlp.down_proj": self.width}),
        ]


SHAPES = {
    "8b": Shape(4096, 14336, 1024, 32),
    "1b": Shape(2048, 8192, 512, 16),
    "135m": Shape(576, 1536, 192, 30),
    "tiny": Shape(64, 128, 32, 2),
}
"""Llama 3 8B and 3.2 1B, SmolLM2 135M, and what a test takes."""


@dataclass(frozen=True)
class Row:
    """A matrix of every layer: the median, and how fast that is."""

    name: str
    rows: int
    columns: int
    seconds: float
    lowest: float
    highest: float
    weights_s: float
    relative_error: float
    proxy_loss: float
    proxy_loss_plain: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        type=chosen_device,
        default=None,
        help="where to quantize: cpu (default), or gpu or gpu:N (extra latticeq[gpu])",
    )
    parser.add_argument(
        "--shape",
        choices=list(SHAPES),
        default="135m",
        help="the model whose shapes are taken: Llama 3 8B, Llama 3.2 1B, SmolLM2 135M (default)",
    )
    parser.add_argument(
        "--layers", metavar="N", type=int, default=None, help="layers (default: all of the shape)"
    )
    parser.add_argument(
        "--feedback",
        choices=["ldlq", "qa-ldlq"],
        default="ldlq",
        help="as for latticeq quantize (default ldlq)",
    )
    parser.add_argument("--q", metavar="N", type=int, default=16, help="(default 16)")
    parser.add_argument("--k", metavar="N", type=int, default=4, help="(default 4)")
    parser.add_argument(
        "--shaping",
        choices=["voronoi", "nestquantm", "cubic", "d8"],
        default="voronoi",
        help="(default voronoi)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"quantize {CHECKED} on the CPU, too, and count digits that differ",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Quantize, and say how long it took."""
    from latticeq.model.options import Options

    shape = SHAPES[args.shape]
    layers = shape.layers if args.layers is None else args.layers
    if layers < 1:
        raise InputError(f"--layers is {layers}; it must be at least 1")
    options = Options(q=args.q, k=args.k, shaping=args.shaping, feedback=args.feedback)
    engine, device = quantizing_engine(args.device), _device_name(args.device)
    rng = np.random.default_rng(args.seed)
    block = _Block(shape, rng, args.feedback)
    say(f"{layers} layers of shape {args.shape} on {device}, {args.feedback}")
    times: dict[str, list[float]] = {}
    objectives = block.objectives(engine)
    start = time.perf_counter()
    found = {}
    for _ in _bar(layers):
        for name, objective in block.linears(objectives):
            at = time.perf_counter()
            found[name] = _quantize(engine, options, block.weights[name], objective)
            times.setdefault(name, []).append(time.perf_counter() - at)
    seconds = time.perf_counter() - start
    rows = [_row(name, block.weights[name], times[name], found[name]) for name in times]
    weights = layers * sum(matrix.size for matrix in block.weights.values())
    result = {
        "rows": [asdict(row) for row in rows],
        "seconds": round(seconds, 3),
        "first_layer_s": round(sum(t[0] for t in times.values()), 3),
        "layers": layers,
        "weights": weights,
        "weights_s": weights / seconds,
        "device": device,
        "feedback": args.feedback,
        **_memory(args.device),
    }
    _report(rows, result)
    if args.check:
        result |= _check(block, options, engine)
    return result


def _device_name(index: int | None) -> str:
    if index is None:
        return "the CPU"
    from latticeq.gpu.device import describe

    return describe(index).name


class _Block:
    """Random matrices of one block, and activations of its inputs."""

    def __init__(self, shape: Shape, rng: np.random.Generator, feedback: str) -> None:
        self._stages = shape.stages()
        self._feedback = feedback
        self.weights: dict[str, NDArray[np.float32]] = {
            name: rng.standard_normal((rows, width), np.float32) / np.float32(np.sqrt(width))
            for width, names in self._stages
            for name, rows in names.items()
        }
        self._inputs = {width: _activations(width, rng) for width, _ in self._stages}

    def objectives(self, engine: Engine) -> dict[int, Objective]:
        """Return the objective of inputs of each width, its moments where the engine has them."""
        from latticeq.quantizers.objective import general, plain

        found = {}
        for width, x in self._inputs.items():
            metric = engine.moment(width)
            metric.update(x)
            if self._feedback == "ldlq":
                found[width] = plain(metric.mean())
                continue
            cross = engine.moment(width)
            cross.update(1.01 * x, x)
            found[width] = general(metric.mean(), cross.mean(), 0.5)
        return found

    def linears(self, objectives: dict[int, Objective]) -> Iterator[tuple[str, Objective]]:
        """Yield each matrix with an objective that only those of the same input share."""
        from dataclasses import replace

        for width, names in self._stages:
            objective = replace(objectives[width])  # factored anew
            for name in names:
                yield name, objective


def _activations(width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    x = rng.standard_normal((TOKENS, width), np.float32)
    shared = rng.standard_normal((TOKENS, SHARED), np.float32)
    x += shared @ rng.standard_normal((SHARED, width), np.float32)
    x *= np.exp(rng.standard_normal(width, np.float32) / 2)
    return x


def _quantize(engine: Engine, options: Any, weights: Any, objective: Objective) -> Any:
    from latticeq.storage.checkpoint import packed

    found = engine.quantize(options.quantizer(), weights, objective, options.damping)
    packed(found.tensor)
    return found


def _row(name: str, weights: NDArray[np.float32], times: list[float], found: Any) -> Row:
    seconds, (m, n) = statistics.median(times), weights.shape
    return Row(
        name,
        m,
        n,
        seconds,
        min(times),
        max(times),
        weights.size / seconds,
        found.relative_error,
        found.losses["proxy_loss"],
        found.losses["proxy_loss_plain"],
    )


def _memory(index: int | None) -> dict[str, float]:
    """Return the most device memory that was taken, what is kept for reuse included."""
    if index is None:
        return {}
    from latticeq.gpu.device import cupy

    with cupy().cuda.Device(index):
        return {"device_memory_mib": cupy().get_default_memory_pool().total_bytes() / 2**20}


def _check(block: _Block, options: Any, engine: Engine) -> dict[str, Any]:
    """Count what the CPU makes otherwise from the same moment."""
    from dataclasses import replace

    from latticeq.model.engine import HostEngine

    def host(moment: Any) -> Any:
        return moment.get() if hasattr(moment, "get") else moment

    weights = block.weights[CHECKED]
    objective = block.objectives(engine)[weights.shape[1]]
    cross = objective.cross
    on_host = replace(
        objective, metric=host(objective.metric), cross=None if cross is None else host(cross)
    )
    mine: Any = _quantize(engine, options, weights, replace(objective)).tensor
    cpus: Any = _quantize(HostEngine(), options, weights, on_host).tensor
    differ = mine.digits != cpus.digits
    counts = {
        "checked_digits": int(differ.size),
        "differing_digits": int(differ.sum()),
        "differing_rows": int(differ.any(axis=(1, 2)).sum()),
        "differing_scales": int((mine.row_scale != cpus.row_scale).sum()),
    }
    say(
        f"{CHECKED} on the CPU from the same Hessian: {counts['differing_digits']} of "
        f"{differ.size} digits differ, in {counts['differing_rows']} of {len(differ)} rows"
    )
    return counts


def _bar(layers: int) -> Any:
    from tqdm import trange

    return trange(layers, unit="layer", leave=False)


def _report(rows: list[Row], result: dict[str, Any]) -> None:
    lines: list[tuple[object, ...]] = [
        ("matrix", "shape", "ms (range)", "million weights/s", "loss", "without feedback")
    ]
    for row in rows:
        middle, lowest, highest = (short(1e3 * s) for s in (row.seconds, row.lowest, row.highest))
        lines.append(
            (
                row.name,
                f"{row.rows} x {row.columns}",
                f"{middle} ({lowest}-{highest})",
                short(row.weights_s / 1e6),
                f"{row.proxy_loss:.2e}",
                f"{row.proxy_loss_plain:.2e}",
            )
        )
    say(table(lines))
    memory = result.get("device_memory_mib")
    taken = "" if memory is None else f"; {memory:.0f} MiB of device memory"
    say(
        f"{result['weights'] / 1e9:.3f} billion weights in {duration(result['seconds'])}, the "
        f"first layer {result['first_layer_s']:.1f} s with what is compiled{taken}"
    )
