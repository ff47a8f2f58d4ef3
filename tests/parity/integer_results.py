"""What the integer kernels compute, as digests: run as a program to learn it of another CPU.

``python -m tests.parity.integer_results`` prints a JSON object. Everything in it is exact: digits,
decoded points, products whose float32 sums are integers below 2**24, and floats that are rounded
one by one.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from latticeq.codes.nested import CELLS, NestedCode
from latticeq.codes.pyramid import PyramidCode
from latticeq.jit import kernel
from latticeq.lattices import e8
from latticeq.linear.base import Linear
from latticeq.linear.coded_kernels import coded_products
from latticeq.linear.int8_tiles import Int8Rows
from latticeq.linear.rounded import RoundedLinear
from latticeq.quantizers.pvq_rows import PVQRowCodec
from latticeq.quantizers.rows import NestRowCodec, RowCodec
from latticeq.quantizers.scalar import Scalar
from latticeq.quantizers.scalar_rows import ScalarRowCodec
from latticeq.simd import path
from latticeq.storage.radix import pack_radix, unpack_radix
from tests.linear.linears import (
    int8_matrix,
    integer_grid,
    integer_tokens,
    linear_of,
    rounded_rows_of,
)
from tests.model.cache_helpers import kept_bytes
from tests.simd import programs
from tests.storage.packed_models import (
    integer_nest,
    random_grid,
    random_nest,
    random_pvq,
)


def digest(array: np.ndarray) -> str:
    """Return a digest of dtype, shape and bytes."""
    header = f"{array.dtype} {array.shape} ".encode()
    return hashlib.sha256(header + array.tobytes()).hexdigest()[:16]


def one_and_many(linear: Linear, tokens: np.ndarray) -> np.ndarray:
    """Return products of tokens one by one, and under these together."""
    x = tokens.astype(np.float32)
    return np.concatenate([*(linear(token[None]) for token in x), linear(x)])


def products(q: int, k: int, cell: str) -> np.ndarray:
    """Return packed codewords times tokens of int8 at the ends of its range."""
    rng = np.random.default_rng([q, k])
    linear = linear_of(integer_nest(rng, 70, 48, q, k, cell)[0])
    tokens = np.concatenate([rng.choice([-127, 127], (3, 48)), rng.integers(-127, 128, (8, 48))])
    tokens[:, 0] = 127
    return one_and_many(linear, tokens)


def int8_products() -> np.ndarray:
    """Return int8 rows times tokens of int8, both at the ends of their range."""
    rng = np.random.default_rng(3)
    linear = linear_of(int8_matrix(rng.choice([-127, 127, 3, -1], (70, 256))))
    tokens = rng.choice([-127, 127, 64], (11, 256))
    tokens[:, 0] = 127
    return one_and_many(linear, tokens)


def tile_products() -> np.ndarray:
    """Return a grid of four bits times tokens of int8, by tiles and kept rounded."""
    rng = np.random.default_rng(6)
    linear = linear_of(integer_grid(rng, 70, 76, 20)[0])
    tokens = integer_tokens(rng, 11, 76)
    both = [one_and_many(f, tokens) for f in (linear, RoundedLinear(linear))]
    return np.concatenate(both)


def rounded_tiles(q: int, cell: str) -> str:
    """Return the digest of codewords rounded to int8: every float is rounded alone."""
    values, scales = rounded_rows_of(linear_of(random_nest(37, 48, q, 4, cell=cell)))
    return digest(values) + digest(scales)


def rounded_tokens() -> str:
    """Return the digest of tokens rounded to int8, of a width that is no whole vectors."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(19, 76)) * np.exp2(rng.integers(-9, 9, (19, 1)))
    return "".join(map(digest, Int8Rows(x.astype(np.float32)).operands))


def memory_words() -> str:
    """Return the digest of what words read and write in memory."""
    rng = np.random.default_rng(8)
    ints = rng.integers(-(2**31), 2**31, 160).astype(np.int32)
    floats, raw = rng.normal(size=384).astype(np.float32), rng.integers(0, 256, 256, np.uint8)
    f, i = np.zeros(1600, np.float32), np.zeros(800, np.int32)
    by_address = (array.ctypes.data for array in (ints, floats, raw))
    kernel(programs.addresses)(*by_address, np.zeros(100, np.uint16), f, i)
    found = digest(f) + digest(i)
    kernel(programs.memory)(ints, floats, raw, f, i)
    return found + digest(f) + digest(i) + digest(raw)


def grid_tiles(kind: str, group: int, symmetric: bool) -> np.ndarray:
    """Return a matrix of grid codes as tiles decode it: products with the identity."""
    linear = linear_of(random_grid(20, 64, kind, group, symmetric))
    return linear.multiply_rotated(np.eye(64, dtype=np.float32))


def pyramids(x: np.ndarray) -> dict[str, str]:
    """Return the digests of words and indices of pyramid codes of one limb and of two."""
    results = {}
    for n, k in ((8, 9), (32, 50)):
        code, vectors = PyramidCode(n, k), x.reshape(-1, n)
        words, gains = code.nearest(vectors)
        index = code.rank(words)
        found = digest(words) + digest(gains) + digest(index) + digest(code.unrank(index))
        results[f"pyramid of {k} pulses"] = found + digest(code.nearest(vectors, "projection")[0])
    tiles = linear_of(random_pvq(20, 64, 32, 50, 3))
    identity = np.eye(64, dtype=np.float32)
    return results | {"tiles, pvq": digest(tiles.multiply_rotated(identity))}


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
        "pvq": PVQRowCodec(PyramidCode(16, 58), tuple(np.linspace(1, 7, 16)), 96),
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
    for cell, q, k in (
        ("nestquantm", 14, 4), ("cubic", 16, 8), ("d8", 16, 8), ("d8", 32, 4),
        ("voronoi", 24, 2), ("cubic", 36, 2),
    ):  # fmt: skip
        results[f"products, {cell}, q={q}, k={k}"] = digest(products(q, k, cell))
    for kind, group, symmetric in (("int4", 64, True), ("int4", 24, False), ("nvfp4", 16, True)):
        results[f"tiles, {kind}, group={group}"] = digest(grid_tiles(kind, group, symmetric))
    radix = pack_radix(rng.integers(0, 14, (20, 5, 8), dtype=np.uint8), 14)
    results["mixed radix"] = digest(radix) + digest(unpack_radix(radix, 14, 5))
    results |= pyramids(x)
    results["int8 products"] = digest(int8_products())
    results["tile products"] = digest(tile_products())
    for cell, q in (
        ("voronoi", 14),
        ("voronoi", 24),
        ("nestquantm", 16),
        ("cubic", 16),
        ("d8", 16),
    ):
        results[f"rounded tiles, {cell}, q={q}"] = rounded_tiles(q, cell)
    results["rounded tokens"] = rounded_tokens()
    results["words in memory"] = memory_words()
    for largest in (32, 63, 64, 127):
        results[f"coded products up to {largest}"] = digest(coded(largest))
    for q, k in ((16, 4), (14, 8)):
        results[f"cache, q={q}, k={k}"] = digest(kept_bytes(q, k))
    return results | coded_rows()


if __name__ == "__main__":
    json.dump({"path": path(), "results": integer_results()}, sys.stdout)
