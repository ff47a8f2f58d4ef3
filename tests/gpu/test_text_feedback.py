"""CUDA text run on the CPU: error feedback gives the digits of latticeq.quantizers."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.gpu.nestquant import ROWS
from latticeq.gpu.weights import CELLS
from latticeq.quantizers.feedback import PANEL, Factor, ldlq
from latticeq.quantizers.nestquant import NestQuant, NestTensor
from tests.gpu.on_cpu import address, build, needs_compiler

pytestmark = needs_compiler

LOOP = """
template <class Kernel> void run(int blocks, int columns, int threads, Kernel kernel) {
    blockDim = {threads, 1, 1};
    gridDim = {blocks, columns, 1};
    for (blockIdx.y = 0; blockIdx.y < columns; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
            for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) kernel();
}
"""

FACTOR = """
extern "C" void factor(double* c, int n) {
    run((n + 127) / 128, n / 8, 128, [&] { unit_lower(c, n); });
}
"""

CODER = """
extern "C" void encode(const float* x, int count, const float* betas, const float* inverse, int k,
                       int q, int first_fit, float limit, unsigned char* digits,
                       unsigned char* index, int* bad) {
    run((count + 127) / 128, 1, 128, [&] {
        encode_blocks(x, count, betas, inverse, k, q, first_fit, limit, digits, index, bad);
    });
}

extern "C" void decode(const unsigned char* digits, const unsigned char* index, int count,
                       int blocks, int q, const float* units, const float* row_scale, float* out) {
    run((count + 127) / 128, 1, 128, [&] {
        decode_blocks(digits, index, count, blocks, q, units, row_scale, out);
    });
}

