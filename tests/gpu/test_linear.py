"""Products, rotations and codes on the device against the CPU: digits equal, floats in bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latticeq.cli.random_matrices import RANDOM_FORMATS, random_packed
from latticeq.codes.nested import NestedCode
from latticeq.errors import InputError
from latticeq.gpu.device import copy_bandwidth, cupy, describe
from latticeq.gpu.linear import GpuLinear, make_gpu_linear
from latticeq.gpu.rows import GpuRowCodec
from latticeq.gpu.tokens import GpuRotation
from latticeq.linear.coded import CodedLinear
from latticeq.linear.packed import make_tiled_linear
from latticeq.quantizers.rows import NestRowCodec
from latticeq.transforms.rotation import Rotation

pytestmark = pytest.mark.gpu

TOKENS = (1, 2, 8, 9, 16, 17, 33, 64, 65, 130, 300)
"""One and more tiles of tokens, whole and in part, for each of the ways to multiply."""

ROTATIONS = [
    Rotation(8),
    Rotation(128),
    Rotation(576),
    Rotation(576, seed=7),
    Rotation(576, block=32),
    Rotation(92),
    Rotation(192, kind="none"),
    Rotation(1536, seed=1),
    Rotation(4096),
    Rotation(11008, seed=2),
    Rotation(14336),
    Rotation(28672),
    Rotation(65536),
]

CODES = [
    ("voronoi", 16, 4, "opt", 64),
    ("voronoi", 14, 4, "first", 576),
    ("voronoi", 15, 3, "opt", 128),
    ("voronoi", 40, 4, "opt", 128),
    ("cubic", 16, 8, "opt", 4096),
    ("cubic", 10, 1, "opt", 128),
    ("d8", 16, 8, "opt", 576),
    ("d8", 8, 5, "first", 128),
    ("nestquantm", 16, 4, "opt", 576),
    ("nestquantm", 13, 16, "first", 1088),
]


def codec_of(cell: str, q: int, k: int, selection: str, n: int) -> NestRowCodec:
    betas = np.linspace(0.18, 0.45, k).astype(np.float32) * np.float32(16 / q)
    return NestRowCodec(NestedCode(q, tuple(map(float, betas)), cell, selection), n)


def bound(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What `latticeq.gpu.linear` promises of an entry."""
    sizes = np.abs(x) @ np.abs(weights).T
    largest = np.abs(x).max(axis=1, keepdims=True)
    return 2.0**-9 * sizes + 2.0**-24 * largest * np.abs(weights).sum(axis=1)


def matrix_of(packed: Any) -> np.ndarray:
    """Return the matrix in the rotated basis, (M, N) float64, as the CPU decodes it."""
    tiles = [tile.T for _, tile in make_tiled_linear(packed).float_tiles()]
    return np.concatenate(tiles)[: packed.shape[0]].astype(np.float64)


@pytest.mark.parametrize("shape", [(33, 128), (70, 576), (48, 4096)], ids=str)
@pytest.mark.parametrize("name", RANDOM_FORMATS)
def test_products_are_within_the_bound(
    name: str, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    packed = random_packed(name, *shape, seed=3)
    bias = rng.standard_normal(shape[0]).astype(np.float32)
    linear, matrix = make_gpu_linear(packed, bias), matrix_of(packed)
    for tokens in TOKENS:
        sizes = 10 ** rng.uniform(-2, 2, (tokens, 1))
        x = (rng.standard_normal((tokens, shape[1])) * sizes).astype(np.float32)
        got = cupy().asnumpy(linear(cupy().asarray(x)))
        rotated = packed.rotation.apply(x).astype(np.float64)
        error = np.abs(got - (rotated @ matrix.T + bias))
        assert (error <= bound(rotated, matrix) + 1e-6 * np.abs(bias)).all(), tokens


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_rotations_are_the_cpus_float_for_float(
    rotation: Rotation, rng: np.random.Generator
) -> None:
    x = (10 * rng.standard_normal((3, rotation.n))).astype(np.float32)
    on_device = GpuRotation(rotation)
    got = cupy().asnumpy(on_device.rotate(cupy().asarray(x)))
    want = np.ascontiguousarray(rotation.apply(x))
    np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))
    operand = on_device.operand(cupy().asarray(x))
    halves = cupy().asnumpy(operand.halves)[:, : rotation.n].astype(np.float32)
    values = halves * cupy().asnumpy(operand.scale)[:, None]
    assert (np.abs(values - want) <= 2.0**-11 * np.abs(want) + 1e-7 * np.abs(want).max()).all()
    assert not cupy().asnumpy(operand.halves)[:, rotation.n :].any()


