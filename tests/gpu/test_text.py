"""CUDA text run on the CPU: codes, digits and words are the package's, bit for bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from latticeq.codes.d8_fields import join_d8, split_d8
from latticeq.codes.nested import NestedCode
from latticeq.gpu.weights import CELLS
from latticeq.storage.bits import bit_width, pack_digits, pack_scale_index
from tests.gpu.on_cpu import address, build, needs_compiler

pytestmark = needs_compiler

CODER = """
extern "C" void encode(const float* x, int count, const float* betas, const float* inverse, int k,
                       int q, int first_fit, int* digits, int* index) {
    for (int n = 0; n < count; n++) {
        float block[8], point[8];
        int found[8];
        EACH block[i] = x[8 * n + i];
        index[n] = closest_codeword(block, betas, inverse, k, q, first_fit, point);
        digits_of(point, q, found);
        EACH digits[8 * n + i] = found[i];
    }
}

extern "C" void decode(const int* digits, int count, int q, int* points) {
    for (int n = 0; n < count; n++) {
        int block[8], found[8];
        EACH block[i] = digits[8 * n + i];
        points_of(block, q, found);
        EACH points[8 * n + i] = found[i];
    }
}
"""

LAYER = """
extern "C" void lay(const unsigned char* digits, const unsigned char* index, int width,
                    int index_width, int blocks, int q, int pairs, int plane, int tiles, int steps,
                    uint4* words, unsigned short* pair, unsigned char* planes,
                    unsigned char* flips) {
    blockDim = {128, 1, 1};
    for (int thread = 0; thread < tiles * steps * 32; thread++) {
        blockIdx.x = thread / 128;
        threadIdx.x = thread % 128;
        relay(digits, index, width, index_width, blocks, q, pairs, plane, tiles, steps, words, pair,
              planes, flips);
    }
}
"""

READER = """
extern "C" void read(const u32* words, const unsigned char* flips, int count, u32* halves,
                     u32* index) {
    for (int n = 0; n < count; n++) {
        bool flipped = flips && (flips[n / 8] >> n % 8 & 1);
#if CELL == D8
        flipped = flipped_of_d8(words[n]);
        index[n] = index_of_d8(words[n]);
#endif
        u32 v[4];
        decode_word(words[n], flipped, twice_half(1), v);
        for (int p = 0; p < 4; p++) halves[4 * n + p] = v[p];
    }
}
"""

CODES = [
    ("voronoi", 16, 4),
    ("voronoi", 15, 2),
    ("voronoi", 14, 3),
    ("voronoi", 5, 1),
    ("nestquantm", 16, 4),
    ("nestquantm", 13, 3),
    ("cubic", 16, 8),
    ("cubic", 10, 16),
    ("d8", 16, 8),
    ("d8", 6, 5),
]


def code_of(cell: str, q: int, k: int, selection: str = "opt") -> NestedCode:
    betas = np.linspace(0.18, 0.4, k).astype(np.float32) * np.float32(16 / q)
    return NestedCode(q, tuple(map(float, betas)), cell, selection)


def random_digits(cell: str, q: int, count: int, rng: np.random.Generator) -> np.ndarray:
    digits = rng.integers(0, q, (count, 8), dtype=np.uint8)
    return split_d8(digits, q)[0] if cell == "d8" else digits


@pytest.mark.parametrize("selection", ["opt", "first"])
@pytest.mark.parametrize(("cell", "q", "k"), [*CODES, ("voronoi", 40, 4), ("d8", 62, 2)])
def test_digits_are_the_packages(
    tmp_path: Path, cell: str, q: int, k: int, selection: str, rng: np.random.Generator
) -> None:
    library = build(tmp_path, "relay.cu", CODER, CELL=CELLS[cell])
    code = code_of(cell, q, k, selection)
    spread = rng.uniform(0.1, 8, (4000, 1))
    x = (rng.standard_normal((4000, 8)) * spread).astype(np.float32)
    x[:40] = np.rint(4 * x[:40]) / 4 * np.float32(code.betas[0])  # ties
    x[40] = 0
    betas = np.array(code.betas, np.float32)
    digits, index = np.empty(x.shape, np.int32), np.empty(len(x), np.int32)
    first = int(selection == "first")
    library.encode(
        address(x), len(x), address(betas), address(1 / betas), k, q, first,
        address(digits), address(index),
    )  # fmt: skip
    want_digits, want_index = code.encode(x)
    np.testing.assert_array_equal(digits, want_digits)
    np.testing.assert_array_equal(index, want_index)


@pytest.mark.parametrize(("cell", "q", "k"), [*CODES, ("voronoi", 63, 4), ("nestquantm", 40, 2)])
def test_points_are_the_packages(
    tmp_path: Path, cell: str, q: int, k: int, rng: np.random.Generator
) -> None:
    library = build(tmp_path, "relay.cu", CODER, CELL=CELLS[cell])
    digits = random_digits(cell, q, 20000, rng)
    points = np.empty(digits.shape, np.int32)
    library.decode(address(digits.astype(np.int32)), len(digits), q, address(points))
    np.testing.assert_array_equal(points, code_of(cell, q, k).points(digits))


@pytest.mark.parametrize(("cell", "q", "k"), CODES)
def test_words_on_the_device_are_the_same_points(
    tmp_path: Path, cell: str, q: int, k: int, rng: np.random.Generator
) -> None:
    """A matrix is laid out and its words are decoded; 40 rows of 264 columns fill no whole step."""
    rows, blocks, tiles, steps = 40, 33, 3, 3
    code = code_of(cell, q, k)
    digits = random_digits(cell, q, rows * blocks, rng).reshape(rows, blocks, 8)
    index = rng.integers(0, k, (rows, blocks), dtype=np.uint8)
    fields = join_d8(digits, index, q) if cell == "d8" else digits
    index_width = 0 if cell == "d8" else bit_width(k)
    pairs, plane = index_width // 2, index_width % 2
    shape = (tiles, steps, 32)
    words = np.zeros((tiles, steps, 2, 32, 4), np.uint32)
    pair, planes = np.zeros((2, *shape), np.uint16), np.zeros(shape, np.uint8)
    flips = np.zeros(shape, np.uint8) if cell in {"voronoi", "nestquantm"} else None
    build(tmp_path, "relay.cu", LAYER, CELL=CELLS[cell]).lay(
        address(pack_digits(fields, q)), address(pack_scale_index(index, k)), bit_width(q),
        index_width, blocks, q, pairs, plane, tiles, steps, address(words), address(pair),
        address(planes), address(flips),
    )  # fmt: skip

    # Word number 4 h + j of lane (g, t) is row g + 8 (j % 2), block 4 (2 h + j // 2) + t of a step.
    def spread_out(array: np.ndarray) -> np.ndarray:
        array = array.reshape(tiles, steps, 2, 8, 4, 2, 2)  # h, g, t, j // 2, j % 2
        return array.transpose(0, 6, 3, 1, 2, 5, 4).reshape(16 * tiles, 16 * steps)

    def bits(array: np.ndarray, width: int) -> np.ndarray:
        number = np.arange(8).reshape(2, 1, 4)
        per_lane = array.reshape(tiles, steps, 1, 32, 1).astype(np.int64)
        return spread_out((per_lane >> (width * number)) & (2**width - 1))

    flat = np.ascontiguousarray(spread_out(words))
    flipped = None if flips is None else bits(flips, 1)
    packed_flips = None if flipped is None else np.packbits(flipped, bitorder="little")
    halves, found = np.empty((flat.size, 8), np.float16), np.zeros(flat.size, np.uint32)
    library = build(tmp_path, "words.cuh", READER, CELL=CELLS[cell], Q=q)
    library.read(address(flat), address(packed_flips), flat.size, address(halves), address(found))
    got = halves.astype(np.float64).reshape(16 * tiles, 16 * steps, 8)[:rows, :blocks]
    want = code.points(digits.reshape(-1, 8)).reshape(digits.shape) * (16 * code.unit)
    np.testing.assert_array_equal(got, want)
    if cell == "d8":
        named = found.reshape(16 * tiles, 16 * steps)
    else:
        named = bits(pair[0], 2) * (pairs > 0) + bits(pair[1], 2) * 4 * (pairs > 1)
        named = named + (bits(planes, 1) << (2 * pairs)) * plane
    np.testing.assert_array_equal(named[:rows, :blocks], index)


def test_the_shim_rounds_as_float16_does(tmp_path: Path, rng: np.random.Generator) -> None:
    extra = """
    extern "C" void halves(const float* x, int n, unsigned short* out) {
        for (int i = 0; i < n; i++) out[i] = to_half(x[i]);
    }
    """
    x = (rng.standard_normal(5000) * 10.0 ** rng.uniform(-7, 4, 5000)).astype(np.float32)
    out = np.empty(len(x), np.float16)
    library = build(tmp_path, "relay.cu", extra, CELL=0)
    assert isinstance(library, ctypes.CDLL)
    library.halves(address(x), len(x), address(out))
    np.testing.assert_array_equal(out, x.astype(np.float16))
