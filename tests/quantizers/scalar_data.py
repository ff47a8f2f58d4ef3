"""What tests of scalar quantizers share: kinds, their references, and rows with awkward groups."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.grids import NF4
from latticeq.quantizers.scalar import Scalar
from reference import grids as reference

SCALARS = {
    "int4": Scalar("int4", rotate="none"),
    "int4 g24": Scalar("int4", group=24, rotate="none", clip="none"),
    "int4 clipped": Scalar("int4", group=40, rotate="none", clip=0.9),
    "int4 asymmetric": Scalar("int4", group=48, rotate="none", symmetric=False),
    "int4 asymmetric, clipped": Scalar("int4", rotate="none", symmetric=False, clip=0.95),
    "nf4": Scalar("nf4", group=32, rotate="none"),
    "nf4 whole": Scalar("nf4", rotate="none", clip="none"),
    "mxfp4": Scalar("mxfp4", rotate="none"),
    "mxfp4 searched": Scalar("mxfp4", rotate="none", clip="search"),
    "nvfp4": Scalar("nvfp4", rotate="none"),
    "nvfp4 six": Scalar("nvfp4", rotate="none", four_over_six=False),
}


def levels(scalar: Scalar) -> NDArray[np.float64]:
    """Return the levels by their definition; NF4's, which are compared elsewhere, as published."""
    if scalar.kind == "int4":
        return reference.INT4 if scalar.symmetric else reference.UINT4
    return np.float64(NF4.by_code) if scalar.kind == "nf4" else reference.E2M1


def store(scalar: Scalar, peak: np.float32) -> Callable[[np.float32], reference.Stored]:
    """Return how a scale is rounded in a tensor, or row, whose largest magnitude is `peak`."""
    if scalar.kind == "mxfp4":
        return reference.as_power_of_two
    if scalar.kind == "nvfp4":
        top = peak / np.float32(6 * (256 if scalar.four_over_six else 448))
        return partial(reference.as_e4m3, tensor_scale=top)
    return reference.as_half


def factors(scalar: Scalar) -> list[np.float32]:
    """Return the candidates over the largest magnitude, the clipping ratios written out."""
    ratios = 1 - np.arange(32) / 64
    if isinstance(scalar.clip, float):
        ratios = np.array([scalar.clip])
    elif scalar.clip == "none":
        ratios = np.ones(1)
    found = {
        "int4": ratios / 7 if scalar.symmetric else ratios,
        "nf4": ratios,
        "mxfp4": [0.25, 0.5] if scalar.clip == "search" else [0.25],
        "nvfp4": [1 / 6, 1 / 4] if scalar.four_over_six else [1 / 6],
    }[scalar.kind]
    return [np.float32(factor) for factor in found]


def awkward_rows(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Return rows with zeros, constants, one large number, tiny groups and plain noise."""
    x = rng.normal(size=(7, n)).astype(np.float32)
    x[1] = 0
    x[2, : n // 2] = 0
    x[3] = 0.375
    x[4] *= np.float32(1e-3)
    x[4, n // 3] = 11
    x[5] += 5
    x[6] = np.float32(2.0) ** rng.integers(-6, 6, n) * rng.choice([-1, 1], n)
    return x