@pytest.mark.parametrize(("cell", "q", "k", "selection", "n"), CODES)
def test_coded_rows_are_the_cpus_bytes(
    cell: str, q: int, k: int, selection: str, n: int, rng: np.random.Generator
) -> None:
    codec = codec_of(cell, q, k, selection, n)
    x = rng.standard_normal((20, n)).astype(np.float32) * rng.uniform(0.01, 100, (20, 1)).astype(
        "f4"
    )
    x[3], x[4], x[5, 3], x[6, 2] = rng.standard_t(2, n), 0, np.nan, np.inf
    on_device = GpuRowCodec(codec)
    coded, want = cupy().asnumpy(on_device.encode(cupy().asarray(x))), codec.encode(x)
    np.testing.assert_array_equal(coded, want)
    values = cupy().asnumpy(on_device.decode(cupy().asarray(want)))
    np.testing.assert_array_equal(values, codec.decode(want))


@pytest.mark.parametrize("tokens", [1, 16, 70, 200])
@pytest.mark.parametrize("cell", ["voronoi", "cubic", "d8", "nestquantm"])
def test_coded_inputs_are_multiplied_as_the_cpu_does(
    cell: str, tokens: int, rng: np.random.Generator
) -> None:
    packed = random_packed("voronoi q=16 k=4", 70, 576, seed=5)
    codec = codec_of(cell, 16, 4, "opt", 576)
    x = rng.standard_normal((tokens, 576)).astype(np.float32)
    got = cupy().asnumpy(make_gpu_linear(packed, None, 0, codec)(cupy().asarray(x)))
    want = CodedLinear(make_tiled_linear(packed), codec)(x)
    coded = codec.decode(codec.encode(packed.rotation.apply(x))).astype(np.float64)
    assert (np.abs(got - want) <= bound(coded, matrix_of(packed))).all()


def test_a_token_that_is_not_finite_spoils_itself_alone() -> None:
    module = cupy()
    linear = make_gpu_linear(random_packed("cubic q=16 k=4", 32, 128, seed=1))
    x = module.ones((3, 128), "float32")
    x[1, 5] = np.nan
    y = module.asnumpy(linear(x))
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()
    module.testing.assert_array_equal(linear(module.zeros((1, 128), "float32")), 0)


def test_matrices_that_share_an_input_and_float16_inputs(rng: np.random.Generator) -> None:
    module = cupy()
    linears = [
        make_gpu_linear(random_packed(name, 32, 128, seed=2))
        for name in ("cubic q=16 k=4", "voronoi q=16 k=4", "int8 per row")
    ]
    x = module.asarray(rng.standard_normal((5, 128)), "float16")
    together = GpuLinear.apply_group(linears, x)
    for linear, y in zip(linears, together, strict=True):
        module.testing.assert_array_equal(y, linear(x.astype("float32")))
        out = module.empty_like(y)
        assert linear(x, out) is out
        module.testing.assert_array_equal(out, y)


def test_a_captured_product_is_the_same(rng: np.random.Generator) -> None:
    module = cupy()
    linear = make_gpu_linear(random_packed("voronoi q=16 k=4", 576, 1536, seed=2))
    x = module.asarray(rng.standard_normal((1, 1536)), "float32")
    out = module.empty((1, 576), "float32")
    want = linear(x).copy()
    stream = module.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        linear(x, out)
        graph = stream.end_capture()
        for _ in range(3):
            out.fill(0)
            graph.launch(stream)
            stream.synchronize()
            module.testing.assert_array_equal(out, want)


def test_inputs_that_do_not_fit_are_refused() -> None:
    module = cupy()
    linear = make_gpu_linear(random_packed("cubic q=16 k=4", 32, 128, seed=1))
    for x, said in (
        (np.zeros((1, 128), np.float32), "must be a cupy.ndarray"),
        (module.zeros((1, 127), "float32"), r"shape \(1, 127\)"),
        (module.zeros((1, 128), "float64"), "float64"),
        (module.zeros((1, 256), "float32")[:, ::2], "C-contiguous"),
    ):
        with pytest.raises(InputError, match=said):
            linear(x)
    with pytest.raises(InputError, match="out is float32"):
        linear(module.zeros((1, 128), "float32"), module.zeros((2, 32), "float32"))
    with pytest.raises(InputError, match="bias has shape"):
        make_gpu_linear(random_packed("cubic q=16 k=4", 32, 128), np.zeros(31, np.float32))


def test_the_device_is_described() -> None:
    device = describe()
    assert device.free_memory <= device.memory
    assert device.multiprocessors > 0
    assert copy_bandwidth(size=2**24) > 1e9
