"""Products of 512 tokens beside llama.cpp's: ``python -m tests.bench.peers LLAMA_BIN FOLDER``.

LLAMA_BIN is the folder with llama-quantize and llama-bench, FOLDER one for models (2.1 GB). Models
of one and of two layers of the shape of Llama-3-8B, random weights and hardly any vocabulary, are
written once and quantized by llama.cpp. What the second layer adds to the time of a prefill is that
of a layer's products, attention and all else being small beside them; one layer alone would not do,
as llama.cpp takes most of the last one only for the last token. Our products are those of matrices
4096 x 14336, rotation and rounding of the tokens included. All take turns.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.bench.random_gguf import write_random_gguf
from tests.bench.random_model import config_of
from tests.tiny_llama import tensor_shapes

TOKENS = 512
LAYER = {**config_of("8b"), "num_hidden_layers": 1, "vocab_size": 32}
LAYERS = (1, 2)
WIDTH, HIDDEN = LAYER["hidden_size"], LAYER["intermediate_size"]
KINDS = ("Q4_0", "Q4_K_S")
FORMATS = ("voronoi q=16 k=4", "cubic q=16 k=8")


def main() -> None:
    """Read the arguments and print operations a second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_bin", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    from latticeq.cli.peaks import measure_peaks
    from latticeq.jit import set_threads

    set_threads(args.threads)
    runs: dict[str, Callable[[], float]] = dict(ours())
    for kind, paths in models(args.llama_bin, args.folder).items():
        runs[f"llama.cpp {kind}"] = theirs(args.llama_bin / "llama-bench", paths, args.threads)
    found: dict[str, list[float]] = {name: [] for name in runs}
    peaks = [measure_peaks().int8 / 1e9]
    for _ in range(args.repeats):
        for name, run in runs.items():
            found[name].append(run() / 1e9)
        peaks.append(measure_peaks().int8 / 1e9)
    print(f"{args.threads} threads, {TOKENS} tokens, GOP/s: median (lowest to highest)")
    for name, speeds in {**found, "peak of int8 products": peaks}.items():
        middle, low, high = statistics.median(speeds), min(speeds), max(speeds)
        print(f"{name:34}{middle:8.0f}  ({low:.0f} to {high:.0f})")


def ours() -> dict[str, Callable[[], float]]:
    """Return what measures the operations a second of our products and of NumPy's."""
    from latticeq.cli.random_matrices import random_packed
    from latticeq.linear.packed import make_packed_linear

    rng = np.random.default_rng(0)
    x = rng.standard_normal((TOKENS, HIDDEN), np.float32)
    matrix = rng.standard_normal((HIDDEN, WIDTH), np.float32)
    found: dict[str, Callable[[], float]] = {"NumPy float32": lambda: speed(lambda: x @ matrix)}
    for name in FORMATS:
        for runtime in ("packed", "int8"):
            linear = make_packed_linear(random_packed(name, WIDTH, HIDDEN, 0), runtime=runtime)
            linear(x)  # compiles
            found[f"{name}, {runtime}"] = lambda linear=linear: speed(lambda: linear(x))  # type: ignore[misc]
    return found


def speed(work: Callable[[], object]) -> float:
    """Return the operations a second of one product."""
    start = time.perf_counter()
    work()
    return 2 * WIDTH * HIDDEN * TOKENS / (time.perf_counter() - start)


def models(llama_bin: Path, folder: Path) -> dict[str, list[Path]]:
    """Return llama.cpp's models of each kind, by `LAYERS`, made if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for layers in LAYERS:
        plain = folder / f"layers-{layers}-f16.gguf"
        if not plain.exists():
            write_random_gguf(plain, {**LAYER, "num_hidden_layers": layers}, "F16")
        for kind, paths in found.items():
            paths.append(folder / f"layers-{layers}-{kind}.gguf")
            if not paths[-1].exists():
                command = [llama_bin / "llama-quantize", "--pure", plain, paths[-1], kind]
                subprocess.run(command, check=True, stdout=sys.stderr)
    return found


def theirs(program: Path, paths: Sequence[Path], threads: int) -> Callable[[], float]:
    """Return what measures the operations a second of a layer of llama.cpp's prefill."""
    shapes = [shape for name, shape in tensor_shapes(LAYER).items() if ".layers." in name]
    weights = sum(math.prod(shape) for shape in shapes if len(shape) == 2)

    def seconds(model: Path) -> float:
        command = [str(program), "-m", str(model), "-p", str(TOKENS), "-n", "0"]
        command += ["-t", str(threads), "-r", "1", "-o", "json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return TOKENS / float(json.loads(done.stdout)[0]["avg_ts"])

    def run() -> float:
        one, two = map(seconds, paths)
        return 2 * weights * TOKENS / (two - one)

    return run


if __name__ == "__main__":
    main()
