"""What the integer kernels compute, as digests: run as a program to learn it of another CPU.

``python -m tests.parity.integer_results`` prints a JSON object. Everything in it is exact: digits,
decoded points, and products whose float32 sums are integers below 2**24.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from latticeq.codes.nested import CELLS, NestedCode
from latticeq.lattices import e8
from latticeq.linear.coded_kernels import coded_products
from latticeq.linear.packed import make_packed_linear
from latticeq.quantizers.rows import NestRowCodec, RowCodec
from latticeq.quantizers.scalar import Int8Tensor, Scalar
from latticeq.quantizers.scalar_rows import ScalarRowCodec
from latticeq.simd import path
from latticeq.storage.checkpoint import packed
from latticeq.storage.radix import pack_radix, unpack_radix
from tests.model.cache_helpers import kept_bytes
from tests.storage.packed_models import integer_nest, random_grid


def digest(array: np.ndarray) -> str:
    """Return a digest of dtype, shape and bytes."""
    header = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()[:16]


def products(q: int, k: int, cell: str) -> np.ndarray:
    """Return packed codewords times tokens of int8 at the ends of its range."""
    rng = np.random.default_rng([q, k])
    linear = make_packed_linear(packed(integer_nest(rng, 50, 48, q, k, cell)[0]))
    tokens = np.concatenate([rng.choice([-127, 127], (3, 48)), rng.integers(-127, 128, (3, 48))])
    tokens[:, 0] = 127
    return np.concatenate([linear(token[None].astype(np.float32)) for token in tokens])


def int8_products() -> np.ndarray:
    """Return int8 rows times tokens of int8, both at the ends of their range."""
    rng = np.random.default_rng(3)
    values = rng.choice([-127, 127, 3, -1], (40, 256)).astype(np.int8)
    matrix = Int8Tensor((40, 256), values, np.ones(40, np.float16))
    tokens = rng.choice([-127, 127, 64], (3, 256))
    tokens[:, 0] = 127
    linear = make_packed_linear(packed(matrix))
    return np.concatenate([linear(token[None].astype(np.float32)) for token in tokens])


def grid_tiles(kind: str, group: int, symmetric: bool) -> np.ndarray:
    """Return a matrix of grid codes as tiles decode it: products with the identity."""
    linear = make_packed_linear(packed(random_grid(20, 64, kind, group, symmetric)))
    return linear.multiply_rotated(np.eye(64, dtype=np.float32))


def coded(largest: int) -> np.ndarray:
    """Return products of coded operands that hold points of the largest magnitude."""
    rng = np.random.default_rng([4, largest])
    x, y = (rng.integers(-largest, largest + 1, (rows, 80)).astype(np.int8) for rows in (19, 35))
    x[0], y[0], y[1] = largest, largest, -largest
    ones = np.ones((35, 10), np.float32)
    return coded_products(x, ones[:19], y, ones)


def coded_rows() -> dict[str, str]:
    """Return the digests of coded rows: floats are rounded one by one, so bytes are exact too."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(40, 96)).astype(np.float32) * np.exp2(rng.integers(-9, 9, (40, 1)))
    codecs: dict[str, RowCodec] = {
        "int4": ScalarRowCodec(Scalar("int4"), 96),
        "asymmetric int4": ScalarRowCodec(Scalar("int4", group=40, symmetric=False), 96),
        "nf4": ScalarRowCodec(Scalar("nf4"), 96),
        "mxfp4": ScalarRowCodec(Scalar("mxfp4", clip="search"), 96),
        "nvfp4": ScalarRowCodec(Scalar("nvfp4"), 96),
        "nestquant": NestRowCodec(NestedCode(14, (0.25, 0.35, 0.5)), 96),
    }
    return {f"rows, {name}": digest(codec.encode(x)) for name, codec in codecs.items()}


def integer_results() -> dict[str, str]:
    """Return every result's digest by its name."""
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(2000, 8)), rng.integers(-40, 40, (2000, 8)) / 4])
    x = x.astype(np.float32)
    results = {"closest points": digest(e8.closest_point(x))}
    for cell, q in (("voronoi", 5), ("voronoi", 14), *((cell, 16) for cell in CELLS)):
        code = NestedCode(q, (3.5 / q, 4.5 / q, 6.0 / q), cell)
        found = code.encode_decoded(x)
        parts = zip(("digits", "scale indices", "values"), found, strict=True)
        results |= {f"{part}, {cell}, q={q}": digest(array) for part, array in parts}
        results[f"points, {cell}, q={q}"] = digest(code.points(found[0]))
    for q, k in ((16, 4), (14, 1), (9, 16), (11, 8), (15, 2)):
        results[f"products, q={q}, k={k}"] = digest(products(q, k, "voronoi"))
    for cell, q, k in (("nestquantm", 14, 4), ("cubic", 16, 8), ("d8", 16, 8), ("d8", 32, 4)):
        results[f"products, {cell}, q={q}, k={k}"] = digest(products(q, k, cell))
    for kind, group, symmetric in (("int4", 64, True), ("int4", 24, False), ("nvfp4", 16, True)):
        results[f"tiles, {kind}, group={group}"] = digest(grid_tiles(kind, group, symmetric))
    radix = pack_radix(rng.integers(0, 14, (20, 5, 8), dtype=np.uint8), 14)
    results["mixed radix"] = digest(radix) + digest(unpack_radix(radix, 14, 5))
    results["int8 products"] = digest(int8_products())
    for largest in (32, 63, 64, 127):
        results[f"coded products up to {largest}"] = digest(coded(largest))
    for q, k in ((16, 4), (14, 8)):
        results[f"cache, q={q}, k={k}"] = digest(kept_bytes(q, k))
    return results | coded_rows()


if __name__ == "__main__":
    json.dump({"path": path(), "results": integer_results()}, sys.stdout)
