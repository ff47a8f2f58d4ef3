"""Make format_v1_cells_and_grids.json: bytes and numbers of the formats besides voronoi and int8.

Everything comes from `reference`, as for format_v1.json; see make_format_v1.py. Run
``python -m tests.golden.make_format_v1_cells_and_grids`` to see that it still comes out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from reference import cubic, hamming, pvq, pyramid, voronoi
from reference.bits import pack_d8, pack_digits, pack_radix, pack_wide
from reference.grids import E2M1, E4M3, INT4, UINT4

PATH = Path(__file__).with_name("format_v1_cells_and_grids.json")

RADIX_Q = (3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15)

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""As docs/format-v1.md lists them: the numbers that QLoRA published, float32."""

DECODE = {
    "nestquantm": (voronoi.fixed_decode, 2, (2, 3, 9, 14, 16, 63)),
    "cubic": (cubic.decode, 4, (2, 6, 14, 16, 62)),
    "d8": (hamming.decode, 1, (2, 6, 10, 14, 16, 62)),
}
"""How a cell decodes, what makes its points integers, and the q that are tried."""


def random_digits(rng: np.random.Generator, cell: str, q: int, n: int) -> np.ndarray:
    """Return digits of codewords, (n, 8); for d8 of random points, others are any digits."""
    if cell != "d8":
        return rng.integers(0, q, (n, 8)).astype(np.uint8)
    v = rng.integers(-4 * q, 4 * q, (n, 8))
    low = v[:, :4] % 2
    v[:, 4:] += (v[:, 4:] + low + low.sum(axis=1, keepdims=True)) % 2
    return hamming.encode(v.astype(np.float64), q)


def cell_vector(cell: str, q: int) -> dict[str, Any]:
    """Return digits of codewords, some of cosets with several members of least norm, and points."""
    decode, per_unit, _ = DECODE[cell]
    digits = random_digits(np.random.default_rng([q, len(cell)]), cell, q, 24)
    corners = q * np.eye(8)
    if cell == "nestquantm":
        digits = np.concatenate([digits, voronoi.encode(corners, q)])
    if cell == "d8":
        halves = q // 2 * hamming.CODEWORDS
        ties = hamming.encode(np.concatenate([corners[:2], halves]), q)
        digits = np.concatenate([digits, ties])
    points = (per_unit * decode(digits, q)).astype(int)
    return {"cell": cell, "q": q, "digits": digits.tolist(), "points": points.tolist()}


def radix_vector(q: int) -> dict[str, Any]:
    """Return a matrix of 2 x 24 in mixed radix: one pair of blocks and an odd one."""
    digits = np.random.default_rng(q).integers(0, q, (2, 3, 8)).astype(np.uint8)
    digits[1] = q - 1  # the largest integers
    return {"q": q, "digits": digits.tolist(), "packed": pack_radix(digits, q).tobytes().hex()}


def d8_vector(q: int) -> dict[str, Any]:
    """Return a matrix of 2 x 24 in words that hold their scale index."""
    rng = np.random.default_rng([8, q])
    digits = random_digits(rng, "d8", q, 6).reshape(2, 3, 8)
    scale_index = rng.integers(0, 8, (2, 3)).astype(np.uint8)
    return {
        "q": q,
        "digits": digits.tolist(),
        "scale_index": scale_index.tolist(),
        "packed": pack_d8(digits, scale_index, q)[:, :, :2].tobytes().hex(),
    }


def pvq_vector(group: int, k: int, gain_bits: int) -> dict[str, Any]:
    """Return a matrix of 2 x 2 groups: words, their indices, gains, and the numbers they mean."""
    rng = np.random.default_rng([group, k])
    index = [[int(part) for part in rng.integers(0, 2**62, 2)] for _ in range(2)]
    index = [[pyramid.count(group, k) * part >> 62 for part in row] for row in index]
    index[0] = [0, pyramid.count(group, k) - 1]
    words = np.array([[pyramid.unrank(i, group, k) for i in row] for row in index])
    levels = (1 + rng.random(2**gain_bits).cumsum()).astype(np.float32)
    gains = rng.integers(0, 2**gain_bits, (2, 2))
    row_scale = np.array([0.75, 2.0**-9], np.float16)
    values = pvq.decode(words, row_scale.astype(np.float32)[:, None] * levels[gains])
    bits = (pyramid.count(group, k) - 1).bit_length()
    return {
        "group": group,
        "pulses": k,
        "gain_bits": gain_bits,
        "words": words.tolist(),
        "gain_index": gains.tolist(),
        "levels": levels.tobytes().hex(),
        "row_scale": row_scale.tobytes().hex(),
        "index": pack_wide(index, bits).tobytes().hex(),
        "packed_gains": pack_wide(gains.tolist(), gain_bits).tobytes().hex(),
        "values": values.astype("<f4").tobytes().hex(),
    }


def grid_vector(kind: str, levels: np.ndarray, group: int) -> dict[str, Any]:
    """Return a matrix of 2 x 2 groups: codes, stored scales, and the numbers they stand for."""
    rng = np.random.default_rng([group, len(kind)])
    codes = rng.integers(0, 16, (2, 2 * group)).astype(np.uint8)
    codes[0, :16] = np.arange(16)[: 2 * group]
    steps = (2.0 ** rng.uniform(-8, 2, (2, 2))).astype(np.float16)
    stored, numbers = steps.tobytes().hex(), steps.astype(np.float32)
    vector: dict[str, Any] = {"kind": kind, "group": group}
    if kind == "mxfp4":
        bits = rng.integers(0, 253, (2, 2)).astype(np.uint8)
        stored, numbers = bits.tobytes().hex(), np.float32(2.0 ** (bits.astype(float) - 127))
    if kind == "nvfp4":
        bits = np.array([[0, 1], [7, 126]], np.uint8)
        vector["tensor_scale"] = 0.375
        stored, numbers = bits.tobytes().hex(), np.float32(E4M3[bits] * 0.375)
    values = levels.astype(np.float32)[codes] * np.repeat(numbers, group, axis=1)
    if kind == "uint4":
        zero = rng.normal(size=(2, 2)).astype(np.float16)
        vector["zero"] = zero.tobytes().hex()
        values += np.repeat(zero.astype(np.float32), group, axis=1)
    padded = np.zeros((2, -(-codes.shape[1] // 8) * 8), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return vector | {
        "codes": codes.tolist(),
        "scales": stored,
        "packed": pack_digits(padded.reshape(2, -1, 8), 16)[:, :, :2].tobytes().hex(),
        "values": values.astype("<f4").tobytes().hex(),
    }


def make() -> dict[str, Any]:
    """Return the content of the file."""
    return {
        "about": "Frozen vectors of latticeq's format v1, see make_format_v1_cells_and_grids.py",
        "cells": [cell_vector(cell, q) for cell, (*_, some) in DECODE.items() for q in some],
        "radix": [radix_vector(q) for q in RADIX_Q],
        "d8": [d8_vector(q) for q in DECODE["d8"][2]],
        "pvq": [pvq_vector(16, 58, 4), pvq_vector(8, 6, 1), pvq_vector(40, 60, 3)],
        "grids": [
            grid_vector("int4", INT4, 10),
            grid_vector("uint4", UINT4, 8),
            grid_vector("nf4", NF4, 8),
            grid_vector("mxfp4", E2M1, 32),
            grid_vector("nvfp4", E2M1, 16),
        ],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(make(), separators=(",", ":")) + "\n", "utf-8")
