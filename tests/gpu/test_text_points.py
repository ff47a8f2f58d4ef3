"""CUDA text run on the CPU: closest points of E8, and words of pyramid codes, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latticeq.codes.pyramid import PyramidCode
from latticeq.lattices import e8
from latticeq.linear.packed import make_tiled_linear
from latticeq.storage.formats.pvq import PackedPVQ
from latticeq.storage.wide_bits import pack_wide
from tests.gpu.on_cpu import address, build, needs_compiler

pytestmark = needs_compiler

CLOSEST = """
extern "C" void closest(const float* x, int count, float* points) {
    for (int n = 0; n < count; n++) {
        float block[8], point[8];
        EACH block[i] = x[8 * n + i];
        closest_e8(block, point);
        EACH points[8 * n + i] = point[i];
    }
}
"""

DECODER = """
extern "C" void decode(const unsigned char* index, int bits, const u64* size, const u64* table,
                       int columns, int front, const unsigned char* gains, int gain_bits,
                       const float* levels, const float* row_scale, int blocks, int groups,
                       float* out) {
    blockDim = {128, 1, 1};
    for (int thread = 0; thread < 16 * groups * blocks; thread++) {
        blockIdx.x = thread / 128;
        threadIdx.x = thread % 128;
        decode_groups(index, bits, size, table, columns, front, gains, gain_bits, levels, row_scale,
                      blocks, 0, groups, out);
    }
}
"""


def test_closest_points_of_e8_are_the_packages(tmp_path: Path, rng: np.random.Generator) -> None:
    x = (3 * rng.standard_normal((5000, 8))).astype(np.float32)
    x[:1000] = np.rint(4 * x[:1000]) / 4  # ties
    x[1000] = -0.0
    points = np.empty_like(x)
    build(tmp_path, "relay.cu", CLOSEST, CELL=1).closest(address(x), len(x), address(points))
    np.testing.assert_array_equal(points, e8.closest_point(x))


@pytest.mark.parametrize(("group", "pulses", "gain_bits"), [(16, 58, 4), (8, 20, 0), (16, 30, 3)])
def test_words_of_pyramid_codes_are_the_packages(
    tmp_path: Path, group: int, pulses: int, gain_bits: int, rng: np.random.Generator
) -> None:
    rows, blocks, code = 20, 6, PyramidCode(group, pulses)
    words = rng.multinomial(pulses, np.ones(group) / group, 32 * blocks)
    words = (words * rng.choice([-1, 1], words.shape)).astype(np.int16)
    index = code.rank(words).reshape(32, blocks, -1)
    arrays = {
        "index": pack_wide(index, code.index_bits),
        "levels": rng.uniform(0.5, 2, 2**gain_bits).astype(np.float32),
        "row_scale": rng.uniform(0.5, 2, rows).astype(np.float16),
    }
    if gain_bits:
        gains = rng.integers(0, 2**gain_bits, (32, blocks, 1), np.uint64)
        arrays["gain_index"] = pack_wide(gains, gain_bits)
    entry = {"format": "pvq", "shape": [rows, group * blocks], "group": group, "pulses": pulses}
    packed = PackedPVQ(entry | {"gain_bits": gain_bits, "rotation": "none"}, arrays)
    want = np.concatenate([tile.T for _, tile in make_tiled_linear(packed).float_tiles()])

    scale = np.zeros(32, np.float32)
    scale[:rows] = arrays["row_scale"]
    table, out = np.ascontiguousarray(code.table), np.empty((32, group * blocks), np.float32)
    columns = table.shape[1]
    build(tmp_path, "pvq.cu", DECODER, LIMBS=code.limbs, N=group).decode(
        address(arrays["index"]), code.index_bits, address(code.size_limbs), address(table),
        columns, columns - 2 - pulses, address(arrays.get("gain_index")), gain_bits,
        address(arrays["levels"]), address(scale), blocks, 2, address(out),
    )  # fmt: skip
    np.testing.assert_array_equal(out, want)
