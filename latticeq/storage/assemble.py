"""Put finished parts together into a checkpoint folder, tensor by tensor, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.storage.checkpoint import CHECKSUMS, FORMAT_VERSION, checksum, header_bytes
from latticeq.storage.disk import disk_errors
from latticeq.storage.safetensors import SafetensorsWriter, TensorFolder

__all__ = ["SHARD_BYTES", "write_checkpoint"]

SHARD_BYTES = 4 * 2**30


def write_checkpoint(
    folder: Path,
    parts: Sequence[TensorFolder],
    files: Mapping[str, bytes],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights, other files and checksums into an empty folder.

    Parameters
    ----------
    folder : Path
    parts : sequence of TensorFolder
        Whose tensors, in this order, become the checkpoint's.
    files : mapping of str to bytes
        The other files: config.json, the tokenizer's and so on.
    shard_bytes : int
        Weights beyond it are split over several files and an index.

    Raises
    ------
    LatticeqError
        If the disk is full or the folder may not be written to.
    """
    shards = _shards(parts, shard_bytes)
    digests: dict[str, str] = {}
    headers: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(folder / name, {"format": "pt"}) as writer:
            for part, tensor in shard:
                info = part.info(tensor)
                writer.declare(tensor, info.dtype, info.shape)
            for part, tensor in shard:
                raw = part.raw(tensor)
                digests[tensor] = checksum(raw)
                writer.write(tensor, raw)
                weight_map[tensor] = name
        headers[name] = checksum(header_bytes(folder / name))
    whole = dict(files)
    if len(shards) > 1:
        total = sum(part.info(name).nbytes for shard in shards for part, name in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        whole["model.safetensors.index.json"] = json_bytes(index)
    sums = {name: checksum(content) for name, content in whole.items()}
    record = {
        "format_version": FORMAT_VERSION,
        "files": sums,
        "headers": headers,
        "tensors": digests,
    }
    whole[CHECKSUMS] = json_bytes(record)
    for name, content in whole.items():
        with disk_errors(folder / name):
            (folder / name).write_bytes(content)


def _shards(
    parts: Sequence[TensorFolder], shard_bytes: int
) -> list[list[tuple[TensorFolder, str]]]:
    """Split the tensors, in order, into runs of at most `shard_bytes`, at least one tensor each."""
    shards: list[list[tuple[TensorFolder, str]]] = [[]]
    size = 0
    for part in parts:
        for name in part.names:
            nbytes = part.info(name).nbytes
            if shards[-1] and size + nbytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append((part, name))
            size += nbytes
    return shards


def json_bytes(value: Any) -> bytes:
    """Return a value as the JSON that is written to disk: indented, ending in a newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
