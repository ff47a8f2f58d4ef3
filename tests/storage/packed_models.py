"""Small quantized matrices and folders, made without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from latticeq.codes.nested import NestedCode
from latticeq.codes.pyramid import PyramidCode
from latticeq.quantizers.grid_tensor import GridTensor
from latticeq.quantizers.nestquant import NestTensor
from latticeq.quantizers.pvq import PVQTensor
from latticeq.storage.assemble import write_checkpoint
from latticeq.storage.checkpoint import describe, pack
from latticeq.storage.safetensors import SafetensorsWriter, TensorFolder
from latticeq.transforms.rotation import Rotation

DTYPES = {"uint8": "U8", "float16": "F16", "float32": "F32"}

FLOAT_SCALES = {"mxfp4": (100, 150), "nvfp4": (0, 127)}
"""Codes of the scales that are small floats, from and below."""


def random_digits(
    rng: np.random.Generator, shape: tuple[int, ...], q: int, cell: str
) -> np.ndarray:
    """Return digits of codewords, (..., 8), every codeword as likely."""
    digits = rng.integers(0, q, (*shape, 8), dtype=np.uint8)
    if cell == "d8":
        low = digits & 1
        parity = low[..., :4].sum(axis=-1, keepdims=True) & 1
        digits[..., 4:] = (digits[..., 4:] & 0xFE) | (low[..., :4] ^ parity.astype(np.uint8))
        digits[..., 0] += rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(q)
    return digits


def random_nest(
    m: int,
    n: int,
    q: int,
    k: int,
    seed: int | None = None,
    rotate: str = "hadamard",
    cell: str = "voronoi",
    packing: str = "digits",
) -> NestTensor:
    """Return random codewords under scales of very different size; one row is zero."""
    rng = np.random.default_rng([m, n, q, k])
    betas = tuple(
        float(beta) for beta in np.geomspace(3.0, 6.5, k).astype(np.float32) / np.float32(q)
    )
    scale = (2.0 ** rng.uniform(-6, 6, m)).astype(np.float16)
    scale[m // 2] = 0
    return NestTensor(
        (m, n),
        NestedCode(q, betas, cell),
        Rotation(n, seed, rotate),
        random_digits(rng, (m, n // 8), q, cell),
        rng.integers(0, k, (m, n // 8), dtype=np.uint8),
        scale,
        packing=packing,
    )


def integer_nest(
    rng: np.random.Generator, m: int, n: int, q: int, k: int, cell: str
) -> tuple[NestTensor, np.ndarray]:
    """Return codewords that stand for integers, and these; scales are 1 to k points."""
    unit = NestedCode(q, (1.0,), cell).unit
    code = NestedCode(q, tuple((i + 1) / unit for i in range(k)), cell)
    digits = random_digits(rng, (m, n // 8), q, cell)
    index = rng.integers(0, k, (m, n // 8), dtype=np.uint8)
    points = code.points(digits.reshape(-1, 8)).reshape(digits.shape).astype(np.int64)
    tensor = NestTensor((m, n), code, Rotation(n, None, "none"), digits, index, np.ones(m, "f2"))
    return tensor, (points * (index + 1)[..., None]).reshape(m, n)


def random_grid(
    m: int,
    n: int,
    kind: str,
    group: int,
    symmetric: bool = True,
    rotation: Rotation | None = None,
) -> GridTensor:
    """Return random codes under random scales; one row of float16 scales is zero."""
    rng = np.random.default_rng([m, n, group])
    size = (m, -(-n // group))
    if kind in FLOAT_SCALES:
        scales = rng.integers(*FLOAT_SCALES[kind], size, dtype=np.uint8)
    else:
        scales = (2.0 ** rng.uniform(-6, 6, size)).astype(np.float16)
        scales[m // 2] = 0
    return GridTensor(
        (m, n),
        kind,
        group,
        rotation or Rotation(n),
        rng.integers(0, 16, (m, n), dtype=np.uint8),
        scales,
        None if symmetric else rng.normal(size=size).astype(np.float16),
        np.float32(0.37) if kind == "nvfp4" else None,
    )


def random_pvq(
    m: int,
    n: int,
    group: int,
    pulses: int,
    gain_bits: int,
    rotation: Rotation | None = None,
) -> PVQTensor:
    """Return random words of a pyramid code under random gains and scales; one row is zero."""
    rng = np.random.default_rng([m, n, group, pulses])
    code = PyramidCode(group, pulses)
    words, _ = code.nearest(rng.normal(size=(m, n // group, group)), "projection")
    scale = (2.0 ** rng.uniform(-6, 6, m)).astype(np.float16)
    scale[m // 2] = 0
    return PVQTensor(
        (m, n),
        code,
        rotation or Rotation(n),
        words,
        rng.integers(0, 2**gain_bits, (m, n // group), dtype=np.uint8),
        np.geomspace(0.5, 6, 2**gain_bits).astype(np.float32),
        scale,
    )


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
