"""Attention over keys and values that are kept as codes, one sequence, without packing.

Notation: k, v the keys (after rotary positions) and values of a kv head, c and d offsets, A and B
diagonal scales, R an orthonormal rotation, Q the code (rows to decoded rows).

What is kept is Q(R A^-1 (k - c)) and Q(R B^-1 (v - d)). Queries are turned to R A q, so that with
an exact code q.k changes by q.c alone, the same for all positions, which softmax does not see. The
mix m of kept values comes back as B R^T m + d, as the weights sum to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference.llama import attention
from reference.nested import decode_union, encode_union

Array = NDArray[np.float64]


class Coding(NamedTuple):
    """A code Q of rows (n, K), its rotation (K, K), and offset and scale of every head (G, K)."""

    code: Callable[[Array], Array]
    rotation: Array
    offset: Array
    scale: Array


def nest_rows(x: Array, q: int, betas: Sequence[float]) -> Array:
    """Code rows by their root mean square, in float16, and Voronoi codewords of 8-blocks."""
    norm = np.sqrt(np.mean(x * x, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
    unit = (x / np.where(norm > 0, norm, 1)).astype(np.float32)
    digits, index, _ = encode_union(unit.reshape(-1, 8), q, betas)
    return np.asarray(decode_union(digits, index, q, betas).reshape(x.shape) * norm)


def kept(x: Array, coding: Coding) -> Array:
    """Return what the codes of keys or values (T, G, K) say, in the basis of the code."""
    rows = ((x - coding.offset) / coding.scale) @ coding.rotation.T
    return coding.code(rows.reshape(-1, rows.shape[-1])).reshape(x.shape)


def coded_attention(q: Array, k: Array, v: Array, keys: Coding, values: Coding) -> Array:
    """Let queries (T, H, K) attend to coded keys and values (T, G, K), their own included."""
    shared = q.shape[1] // k.shape[1]
    turned = (q * np.repeat(keys.scale, shared, axis=0)) @ keys.rotation.T
    mixed = attention(turned, kept(k, keys), kept(v, values))
    scale, offset = (np.repeat(a, shared, axis=0) for a in (values.scale, values.offset))
    return np.asarray((mixed @ values.rotation) * scale + offset)
