"""Scalar quantizers: against their reference, on Gaussians, under feedback, and refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers.base import QuantizedTensor, Quantizer
from latticeq.quantizers.scalar import GridTensor, Scalar
from latticeq.transforms.rotation import Rotation
from reference import grids as reference
from reference import ldlq
from tests.quantizers.scalar_data import SCALARS, awkward_rows, factors, levels, store

every_scalar = pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)
N = 96


def bits(tensor: GridTensor) -> np.ndarray:
    return tensor.scales if tensor.scales.dtype == np.uint8 else tensor.scales.view(np.uint16)


@every_scalar
def test_scales_and_codes_are_those_of_the_reference(
    scalar: Scalar, rng: np.random.Generator
) -> None:
    x = awkward_rows(rng, N)
    tensor = scalar.quantize(x)
    group = scalar.group_size(N)
    rounded = store(scalar, np.abs(x).max())
    for row in range(len(x)):
        for g in range(tensor.scales.shape[1]):
            columns = slice(g * group, (g + 1) * group)
            part = x[row, columns]
            scale, zero = reference.choose_scale(
                part, levels(scalar), factors(scalar), rounded, not scalar.symmetric
            )
            assert bits(tensor)[row, g] == scale.bits
            assert tensor.zero is None or tensor.zero.view(np.uint16)[row, g] == zero.bits
            assert tensor.steps()[row, g] == scale.value
            divisor = float(scale.value) or 1.0
            above = part.astype(np.float64) - float(zero.value)
            codes = reference.nearest(levels(scalar), above / divisor)
            assert np.array_equal(tensor.codes[row, columns], codes)
            values = levels(scalar).astype(np.float32)[codes] * scale.value + zero.value
            assert np.array_equal(tensor.rotated()[row, columns], values)


@pytest.mark.parametrize(
    ("scalar", "n_bits", "error"),
    [
        (Scalar("int4", 32, clip="none"), 4.5, 0.00938),
        (Scalar("int4", 128, clip="none"), 4.125, 0.01374),
        (Scalar("int4", clip="none"), 4.0039, 0.0249),
        (Scalar("int4"), 4.0039, 0.01180),
        (Scalar("int4", 128), 4.125, 0.01018),
        (Scalar("int4", 32), 4.5, 0.00742),
        (Scalar("int4", 128, symmetric=False), 4.25, 0.00884),
        (Scalar("nf4", clip="none"), 4.25, 0.00843),
        (Scalar("nf4"), 4.25, 0.00744),
        (Scalar("mxfp4"), 4.25, 0.01321),
        (Scalar("mxfp4", clip="search"), 4.25, 0.01244),
        (Scalar("nvfp4", four_over_six=False), 4.5, 0.00904),
        (Scalar("nvfp4"), 4.5, 0.00756),
    ],
    ids=repr,
)
@pytest.mark.skipif(not IS_JIT, reason="a million numbers in plain Python take minutes")
def test_errors_on_gaussians(scalar: Scalar, n_bits: float, error: float) -> None:
    x = np.random.default_rng(0).normal(size=(256, 4096)).astype(np.float32)
    tensor = replace(scalar, rotate="none").quantize(x)
    assert tensor.bits_per_entry == pytest.approx(n_bits, abs=1e-4)
    assert np.mean((x - tensor.dequantize()) ** 2) == pytest.approx(error, rel=0.015)


UNCLIPPED = {name: scalar for name, scalar in SCALARS.items() if "clipped" not in name}


@pytest.mark.parametrize("scalar", UNCLIPPED.values(), ids=UNCLIPPED)
def test_valid_codes_quantize_to_themselves(scalar: Scalar, rng: np.random.Generator) -> None:
    like = scalar.quantize(rng.normal(size=(5, N)))
    # Groups that reach the end of the grid name their own scales.
    codes = rng.integers(1, 16, (5, N), dtype=np.uint8) % (8 if like.grid.name == "e2m1" else 16)
    first = np.arange(0, N, like.group)
    codes[:, first] = like.grid.codes[-1]
    codes[:, first + 1] = 0 if like.grid.name == "uint4" else codes[:, first + 1]
    scales = rng.uniform(0.1, 0.9, like.scales.shape).astype(np.float16)
    if scalar.is_float:
        scales = rng.integers(90, 120, like.scales.shape, dtype=np.uint8)
        scales[0, 0] = 0x78 if scalar.four_over_six else 0x7E
    changes: dict[str, Any] = {"codes": codes, "scales": scales}
    if scalar.kind == "nvfp4":
        changes["tensor_scale"] = np.float32(2.0**-7)
    if not scalar.symmetric:
        changes["zero"] = rng.normal(size=scales.shape).astype(np.float16)
    tensor = replace(like, **changes)
    again = scalar.quantize(tensor.dequantize())
    assert np.array_equal(again.codes, codes)
    assert np.array_equal(bits(again), bits(tensor))
    assert np.array_equal(again.dequantize(), tensor.dequantize())


@every_scalar
@pytest.mark.parametrize("power", [-3, 5])
def test_powers_of_two_go_through(scalar: Scalar, power: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, N))
    tensor, scaled = scalar.quantize(x), scalar.quantize(x * 2.0**power)
    assert np.array_equal(scaled.codes, tensor.codes)
    assert np.array_equal(scaled.rotated(), tensor.rotated() * np.float32(2.0**power))


@pytest.mark.parametrize("kind", ["int4", "nf4", "mxfp4", "nvfp4"])
def test_rotations_belong_to_kinds(kind: str, rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 192))
    scalar = Scalar(kind, seed=4)
    tensor = scalar.quantize(x)
    block = {"mxfp4": 32, "nvfp4": 16}.get(kind)
    assert tensor.rotation == scalar.rotation(192) == Rotation(192, 4, block=block)
    rotated = Scalar(kind, rotate="none").quantize(tensor.rotation.apply(x))
    assert np.array_equal(rotated.codes, tensor.codes)
    back = tensor.rotation.apply_transpose(tensor.rotated())
    assert np.array_equal(tensor.dequantize(), back)
    assert Scalar(kind, rotate="none").rotation(192) == Rotation(192, kind="none")


@pytest.mark.parametrize("kind", ["int4", "nf4", "mxfp4", "nvfp4"])
def test_feedback_is_ldlq_in_single_columns(kind: str, rng: np.random.Generator) -> None:
    n = 160
    mixing = rng.normal(size=(n, n)) / np.sqrt(n) + 0.5 * np.eye(n)
    inputs = rng.normal(size=(3 * n, n)) @ mixing
    hessian = inputs.T @ inputs / len(inputs)
    weights = rng.normal(size=(24, n))
    scalar = Scalar(kind, rotate="none")
    plain, fed_back = scalar.quantize(weights), scalar.quantize(weights, hessian, 0.01)
    steps = plain.steps()

    def take(column: int, target: np.ndarray) -> np.ndarray:
        step = steps[:, [column // plain.group]]
        return np.asarray(plain.grid.decode(plain.grid.encode(target / step)) * step)

    wanted = ldlq.ldlq(weights, ldlq.damped(hessian, 0.01), 1, take)
    assert (fed_back.rotated() == wanted.astype(np.float32)).mean() > 0.999
    assert np.array_equal(fed_back.scales, plain.scales)
    assert (plain.damping, fed_back.damping) == (None, 0.01)
    before = ldlq.proxy_loss(weights, plain.dequantize(), hessian)
    assert ldlq.proxy_loss(weights, fed_back.dequantize(), hessian) < 0.8 * before
    no_feedback = scalar.quantize(weights, np.eye(n))
    assert np.array_equal(no_feedback.codes, plain.codes)


def test_tensors_are_counted_and_keep_their_protocol(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 5, 200)).astype(np.float32)
    tensor = Scalar("int4", group=48, symmetric=False).quantize(x)
    assert isinstance(tensor, QuantizedTensor)
    assert isinstance(Scalar(), Quantizer)
    assert tensor.scales.shape == (10, 5)  # the last group of a row is 8 long
    assert tensor.nbytes == 16 * 100 + 10 * 5 * 4
    assert tensor.bits_per_entry == 8 * tensor.nbytes / x.size
    assert tensor.dequantize().shape == tensor.shape == x.shape
    assert tensor.dequantize().dtype == np.float32
    assert np.mean((tensor.dequantize() - x) ** 2) < 0.02


def test_a_zero_tensor_is_zero() -> None:
    for scalar in SCALARS.values():
        assert not scalar.quantize(np.zeros((2, N))).dequantize().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "int5"}, "kind is 'int5'; it must be one of int4, nf4, mxfp4, nvfp4"),
        ({"rotate": "fourier"}, "'hadamard' or 'none'"),
        ({"group": 0}, "group is 0; it must be a positive integer"),
        ({"group": 32.0}, "group is 32.0"),
        ({"kind": "mxfp4", "group": 16}, "group is 16; mxfp4 has 32 only"),
        ({"kind": "nf4", "symmetric": False}, "of nf4 there is no asymmetric form"),
        ({"clip": "mse"}, r"clip is 'mse'; for int4 it must be .* a number in \(0, 1\]"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"clip": 1.5}, "clip is 1.5"),
        ({"clip": float("nan")}, "clip is nan"),
        ({"kind": "mxfp4", "clip": 0.9}, "for mxfp4 it must be 'search' or 'none'"),
        ({"kind": "nvfp4", "clip": "search"}, "for nvfp4 it must be 'none'"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scalar(**arguments)


@pytest.mark.parametrize(
    ("scalar", "x", "message"),
    [
        (Scalar(), np.array([[1.0, np.nan]]), r"entry \(0, 1\) is nan"),
        (Scalar("nvfp4"), np.full((1, 16), -np.inf), "is -inf"),
        (Scalar("mxfp4"), np.ones((2, 48)), "multiple of 32"),
        (Scalar("nvfp4"), np.ones((2, 24)), "multiple of 16"),
        (Scalar(rotate="none"), np.full((1, 4), 1e6), "largest magnitude is 1e\\+06"),
        (Scalar("nf4", rotate="none"), np.full((1, 4), 1e-6), "rescale"),
        (Scalar("mxfp4", rotate="none"), np.full((1, 32), 1e200), "rescale"),
        (Scalar(), np.zeros((0, 8)), "shape"),
    ],
)
def test_bad_tensors_are_refused(scalar: Scalar, x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scalar.quantize(x)
