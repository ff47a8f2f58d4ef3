"""Causal grouped-query attention over a key-value cache.

    out[t, h] = sum_{s <= start + t} p[s] values[g, s]
    p[s]      = softmax_s(q[t, h] . keys[g, :, s] / sqrt(K))

with g the kv head that query head h shares with H / G - 1 others.

Keys are stored transposed, (G, K, S), and values as (G, S, K). Then both products of one token run
along contiguous memory, with one accumulator an element: they vectorise without reordering a sum.
Many tokens go through BLAS, in chunks of queries against only the keys up to the chunk's end, so
that T x S scores never exist at once. Scores are exponentiated less their row's maximum, and rows
are divided by their sums after the product with the values, where there are fewer numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.model.kernels import exponentiate_row

__all__ = ["attend"]

_SCORE_ROWS = 768  # queries x shared heads of a chunk: large enough for BLAS, small enough for L2


def attend(
    q: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    start: int,
) -> NDArray[np.float32]:
    """Let each query attend to every position up to its own.

    Parameters
    ----------
    q : (T, H, K) float32
        Rotated queries of positions ``start`` to ``start + T - 1``.
    keys : (G, K, S') float32
        Rotated keys, with at least ``start + T`` positions written.
    values : (G, S', K) float32
    start : int
        Position of the first query.

    Returns
    -------
    (T, H * K) float32
    """
    n_tokens, heads, width = q.shape
    scale = np.float32(1 / math.sqrt(width))
    if n_tokens == 1:
        out = np.empty((heads, width), np.float32)  # (H, K)
        _attend_one(q[0], keys, values, start + 1, scale, out)
        return out.reshape(1, heads * width)
    return _attend_many(q, keys, values, start, scale)


def _attend_many(
    q: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    start: int,
    scale: np.float32,
) -> NDArray[np.float32]:
    n_tokens, heads, width = q.shape
    kv_heads = len(keys)
    shared = heads // kv_heads
    step = min(n_tokens, max(16, _SCORE_ROWS // shared))
    out = np.empty((n_tokens, heads, width), np.float32)  # (T, H, K)
    scratch = np.empty(step * shared * (start + n_tokens), np.float32)
    for first in range(0, n_tokens, step):
        last = min(first + step, n_tokens)
        seen = start + last  # S, the keys that the last query of the chunk sees
        rows = shared * (last - first)
        scores = scratch[: rows * seen].reshape(rows, seen)
        sums = np.empty((rows, 1), np.float32)
        for g in range(kv_heads):
            mine = slice(g * shared, (g + 1) * shared)
            # The heads that share a kv head are stacked, so that BLAS sees one tall matrix.
            stacked = q[first:last, mine].transpose(1, 0, 2).reshape(rows, width)  # (H/G * t, K)
            np.matmul(stacked, keys[g, :, :seen], out=scores)  # (H/G * t, S)
            _exponentiate(scores, start + first, last - first, scale, sums)
            mixed = scores @ values[g, :seen]  # (H/G * t, K)
            mixed /= sums
            out[first:last, mine] = mixed.reshape(shared, last - first, width).transpose(1, 0, 2)
    return out.reshape(n_tokens, heads * width)


@kernel(parallel=True)
def _exponentiate(scores, start, n_queries, scale, sums):  # type: ignore[no-untyped-def]
    """Exponentiate what each query sees, zero what it does not, and keep the sums of rows.

    scores is (H/G * t, S) with heads outermost; row r is the query at position start + r % t.
    """
    rows, width = scores.shape
    for task in prange((rows + 7) // 8):
        lanes = np.empty(64, np.float32)
        for r in range(task * 8, min(rows, task * 8 + 8)):
            seen = start + r % n_queries + 1
            _, sums[r, 0] = exponentiate_row(scores[r, :seen], scale, lanes)
            for s in range(seen, width):
                scores[r, s] = np.float32(0)


@kernel(parallel=True)
def _attend_one(q, keys, values, seen, scale, out):  # type: ignore[no-untyped-def]
    """Attention of one token: q, out (H, K), keys (G, K, S'), values (G, S', K), S = seen.

    Several keys' coordinates, then several values, are taken at a time: each pass over the partial
    results costs a load and a store, and serves four products.
    """
    heads, width = q.shape
    shared = heads // keys.shape[0]
    for h in prange(heads):
        g = h // shared
        scores = np.zeros(seen, np.float32)
        fours = width - width % 4
        for i in range(0, fours, 4):
            k0, k1, k2, k3 = keys[g, i], keys[g, i + 1], keys[g, i + 2], keys[g, i + 3]
            q0, q1, q2, q3 = q[h, i], q[h, i + 1], q[h, i + 2], q[h, i + 3]
            for s in range(seen):
                scores[s] += (q0 * k0[s] + q1 * k1[s]) + (q2 * k2[s] + q3 * k3[s])
        for i in range(fours, width):
            for s in range(seen):
                scores[s] += q[h, i] * keys[g, i, s]
        _, total = exponentiate_row(scores, scale, np.empty(64, np.float32))
        mixed = np.zeros(width, np.float32)
        fours = seen - seen % 4
        for s in range(0, fours, 4):
            v0, v1, v2, v3 = values[g, s], values[g, s + 1], values[g, s + 2], values[g, s + 3]
            p0, p1, p2, p3 = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
            for i in range(width):
                mixed[i] += (p0 * v0[i] + p1 * v1[i]) + (p2 * v2[i] + p3 * v3[i])
        for s in range(fours, seen):
            for i in range(width):
                mixed[i] += scores[s] * values[g, s, i]
        for i in range(width):
            out[h, i] = mixed[i] / total
