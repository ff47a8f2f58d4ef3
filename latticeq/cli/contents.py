"""What a model folder holds, by the bytes that are really there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli.tables import folder_bytes, megabytes, table
from latticeq.errors import FormatError, context

if TYPE_CHECKING:
    from latticeq.storage.safetensors import TensorFolder

__all__ = [
    "Stored",
    "bits_per_weight",
    "format_words",
    "read_config",
    "run_bits",
    "run_words",
    "size_table",
    "stored_tensors",
]

_BLOCK_FORMATS = (
    ("float32", 32.0, 32.0),
    ("Q8_0", 8.5, 8.5),
    ("Q4_0", 4.5, 4.5),
    ("Q4_0, embeddings Q8_0", 4.5, 8.5),
)
"""Bits a weight of linears and of embeddings: Q4_0 and Q8_0 are 32 integers and a float16 scale."""

_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Stored:
    """A tensor of the model, and what it takes on disk.

    Parameters
    ----------
    name : str
    shape : tuple of int
    format : str
        ``nestquant q=16 k=4``, ``int8``, ``F32`` and so on.
    nbytes : int
        All arrays that hold it.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Effective bits, all side information counted."""
        return 8 * self.nbytes / prod(self.shape)

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix of a block, which is what bits per weight are quoted for."""
        return (
            len(self.shape) == 2 and ".layers." in f".{self.name}" and self.name.endswith(".weight")
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model folder, checked as far as loading a model checks it.

    Raises
    ------
    FormatError
        If it is missing or damaged.
    InputError
        If it describes what the forward pass does not do.
    """
    from latticeq.model.loader import load_config

    load_config(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


def stored_tensors(folder: TensorFolder, config: dict[str, Any]) -> list[Stored]:
    """Return the tensors of a model, a quantized matrix counting as one.

    Raises
    ------
    FormatError
        If config.json names arrays that are not there.
    """
    from latticeq.storage.checkpoint import quantization_config, stored_shapes

    with context(str(folder.folder)):
        is_packed = "quantization_config" in config
        entries = quantization_config(config)["tensors"] if is_packed else {}
    found = []
    arrays = set(folder.names)
    for name, entry in entries.items():
        own = [f"{name}.{suffix}" for suffix in stored_shapes(entry)]
        nbytes = sum(folder.info(array).nbytes for array in own)
        arrays.difference_update(own)
        found.append(Stored(name, tuple(entry["shape"]), format_words(entry), nbytes))
    for name in sorted(arrays):
        info = folder.info(name)
        found.append(Stored(name, info.shape, info.dtype, info.nbytes))
    return found


def format_words(entry: Mapping[str, Any]) -> str:
    """Return how an entry's format is called: ``nestquant q=16 k=4``, ``int4 group=32``."""
    name = entry["format"]
    if "q" in entry:
        cell = "" if name == "voronoi" else f" {name}"
        radix = " radix" if entry.get("packing") == "radix" else ""
        return f"nestquant q={entry['q']} k={entry['k']}{cell}{radix}"
    pulses = f" pulses={entry['pulses']} gain_bits={entry['gain_bits']}" if name == "pvq" else ""
    return f"{name} group={entry['group']}{pulses}" if "group" in entry else str(name)


def run_bits(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a running model takes besides its weights: bits of inputs and of the cache.

    Parameters
    ----------
    config : dict
        From `read_config`.

    Returns
    -------
    dict
        ``activation_bits``, norms and scales included, 32 where inputs are float; ``cache_bits`` of
        a number of a key or a value; ``cache_nbytes_per_token`` over all layers.
    """
    from latticeq.model.config import LlamaConfig
    from latticeq.model.kv.new import new_cache
    from latticeq.model.run_coding import RunCoding

    shape = LlamaConfig.from_dict(config)
    coding = RunCoding.from_config(config.get("quantization_config", {}))
    kv = None if coding.cache is None else coding.cache.coding(shape.head_dim, None)
    dtype = "float16" if "quantization_config" in config else "float32"
    cache = new_cache(shape, 1, kv, dtype=dtype)
    inputs = (
        shape.hidden_size,
        shape.num_attention_heads * shape.head_dim,
        shape.hidden_size,
        shape.intermediate_size,
    )
    bits = 32.0
    if coding.inputs is not None:
        taken = sum(n * coding.inputs.codec(n).bits_per_entry for n in inputs)
        bits = taken / sum(inputs)
    return {
        "activation_bits": bits,
        "cache_bits": cache.bits_per_entry,
        "cache_nbytes_per_token": cache.nbytes_per_token,
    }


def run_words(bits: dict[str, Any]) -> str:
    """Return what `run_bits` found, as a sentence."""
    inputs = bits["activation_bits"]
    words = (
        "inputs of linears not coded" if inputs == 32 else f"inputs of linears in {inputs:.3f} bits"
    )
    return (
        f"running: {words}; the cache takes {bits['cache_nbytes_per_token']} bytes a token, "
        f"{bits['cache_bits']:.3f} bits a number"
    )


def bits_per_weight(tensors: Iterable[Stored]) -> float:
    """Return the mean bits of some tensors, weighted by their sizes.

    Raises
    ------
    FormatError
        If there are none.
    """
    chosen = list(tensors)
    weights = sum(prod(tensor.shape) for tensor in chosen)
    if not weights:
        raise FormatError("the folder holds no matrices of transformer blocks")
    return 8 * sum(tensor.nbytes for tensor in chosen) / weights


def size_table(folder: Path) -> str:
    """Return a quantized folder's size beside what other formats take for the same shapes."""
    from latticeq.storage.safetensors import TensorFolder

    with TensorFolder(folder) as opened:
        tensors = stored_tensors(opened, read_config(folder))
    linears = [tensor for tensor in tensors if tensor.is_linear]
    tables = [tensor for tensor in tensors if tensor.name in _TABLES]
    n_linear, n_table = (sum(prod(t.shape) for t in group) for group in (linears, tables))
    vectors = sum(4 * prod(t.shape) for t in tensors if not t.is_linear and t.name not in _TABLES)
    rows: list[tuple[object, ...]] = [("weights as", "linears", "embeddings", "size")]
    for name, linear_bits, table_bits in _BLOCK_FORMATS:
        size = (linear_bits * n_linear + table_bits * n_table) / 8 + vectors
        rows.append((name, f"{linear_bits:.2f}", f"{table_bits:.2f}", megabytes(size)))
    bits = f"{bits_per_weight(linears):.2f}", f"{bits_per_weight(tables):.2f}"
    rows.append(("this folder", *bits, megabytes(folder_bytes(folder, "*.safetensors"))))
    whole = megabytes(folder_bytes(folder))
    return f"{table(rows)}\n(bits a weight; the folder with tokenizer and all is {whole})"