extern "C" void panel(const double* weights, const double* target, const double* lower, int rows,
                      int n, int start, int columns, const float* betas, const float* inverse,
                      int k, int q, int first_fit, float limit, unsigned char* digits,
                      unsigned char* index, double* error, int* bad) {
    run((rows + ROWS - 1) / ROWS, 1, ROWS, [&] {
        feed_panel(weights, target, lower, rows, n, start, columns, betas, inverse, k, q, first_fit,
                   limit, digits, index, error, bad);
    });
}
"""


CONSTANTS = {"ROWS": ROWS, "LANES": 1, "PANEL": PANEL}


class Text:
    """The kernels of a code, called as the device is."""

    def __init__(self, folder: Path, quantizer: NestQuant) -> None:
        code = quantizer.code
        self.library = build(
            folder, "quantize.cu", LOOP + CODER, CELL=CELLS[code.cell], **CONSTANTS
        )
        self.code, self.betas = code, np.array(code.betas, np.float32)
        self.inverse = 1 / self.betas
        self.bad = np.zeros(1, np.int32)

    @property
    def constants(self) -> tuple[Any, ...]:
        first = int(self.code.selection == "first")
        limit = ctypes.c_float(self.code.limit)
        return address(self.betas), address(self.inverse), self.code_size, self.code.q, first, limit

    @property
    def code_size(self) -> int:
        return len(self.betas)

    def ldlq(self, values: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m, n = values.shape
        digits, index = np.empty((m, n // 8, 8), np.uint8), np.empty((m, n // 8), np.uint8)
        target, error = values.copy(), np.empty((m, PANEL))
        for stop in range(n, 0, -PANEL):
            start = max(0, stop - PANEL)
            self.library.panel(
                address(values), address(target), address(lower), m, n, start, stop - start,
                *self.constants, address(digits), address(index), address(error),
                address(self.bad),
            )  # fmt: skip
            target[:, :start] += error[:, : stop - start] @ lower[start:stop, :start]
        return digits, index


CODES = [
    {"q": 16, "k": 4},
    {"q": 15, "k": 3, "betas": (0.2, 0.3, 0.5), "selection": "first"},
    {"q": 14, "k": 4, "shaping": "nestquantm"},
    {"q": 16, "k": 8, "shaping": "cubic"},
    {"q": 16, "k": 8, "shaping": "d8"},
]


def spread_hessian(n: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((2 * n, n)) @ (np.eye(n) + rng.standard_normal((n, n)) / np.sqrt(n))
    return x.T @ x / len(x)


@pytest.mark.parametrize("options", CODES)
def test_feedback_gives_the_cpus_digits(
    tmp_path: Path, options: dict[str, Any], rng: np.random.Generator
) -> None:
    """23 rows fill no group of sixteen, 264 columns no panel."""
    quantizer = NestQuant(**options, rotate="none")
    weights = rng.standard_normal((23, 264))
    factor = quantizer.factor(spread_hessian(264, rng))
    wanted = quantizer.quantize(weights, factor)
    scale = wanted.row_scale.astype(np.float64)[:, None]
    text = Text(tmp_path, quantizer)
    digits, index = text.ldlq(weights / scale, factor.lower)
    np.testing.assert_array_equal(digits, wanted.digits)
    np.testing.assert_array_equal(index, wanted.scale_index)
    assert not text.bad.any()


@pytest.mark.parametrize("options", CODES)
def test_plain_digits_and_what_they_stand_for(
    tmp_path: Path, options: dict[str, Any], rng: np.random.Generator
) -> None:
    quantizer = NestQuant(**options, rotate="none")
    x = rng.standard_normal((37, 40)).astype(np.float32)
    wanted: NestTensor = quantizer.quantize(x)
    scale = wanted.row_scale.astype(np.float32)
    unit, text = x / scale[:, None], Text(tmp_path, quantizer)
    digits, index = np.empty_like(wanted.digits), np.empty_like(wanted.scale_index)
    text.library.encode(
        address(unit), index.size, *text.constants, address(digits), address(index),
        address(text.bad),
    )  # fmt: skip
    np.testing.assert_array_equal(digits, wanted.digits)
    np.testing.assert_array_equal(index, wanted.scale_index)
    units, out = text.betas * np.float32(quantizer.code.unit), np.empty_like(x)
    text.library.decode(
        address(digits), address(index), index.size, 5, quantizer.q, address(units),
        address(scale), address(out),
    )  # fmt: skip
    np.testing.assert_array_equal(out, wanted.rotated())


def test_the_factor_is_the_cpus(tmp_path: Path, rng: np.random.Generator) -> None:
    hessian = spread_hessian(136, rng)
    quantizer = NestQuant(rotate="none")
    wanted = quantizer.factor(hessian, damping=0.0)
    found = np.linalg.cholesky(hessian)
    build(tmp_path, "factor.cu", LOOP + FACTOR).factor(address(found), 136)
    for at in range(0, 136, 8):
        below = slice(at + 8, None), slice(at, at + 8)
        np.testing.assert_allclose(found[below], wanted.lower[below], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e9])
def test_what_cannot_be_coded_is_told(tmp_path: Path, wrong: float) -> None:
    text = Text(tmp_path, NestQuant(rotate="none"))
    values = np.ones((3, 16))
    values[1, 3] = wrong
    text.ldlq(values, np.eye(16))
    assert text.bad[0] == 1


def test_the_order_of_feedback_is_that_of_the_package(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """The mutation that a wrong order would be: with a factor that is no identity, it shows."""
    quantizer = NestQuant(rotate="none")
    values, factor = rng.standard_normal((4, 32)), quantizer.factor(spread_hessian(32, rng))
    flat = Factor(np.eye(32), 8, 0.0)
    taken: list[np.ndarray] = []

    def take(columns: slice, target: np.ndarray) -> np.ndarray:
        digits, _, decoded = quantizer.code.encode_decoded(target.astype(np.float32))
        taken.append(digits)
        return decoded

    ldlq(values, flat, take)
    text = Text(tmp_path, quantizer)
    plain, _ = text.ldlq(values, flat.lower)
    fed, _ = text.ldlq(values, factor.lower)
    np.testing.assert_array_equal(plain, np.stack(taken[::-1], axis=1))
    assert (plain != fed).any()
    np.testing.assert_array_equal(plain[:, -1], fed[:, -1])  # the last block is fed nothing
