"""CUDA text run on the CPU: scales tried side by side choose what they do one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latticeq.codes.nested import NestedCode
from latticeq.gpu.weights import CELLS
from tests.gpu.on_cpu import address, build, needs_compiler

pytestmark = needs_compiler

CODER = """
extern "C" void encode(const float* x, int count, const float* betas, const float* inverse, int k,
                       int q, int first_fit, int* digits, int* index) {
    for (int n = 0; n < count; n++) {
        float block[8], point[8], least = infinity();
        int found[8] = {};
        EACH block[i] = x[8 * n + i];
        index[n] = 0;
        for (int p = 0; p < k; p++) {
            float cost = cost_at_scale(
                block, betas[p], inverse[p], q, p + 1 == k, first_fit, point);
            if (cost >= least) continue;
            least = cost;
            index[n] = p;
            digits_of(point, q, found);
        }
        EACH digits[8 * n + i] = found[i];
    }
}
"""


@pytest.mark.parametrize("selection", ["opt", "first"])
@pytest.mark.parametrize(("cell", "q"), [("voronoi", 16), ("voronoi", 9), ("cubic", 14)])
def test_the_cheapest_scale_is_the_encoders(
    tmp_path: Path, cell: str, q: int, selection: str
) -> None:
    library = build(tmp_path, "scales.cuh", CODER, CELL=CELLS[cell])
    code = NestedCode(q, tuple(np.geomspace(3.4, 6.0, 4) / q), cell, selection)
    rng = np.random.default_rng([q, len(cell)])
    x = rng.standard_normal((2000, 8)).astype(np.float32)
    x[::7] *= 4  # beyond all scales
    x[::11] = np.round(x[::11] * 2) / 2 * np.float32(code.betas[0])  # on points and ties
    x[5] = 0
    betas = np.asarray(code.betas, np.float32)
    digits, index = np.empty(x.shape, np.int32), np.empty(len(x), np.int32)
    library.encode(
        address(x), len(x), address(betas), address(1 / betas), 4, q, int(selection == "first"),
        address(digits), address(index),
    )  # fmt: skip
    wanted, scales = code.encode(x)
    np.testing.assert_array_equal(index, scales)
    np.testing.assert_array_equal(digits, wanted)
