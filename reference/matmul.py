"""The product of two coded operands, block by block.

Savkin, Porat, Ordentlich, Polyanskiy, *NestQuant*, arXiv 2502.09720, section 3.

Notation: v the integer points of A (T x N) and B (M x N), in blocks of eight; a and b what one unit
of a block's points is worth. Then <x, y> = sum_j a_j b_j <v_xj, v_yj>.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def block_products(v_x: NDArray[np.int8], v_y: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return <v_xj, v_yj> exactly, for every pair of rows and every block j: (T, M, N / 8)."""
    x = v_x.astype(np.int64).reshape(len(v_x), 1, -1, 8)
    y = v_y.astype(np.int64).reshape(1, len(v_y), -1, 8)
    return np.asarray((x * y).sum(axis=-1))


def coded_products(
    v_x: NDArray[np.int8],
    a: NDArray[np.float64],
    v_y: NDArray[np.int8],
    b: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return A B^T: (T, M) from points (T, N), (M, N) and block scales (T, N / 8), (M, N / 8)."""
    return np.asarray((block_products(v_x, v_y) * a[:, None] * b[None]).sum(axis=-1))
