"""Quantize a model larger than memory: ``python -m tests.bench.streaming [--help]``.

Writes a Llama of random weights in shards of half a gigabyte, 4 GB in all unless told otherwise,
and quantizes it in a process whose data are limited to 2 GB (RLIMIT_DATA: the heap and all private
memory; mapped files do not count, as the system may drop their pages). Prints the most anonymous
memory that was seen, every 50 ms in /proc/PID/smaps_rollup, and the resident memory, which has the
mapped weights in it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from latticeq.storage.safetensors import DTYPES, INDEX, SafetensorsWriter
from tests.anonymous_memory import measure
from tests.tiny_llama import tensor_shapes
from tests.tiny_model import byte_config, write_byte_tokenizer

SHARD_BYTES = 2**29
TEXT = "The quick brown fox jumps over the lazy dog. "


def write_large_model(
    folder: Path, total_bytes: int, dtype: str = "BF16", **changes: Any
) -> dict[str, Any]:
    """Write a model of about this many bytes, one tensor in memory at a time."""
    config = byte_config("llama", num_hidden_layers=1, **changes)
    itemsize = DTYPES[dtype].itemsize
    one = itemsize * sum(int(np.prod(shape)) for shape in tensor_shapes(config).values())
    ends = [s for name, s in tensor_shapes(config).items() if ".layers." not in name]
    fixed = itemsize * sum(int(np.prod(shape)) for shape in ends)
    config["num_hidden_layers"] = max(1, (total_bytes - fixed) // (one - fixed))
    shapes = tensor_shapes(config)
    folder.mkdir(parents=True)
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = itemsize * int(np.prod(shape))
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    rng = np.random.default_rng(0)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(folder / file, {}) as writer:
            for name in names:
                writer.declare(name, dtype, shapes[name])
            for name in names:
                values = _random_weights(rng, name, shapes[name])
                if dtype == "BF16":
                    values = (values.view(np.uint32) >> 16).astype(np.uint16)
                writer.write(name, values)
                weight_map[name] = file
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    write_byte_tokenizer(folder)
    return config


def _random_weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        values = 1 + np.float32(0.1) * values
    elif "embed_tokens" not in name:
        values *= np.float32(1 / np.sqrt(shape[-1]))
    return values


def main() -> None:
    """Write, quantize, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of the float model")
    parser.add_argument("--limit", type=float, default=2.0, help="gigabytes of data allowed")
    parser.add_argument("--dtype", choices=["BF16", "F32"], default="BF16")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("words", nargs="*", help="options of latticeq quantize, after --")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        config = write_large_model(
            folder / "source",
            int(args.gigabytes * 1e9),
            args.dtype,
            hidden_size=args.width,
            intermediate_size=args.width * 11 // 4,
            num_attention_heads=args.width // 64,
            num_key_value_heads=args.width // 256,
            head_dim=64,
            vocab_size=args.vocabulary,
        )
        (folder / "text.txt").write_text(TEXT * 200, "utf-8")
        words = args.words or ["--feedback", "none"]
        words += ["--calibration", str(folder / "text.txt")]
        command = [sys.executable, "-m", "latticeq", "quantize"]
        command += [str(folder / "source"), str(folder / "out"), *words]
        nbytes = sum(path.stat().st_size for path in (folder / "source").iterdir())
        done = measure(command, int(args.limit * 1e9), every=0.05)
        made = sum(path.stat().st_size for path in (folder / "out").glob("*"))
        layers = config["num_hidden_layers"]
        print(
            f"{nbytes / 1e9:.2f} GB of {args.dtype}, {layers} layers, {' '.join(words[:-2])}: exit "
            f"code {done.code} after {done.seconds:.0f} s under a limit of {args.limit} GB; at "
            f"most {done.anonymous / 1e6:.0f} MB anonymous, {done.resident / 1e6:.0f} MB resident "
            f"with mapped files; {made / 1e6:.0f} MB made"
        )
        if done.code:
            print(done.error[-2000:])
        sys.exit(done.code)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
