"""Rotary position embedding: the angles by which pairs of coordinates turn.

    angle[t, i] = t / theta**(2 i / K),   i = 0 .. K/2 - 1                      (RoFormer, eq. 15)

Scaling divides frequencies: ``linear`` all of them by the factor; ``llama3`` only those of
wavelengths longer than the original context over `low_freq_factor`, none shorter than it over
`high_freq_factor`, and interpolates between.

Frequencies and angles are float32, since that is what models are trained and published with: at
position 2000 a float64 angle differs by 1e-4 from the one that the model knows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from latticeq.model.config import LlamaConfig

__all__ = ["frequencies", "rotary"]


def frequencies(config: LlamaConfig) -> NDArray[np.float32]:
    """Return the angle that each pair turns from one position to the next: (K/2,) float32."""
    width = config.head_dim
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)  # (K/2,)
    theta = np.float32(config.rope_theta)
    plain: NDArray[np.float32] = np.float32(1) / theta**exponents  # (K/2,)
    scaling = config.rope_scaling
    if scaling.rope_type == "default":
        return plain
    stretched = plain / np.float32(scaling.factor)  # (K/2,)
    if scaling.rope_type == "linear":
        return stretched
    wavelengths = np.float32(2 * np.pi) / plain  # (K/2,), in tokens
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = np.float32(scaling.original_max_position_embeddings) / wavelengths  # (K/2,)
    with np.errstate(over="ignore"):  # where low and high are all but one
        kept = np.clip((turns - np.float32(low)) / np.float32(high - low), 0, 1)  # 1 is kept
    mixed: NDArray[np.float32] = (np.float32(1) - kept) * stretched + kept * plain
    return mixed


def rotary(
    turn: NDArray[np.float32], start: int, n_tokens: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosine and sine of the angles at `n_tokens` positions from `start`.

    Parameters
    ----------
    turn : (K/2,) float32
        From `frequencies`.
    start, n_tokens : int

    Returns
    -------
    cosine, sine : (T, K/2) float32
    """
    positions = np.arange(start, start + n_tokens, dtype=np.float32)  # (T,)
    angles = positions[:, None] * turn  # (T, K/2)
    return np.cos(angles), np.sin(angles)
