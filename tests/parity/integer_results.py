"""What the integer kernels compute, as digests: run as a program to learn it of another CPU.

``python -m tests.parity.integer_results`` prints a JSON object. Everything in it is exact: digits,
decoded points, and products whose float32 sums are integers below 2**24.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from latticeq.codes.voronoi import VoronoiCode, decode_doubled
from latticeq.lattices import e8
from latticeq.linear.packed import Int8Linear, VoronoiLinear
from latticeq.simd import path
from latticeq.storage.bits import pack_digits, pack_int8, pack_scale_index
from latticeq.storage.checkpoint import PackedInt8, PackedVoronoi
from latticeq.transforms.rotation import Rotation


def digest(array: np.ndarray) -> str:
    """Return a digest of dtype, shape and bytes."""
    header = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()[:16]


def products(q: int, k: int) -> np.ndarray:
    """Return packed codewords times tokens of int8 at the ends of its range."""
    rng = np.random.default_rng([q, k])
    digits = rng.integers(0, q, (50, 6, 8), dtype=np.uint8)
    index = rng.integers(0, k, (50, 6), dtype=np.uint8)
    packed = PackedVoronoi(
        (50, 48),
        q,
        np.arange(1, k + 1, dtype=np.float32) * 2,
        Rotation(48, None, "none"),
        pack_digits(digits, q),
        pack_scale_index(index, k),
        np.ones(50, np.float16),
    )
    tokens = np.concatenate([rng.choice([-127, 127], (3, 48)), rng.integers(-127, 128, (3, 48))])
    tokens[:, 0] = 127
    linear = VoronoiLinear(packed)
    return np.concatenate([linear(token[None].astype(np.float32)) for token in tokens])


def int8_products() -> np.ndarray:
    """Return int8 rows times tokens of int8, both at the ends of their range."""
    rng = np.random.default_rng(3)
    values = rng.choice([-127, 127, 3, -1], (40, 256)).astype(np.int8)
    linear = Int8Linear(PackedInt8((40, 256), pack_int8(values), np.ones(40, np.float16)))
    tokens = rng.choice([-127, 127, 64], (3, 256))
    tokens[:, 0] = 127
    return np.concatenate([linear(token[None].astype(np.float32)) for token in tokens])


def integer_results() -> dict[str, str]:
    """Return every result's digest by its name."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(2000, 8)), rng.integers(-40, 40, (2000, 8)) / 4])
    x = x.astype(np.float32)
    results = {"closest points": digest(e8.closest_point(x))}
    for q in (5, 14, 16):
        found = VoronoiCode(q, (3.5 / q, 4.5 / q, 6.0 / q)).encode_decoded(x)
        results |= {
            f"{part}, q={q}": digest(array)
            for part, array in zip(("digits", "scale indices", "values"), found, strict=True)
        }
        digits = rng.integers(0, q, (4000, 8), dtype=np.uint8)
        results[f"points, q={q}"] = digest(decode_doubled(digits, q))
    for q, k in ((16, 4), (14, 1), (9, 16), (11, 8), (15, 2)):
        results[f"products, q={q}, k={k}"] = digest(products(q, k))
    results["int8 products"] = digest(int8_products())
    return results


if __name__ == "__main__":
    json.dump({"path": path(), "results": integer_results()}, sys.stdout)
