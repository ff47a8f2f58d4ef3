"""Causal grouped-query attention of many tokens at once, by matrix products.

Scores of some tokens with all that they see are a matrix a kv head, as many tokens at a time as
memory is set aside for. Products are cuBLAS's, in float32.
"""

from __future__ import annotations

import math
from typing import Any

from latticeq.gpu.device import cupy
from latticeq.gpu.kernels import softmax_rows

__all__ = ["attend_many"]

SCORES = 2**28
"""Bytes of scores at a time."""


def attend_many(q: Any, keys: Any, values: Any, start: int) -> Any:
    """Let each query attend to every position up to its own.

    Parameters
    ----------
    q : (G, T * H / G, K) float32
        Of positions from `start` on; of a kv head first all its queries of the first token.
    keys, values : (G, start + T, K) float32
    start : int

    Returns
    -------
    (G, T * H / G, K) float32
    """
    cp = cupy()
    kv_heads, rows, width = q.shape
    n_tokens = keys.shape[1] - start
    shared = rows // n_tokens
    scaled = q * cp.float32(1 / math.sqrt(width))
    out = cp.empty_like(q)
    step = max(1, SCORES // (4 * kv_heads * shared * keys.shape[1]))
    for first in range(0, n_tokens, step):
        last = min(first + step, n_tokens)
        part, seen = slice(shared * first, shared * last), start + last
        scores = cp.matmul(scaled[:, part], keys[:, :seen].transpose(0, 2, 1))
        softmax_rows(scores, start + first, shared)
        out[:, part] = cp.matmul(scores, values[:, :seen])
    return out
