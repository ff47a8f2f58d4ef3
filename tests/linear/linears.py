"""Linears of small random matrices, and tokens that int8 holds exactly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from latticeq.codes.nested import NestedCode
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.linear.base import Linear
from latticeq.linear.coded import CodedLinear
from latticeq.linear.packed import GridLinear, Int8Linear, NestLinear, make_packed_linear
from latticeq.linear.rounded import RoundedLinear
from latticeq.linear.tiled import TiledLinear
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.grid_tensor import GridTensor
from latticeq.quantizers.rows import NestRowCodec
from latticeq.quantizers.scalar import Int8, Int8Tensor
from latticeq.storage.checkpoint import packed
from latticeq.transforms.rotation import Rotation
from tests.storage.packed_models import random_grid, random_nest, random_pvq

CODES = [
    (16, 4, "voronoi", None),
    (14, 3, "voronoi", 5),
    (24, 8, "voronoi", None),
    (3, 1, "voronoi", 1),
    (16, 4, "nestquantm", None),
    (14, 4, "nestquantm", None),
    (31, 2, "nestquantm", None),
    (16, 8, "cubic", None),
    (6, 4, "cubic", 2),
    (62, 4, "cubic", None),
    (16, 8, "d8", None),
    (10, 5, "d8", None),
    (8, 8, "d8", None),
    (2, 1, "d8", None),
    (32, 8, "d8", 7),
]
"""q, the number of scales, the cell and the rotation's seed."""

GRIDS = [
    ("int4", 48, True, None),
    ("int4", 20, False, None),
    ("int4", 1, True, 12),
    ("nf4", 64, True, None),
    ("nf4", 32, True, None),
    ("mxfp4", 32, True, 32),
    ("nvfp4", 16, True, 16),
]
"""The kind, the group, whether it is symmetric and the rotation's block."""

CODE = NestedCode(16, (0.1942, 0.2423, 0.2892, 0.3771))
"""For activations."""

ROUNDING = 2.0**-24
"""The largest relative error of one float32 rounding."""


def grid_of(kind: str, group: int, symmetric: bool, block: int | None) -> GridTensor:
    """Return one of `GRIDS` with 37 rows."""
    n = 96 if kind == "mxfp4" else 48
    return random_grid(37, n, kind, group, symmetric, Rotation(n, 4, block=block))


def linear_of(
    tensor: QuantizedTensor, bias: np.ndarray | None = None, runtime: str = "packed"
) -> NestLinear | GridLinear | Int8Linear:
    """Return the linear of a quantized matrix, through its bytes."""
    return make_packed_linear(packed(tensor), bias, runtime)


def int8_linear(
    weights: np.ndarray, bias: np.ndarray | None = None, runtime: str = "packed"
) -> Int8Linear:
    """Return the linear of a matrix rounded to int8."""
    linear = linear_of(Int8().quantize(weights), bias, runtime)
    assert isinstance(linear, Int8Linear)
    return linear


def integer_tokens(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    """Return integers that are their own int8 under a scale of one: the largest is 127."""
    x = np.where(
        rng.random((count, n)) < 0.5,
        rng.choice([-127, 127, 0, 1], (count, n)),
        rng.integers(-127, 128, (count, n)),
    )
    x[np.arange(count), rng.integers(n, size=count)] = rng.choice([-127, 127], count)
    return x


def integer_grid(
    rng: np.random.Generator, m: int, n: int, group: int
) -> tuple[GridTensor, np.ndarray]:
    """Return codes that stand for integers, and these: in every row 127 is the largest."""
    codes = rng.integers(0, 16, (m, n), dtype=np.uint8)
    codes[:, 0] = 15
    steps = rng.integers(0, 9, (m, -(-n // group)))
    zero = rng.integers(-127, 128 - 15 * steps)
    zero[:, 0] = 127 - 15 * steps[:, 0]
    tensor = GridTensor(
        (m, n), "int4", group, Rotation(n, None, "none"), codes,
        steps.astype(np.float16), zero.astype(np.float16),
    )  # fmt: skip
    wide = (np.repeat(part, group, axis=1)[:, :n] for part in (steps, zero))
    step, start = wide
    return tensor, codes * step + start


def one_of_each(
    rng: np.random.Generator, bias: np.ndarray | None = None, runtime: str = "packed"
) -> list[TiledLinear]:
    """Return a linear of each class and of each way to decode, 20 x 64."""
    tensors = [
        random_nest(20, 64, 16, 4),
        random_nest(20, 64, 20, 4),
        random_nest(20, 64, 14, 2, cell="nestquantm"),
        random_nest(20, 64, 16, 8, cell="d8"),
        random_nest(20, 64, 32, 8, cell="d8"),
        random_nest(20, 64, 16, 8, cell="cubic"),
        random_pvq(20, 64, 16, 30, 4),
        random_pvq(20, 64, 32, 90, 3),
        random_grid(20, 64, "int4", 64),
        random_grid(20, 64, "int4", 20, symmetric=False),
        Int8().quantize(rng.normal(size=(20, 64))),
    ]
    return [linear_of(tensor, bias, runtime) for tensor in tensors]


def each_behind_more(rng: np.random.Generator, bias: np.ndarray | None = None) -> list[Linear]:
    """Return `one_of_each` in both runtimes, rounded, and behind a code for activations."""
    plain, exact = (one_of_each(rng, bias, runtime) for runtime in ("packed", "float32"))
    codec = NestRowCodec(CODE, 64)
    rounded = [RoundedLinear(linear) for linear in plain]
    return [*plain, *exact, *rounded, *(CodedLinear(linear, codec) for linear in plain)]


def with_threads(count: int, run: Callable[[], bytes]) -> bytes:
    """Return what a function returns with that many threads, as far as there are so many."""
    before = threads()
    set_threads(min(count, before))
    try:
        return run()
    finally:
        set_threads(before)


def quiet_numpy() -> AbstractContextManager[None]:
    """Let NumPy meet infinity in kernels that are not compiled; compiled ones never warn."""
    return nullcontext() if IS_JIT else np.errstate(invalid="ignore")


def int8_matrix(values: np.ndarray) -> Int8Tensor:
    """Return a matrix of these integers, every scale one."""
    return Int8Tensor(values.shape, values.astype(np.int8), np.ones(len(values), np.float16))


def tiles_of(linear: TiledLinear) -> np.ndarray:
    """Return the matrix that a linear decodes, tile after tile."""
    tiles = list(linear.float_tiles())
    starts = np.cumsum([0, *(tile.shape[1] for _, tile in tiles)])
    assert [16 * first for first, _ in tiles] == starts[:-1].tolist()
    whole = np.concatenate([tile for _, tile in tiles], axis=1).T
    assert not whole[linear.out_features :].any()
    return np.ascontiguousarray(whole[: linear.out_features])


def rounded_rows_of(linear: TiledLinear) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix that a linear rounds to int8, tile after tile, and its row scales."""
    values, scales = [], []
    for _, words, scale in linear.rounded_tiles():
        raised = words.view(np.uint8).reshape(*words.shape, 4).swapaxes(1, 2)
        values.append((raised.reshape(len(scale), -1) ^ 128).view(np.int8))
        scales.append(scale)
    return np.concatenate(values)[: linear.out_features], np.concatenate(scales)
