"""NestQuant: a matrix as digits of a nested code, scale indices and one scale a row.

Savkin, Porat, Ordentlich, Polyanskiy, *NestQuant*, arXiv 2502.09720, sections 3 to 5.

Notation: W the weights (M x N), r the norm of a row, s = r / sqrt(N) its scale, R the rotation, H
the Hessian of the layer's input. A row is coded as the 8-blocks of R W_m / s, so it reads back as
W'_m = s R^T (decoded blocks). The layer's input in that basis is R x, its Hessian R H R^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference.hadamard import hadamard_matrix
from reference.ldlq import damped, ldlq
from reference.nested import decode_union, encode_union

Matrix = NDArray[np.float64]


class Quantized(NamedTuple):
    """Digits (M, N/8, 8), scale indices (M, N/8) and row scales (M,) in float16."""

    digits: NDArray[np.uint8]
    scale_index: NDArray[np.uint8]
    row_scale: NDArray[np.float16]


def signs(n: int, seed: int) -> Matrix:
    """Return n random signs: minus where the top bit of splitmix64's output is set.

    Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014.
    """
    word = 2**64 - 1
    drawn = []
    for i in range(1, n + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) & word
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        z = z ^ (z >> 31)
        drawn.append(-1.0 if z >> 63 else 1.0)
    return np.array(drawn)


def rotation_matrix(n: int, seed: int | None = None) -> Matrix:
    """Return R = H diag(signs), H block-diagonal if there is no Hadamard matrix of order n."""
    for b in range(n, 0, -1):
        if n % b == 0:
            try:
                block = hadamard_matrix(b) / np.sqrt(b)
            except ValueError:
                continue
            flips = np.ones(n) if seed is None else signs(n, seed)
            return np.asarray(np.kron(np.eye(n // b), block) * flips)
    raise ValueError(f"n is {n}; it must be at least 1")


def quantize(
    weights: Matrix,
    rotation: Matrix,
    q: int,
    betas: Sequence[float],
    hessian: Matrix | None = None,
    damping: float = 1e-2,
    cell: str = "voronoi",
) -> Quantized:
    """Quantize the rows of W, under error feedback if a Hessian is given."""
    m, n = weights.shape
    row_scale = np.sqrt(np.mean(weights * weights, axis=1)).astype(np.float16)
    divisor = np.where(row_scale > 0, row_scale, 1).astype(np.float64)
    rotated = weights @ rotation.T / divisor[:, None]
    digits = np.zeros((m, n // 8, 8), np.uint8)
    scale_index = np.zeros((m, n // 8), np.uint8)

    def take(column: int, target: Matrix) -> Matrix:
        at = column // 8
        coded = encode_union(target.astype(np.float32), q, betas, cell=cell)
        digits[:, at], scale_index[:, at], values = coded
        return values.astype(np.float64)

    # Without feedback every block is its own target, which is what H = I amounts to.
    metric = np.eye(n) if hessian is None else damped(rotation @ hessian @ rotation.T, damping)
    ldlq(rotated, metric, 8, take)
    return Quantized(digits, scale_index, row_scale)


def dequantize(
    quantized: Quantized,
    rotation: Matrix,
    q: int,
    betas: Sequence[float],
    cell: str = "voronoi",
) -> Matrix:
    """Return W' in the original basis."""
    blocks = decode_union(quantized.digits, quantized.scale_index, q, betas, cell)
    rows = blocks.reshape(len(blocks), -1) * quantized.row_scale.astype(np.float64)[:, None]
    return np.asarray(rows @ rotation)
