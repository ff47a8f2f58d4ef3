"""Write a model of random codewords: ``python -m tests.bench.random_model OUT [--help]``.

How fast a model runs does not depend on what its codes stand for, so a model of any size is made
without its weights, as fast as the disk takes it: what `latticeq bench OUT` then says of its speed
and memory is what a model of that shape takes. Its layers have the same codes, each in bytes of its
own, and its tokens are bytes, whatever the size of its vocabulary.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.cli.random_matrices import RANDOM_FORMATS, random_packed
from latticeq.model.options import REGIMES, Options
from latticeq.storage.checkpoint import FORMAT_VERSION, stored_shapes
from latticeq.storage.safetensors import SafetensorsWriter
from tests.tiny_llama import CONFIGS, tensor_shapes
from tests.tiny_model import write_byte_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
"""Llama 3 8B and 3.2 1B, SmolLM2 135M."""

CELLS = [name for name, entry in RANDOM_FORMATS.items() if "q" in entry]
TABLE = "int8 per row"


def main() -> None:
    """Read the arguments, write, say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--shape", choices=SHAPES, default="8b", help="default %(default)s")
    parser.add_argument("--format", choices=CELLS, default=CELLS[0], help="default %(default)r")
    parser.add_argument("--regime", choices=REGIMES, default="w", help="default %(default)s")
    args = parser.parse_args()
    write_random_model(args.out, config_of(args.shape), args.format, args.regime)
    nbytes = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"{args.out}: {nbytes / 1e6:.1f} MB")


def config_of(shape: str) -> dict[str, Any]:
    """Return the config.json of a model of `SHAPES`."""
    return {**CONFIGS["llama"], "max_position_embeddings": 8192, "rope_theta": 5e5, **SHAPES[shape]}


def write_random_model(
    folder: Path, config: Mapping[str, Any], format_name: str, regime: str
) -> None:
    """Write a checkpoint of random codewords, one matrix in memory at a time."""
    cell = RANDOM_FORMATS[format_name]
    options = Options(regime=regime, q=cell["q"], k=cell["k"], shaping=cell["format"])
    coding = options.run_coding()
    shapes = tensor_shapes(config)
    if coding.cache is not None and coding.cache.key_offset:
        heads = config["num_key_value_heads"], config["head_dim"]
        for layer in range(config["num_hidden_layers"]):
            shapes[f"model.layers.{layer}.self_attn.key_offset"] = heads
    entries = {
        name: RANDOM_FORMATS[format_name if ".layers." in name else TABLE] | {"shape": list(shape)}
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    floats = {name: shape for name, shape in shapes.items() if name not in entries}
    folder.mkdir(parents=True)
    _write_weights(folder / "model.safetensors", floats, entries, format_name)
    quantized = {"quant_method": "latticeq", "format_version": FORMAT_VERSION, "regime": regime}
    quantized |= {"method": "nestquant", "tensors": entries, **coding.to_config()}
    whole = {**config, "quantization_config": quantized}
    (folder / "config.json").write_text(json.dumps(whole), "utf-8")
    write_byte_tokenizer(folder)


def _write_weights(
    path: Path,
    floats: Mapping[str, tuple[int, ...]],
    entries: Mapping[str, Mapping[str, Any]],
    format_name: str,
) -> None:
    """Write norms of ones, offsets of zeros and random codes."""
    with SafetensorsWriter(path, {"format": "pt"}) as writer:
        for name, shape in floats.items():
            writer.declare(name, "F32", shape)
        for name, entry in entries.items():
            for suffix, (dtype, shape) in stored_shapes(entry).items():
                writer.declare(f"{name}.{suffix}", dtype, shape)
        for name, shape in floats.items():
            full = 0.0 if name.endswith("offset") else 1.0
            writer.write(name, np.full(shape, full, np.float32))
        for name, array in _random_codes(entries, format_name):
            writer.write(name, array)


def _random_codes(
    entries: Mapping[str, Mapping[str, Any]], format_name: str
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the arrays of all matrices; those of one shape are the same."""
    by_shape: dict[tuple[str, int, int], list[str]] = {}
    for name, entry in entries.items():
        by_shape.setdefault((entry["format"], *entry["shape"]), []).append(name)
    for (kind, rows, columns), names in by_shape.items():
        made = random_packed(TABLE if kind == "int8" else format_name, rows, columns)
        for name in names:
            for suffix, array in made.arrays.items():
                yield f"{name}.{suffix}", array


if __name__ == "__main__":
    main()
