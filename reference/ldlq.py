"""LDLQ: quantizing a layer's weights block by block, feeding the errors back.

Chee et al., *QuIP*, arXiv 2307.13304, section 3; in blocks, Tseng et al., *QuIP#*, arXiv
2402.04396, section 4, and Savkin et al., *NestQuant*, arXiv 2502.09720, section 4.

Notation: W the weights (M x N), W' the quantized ones, H = E[x x^T] the Hessian of the layer's
input, L and D its block LDL factors: H = L D L^T, L unit block lower triangular, D block diagonal.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def damped(hessian: Matrix, damping: float) -> Matrix:
    """Return H + damping * mean(diag H) * I."""
    return hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))


def block_ldl(hessian: Matrix, block: int) -> tuple[Matrix, Matrix]:
    """Return L and D by eliminating one block of columns after the other.

    With H = [[A, B^T], [B, C]], A the first block: L's first columns are [I, B A^-1], D's first
    block is A, and the rest factors what is left, C - B A^-1 B^T.
    """
    n = len(hessian)
    lower, diagonal, left = np.eye(n), np.zeros((n, n)), hessian.copy()
    for c in range(0, n, block):
        here, below = slice(c, c + block), slice(c + block, n)
        diagonal[here, here] = left[here, here]
        lower[below, here] = left[below, here] @ np.linalg.inv(left[here, here])
        left[below, below] -= lower[below, here] @ left[here, below]
    return lower, diagonal


def ldlq(
    weights: Matrix, hessian: Matrix, block: int, quantize: Callable[[int, Matrix], Matrix]
) -> Matrix:
    """Return W', quantized from the last block of columns to the first.

    T_c = W_c + (W_{>c} - W'_{>c}) L[>c, c],   W'_c = quantize(c, T_c).

    ``quantize`` gets the first column of the block and its targets, M x block.
    """
    n = weights.shape[1]
    lower, _ = block_ldl(hessian, block)
    quantized = np.zeros_like(weights)
    for c in range(n - block, -1, -block):
        here, after = slice(c, c + block), slice(c + block, n)
        target = weights[:, here] + (weights - quantized)[:, after] @ lower[after, here]
        quantized[:, here] = quantize(c, target)
    return quantized


def proxy_loss(weights: Matrix, quantized: Matrix, hessian: Matrix) -> float:
    """Return tr((W - W') H (W - W')^T): how much of the layer's output is lost on average."""
    error = weights - quantized
    return float(np.trace(error @ hessian @ error.T))


def qa_target(
    weights: Matrix, wanted: Matrix, given: Matrix, damping: float = 0.0, strength: float = 1.0
) -> tuple[Matrix, Matrix]:
    """Return the target W~ and the metric M of QA-LDLQ for tokens that a layer is given amiss.

    The float layer saw the rows of ``wanted`` (T x N), x; the quantized one is given those of
    ``given``, y, because its input is coded or the layers before it are quantized. Then

        E |W x - U y|^2 = tr((U - W~) M (U - W~)^T) + what no U can change,
        M = E[y y^T],   W~ = W E[x y^T] M^-1.

    Damping goes to M in the inverse and, as much of it, to E[x y^T], so that y = x gives W~ = W.
    """
    metric, cross = given.T @ given / len(given), wanted.T @ given / len(given)
    step = weights @ (cross - metric) @ np.linalg.inv(damped(metric, damping))
    return weights + strength * step, metric
