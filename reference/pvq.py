"""Pyramid vector quantization: a matrix as words of a pyramid code, levels of gains and row scales.

van der Ouderaa et al., *Pyramid Vector Quantization for LLMs*, arXiv 2410.16926.

Notation: W the weights (M x N), s the root mean square of a row, R the rotation, H the Hessian of
the layer's input, g the size of a group. A group x of R W_m / s becomes a word y and a level: it
reads back as level * y / |y|, and the row as W'_m = s R^T (decoded groups).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference.ldlq import damped, ldlq
from reference.pyramid import Word, closest_word, gain

Matrix = NDArray[np.float64]


class Quantized(NamedTuple):
    """Words (M, N/g, g), indices of levels (M, N/g) and row scales (M,) in float16."""

    words: NDArray[np.int64]
    gain_index: NDArray[np.int64]
    row_scale: NDArray[np.float16]


def encode(group: NDArray[np.float32], k: int, levels: NDArray[np.float32]) -> tuple[Word, int]:
    """Return the word of a group, and which level is nearest to its gain; ties take the lower."""
    wide = group.astype(np.float64)
    word = closest_word(wide, k)
    distances = np.abs(levels.astype(np.float64) - gain(wide, word))
    return word, int(np.argmin(distances))


def decode(words: NDArray[np.int64], lengths: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return groups of given lengths that point where words do, in float32 arithmetic."""
    norms = np.sqrt(np.sum(words * words, axis=-1).astype(np.float32))
    return np.asarray(words.astype(np.float32) * (lengths / norms)[..., None])


def quantize(
    weights: Matrix,
    rotation: Matrix,
    group: int,
    k: int,
    levels: NDArray[np.float32],
    hessian: Matrix | None = None,
    damping: float = 1e-2,
) -> Quantized:
    """Quantize the rows of W, under error feedback if a Hessian is given."""
    m, n = weights.shape
    row_scale = np.sqrt(np.mean(weights * weights, axis=1)).astype(np.float16)
    divisor = np.where(row_scale > 0, row_scale, 1).astype(np.float64)
    rotated = weights @ rotation.T / divisor[:, None]
    words = np.zeros((m, n // group, group), np.int64)
    gain_index = np.zeros((m, n // group), np.int64)

    def take(column: int, target: Matrix) -> Matrix:
        at = column // group
        for row in range(m):
            found = encode(target[row].astype(np.float32), k, levels)
            words[row, at], gain_index[row, at] = found
        return decode(words[:, at], levels[gain_index[:, at]]).astype(np.float64)

    metric = np.eye(n) if hessian is None else damped(rotation @ hessian @ rotation.T, damping)
    ldlq(rotated, metric, group, take)
    return Quantized(words, gain_index, row_scale)


def dequantize(quantized: Quantized, rotation: Matrix, levels: NDArray[np.float32]) -> Matrix:
    """Return W' in the original basis."""
    scale = quantized.row_scale.astype(np.float32)[:, None]
    groups = decode(quantized.words, scale * levels[quantized.gain_index])
    return np.asarray(groups.reshape(len(groups), -1).astype(np.float64) @ rotation)
