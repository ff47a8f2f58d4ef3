"""Small quantized matrices and folders, made without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from latticeq.quantizers.nestquant import NestQuant, NestTensor
from latticeq.quantizers.scalar import Int8
from latticeq.storage.assemble import write_checkpoint
from latticeq.storage.checkpoint import PackedInt8, PackedVoronoi, describe, pack
from latticeq.storage.safetensors import SafetensorsWriter, TensorFolder

DTYPES = {"uint8": "U8", "float16": "F16", "float32": "F32"}


def random_nest(
    m: int, n: int, q: int, k: int, seed: int | None = None, rotate: str = "hadamard"
) -> NestTensor:
    """Quantize random rows of very different size; one of them is zero."""
    rng = np.random.default_rng([m, n, q, k])
    weights = rng.normal(size=(m, n)) * 2.0 ** rng.integers(-6, 6, (m, 1))
    weights[m // 2] = 0
    betas = tuple(np.geomspace(3.0, 6.5, k) / q) if k > 1 else (4.4 / q,)
    return NestQuant(q, k, betas=betas, seed=seed, rotate=rotate).quantize(weights)


def packed_voronoi(tensor: NestTensor) -> PackedVoronoi:
    """Pack a matrix as the storage layer would read it."""
    arrays = pack(tensor)
    return PackedVoronoi(
        (tensor.shape[0], tensor.shape[1]), tensor.code.q, arrays["betas"], tensor.rotation,
        arrays["digits"], arrays["scale_index"], arrays["row_scale"],
    )  # fmt: skip


def packed_int8(weights: np.ndarray) -> PackedInt8:
    """Quantize and pack a matrix in int8."""
    arrays = pack(Int8().quantize(weights))
    return PackedInt8((len(weights), weights.shape[1]), arrays["int8"], arrays["row_scale"])


def write_parts(folder: Path, tensors: dict[str, np.ndarray]) -> TensorFolder:
    """Write arrays to a safetensors file and open it."""
    folder.mkdir()
    with SafetensorsWriter(folder / "model.safetensors", {}) as writer:
        for name, array in tensors.items():
            writer.declare(name, DTYPES[array.dtype.name], array.shape)
        for name, array in tensors.items():
            writer.write(name, array)
    return TensorFolder(folder)


def write_checkpoint_of(
    folder: Path, matrices: dict[str, Any], shard_bytes: int = 2**32
) -> dict[str, Any]:
    """Write quantized matrices as a checkpoint, return its config.json."""
    tensors = {
        f"{name}.{suffix}": array
        for name, matrix in matrices.items()
        for suffix, array in pack(matrix).items()
    }
    config = {
        "quantization_config": {
            "quant_method": "latticeq",
            "format_version": 1,
            "tensors": {name: describe(matrix) for name, matrix in matrices.items()},
        }
    }
    parts = write_parts(folder.with_name(folder.name + "-parts"), tensors)
    folder.mkdir()
    write_checkpoint(folder, [parts], {"config.json": json.dumps(config).encode()}, shard_bytes)
    return config
