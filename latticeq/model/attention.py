"""Causal grouped-query attention over a key-value cache.

    out[t, h] = sum_{s <= start + t} p[s] values[g, s]
    p[s]      = softmax_s(q[t, h] . keys[g, :, s] / sqrt(K))

with g the kv head that query head h shares with H / G - 1 others.

Keys are stored transposed, (G, K, S), and values as (G, S, K). Then both products of one token run
along contiguous memory, sixteen elements a vector, and every sum has its order written down.
Many tokens go through BLAS, in chunks of queries against only the keys up to the chunk's end, so
that T x S scores never exist at once. Scores are exponentiated less their row's maximum, and rows
are divided by their sums after the product with the values, where there are fewer numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.model.kernels import exponentiate_row
from latticeq.simd import filled, fused_multiply_add, load_floats_at, store

__all__ = ["ReadHead", "attend", "attend_heads"]

ReadHead = Callable[[int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Returns the keys (K, S') and the values (S', K) of one kv head, S' at least what is seen."""

_POSITIONS = 64  # whose scores one token takes at a time: beyond the last, it reads padding
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
        Rotated keys, with at least ``start + T`` positions written; S' at least 64 more than
        ``start`` lets one token take the fast way.
    values : (G, S', K) float32
    start : int
        Position of the first query.

    Returns
    -------
    (T, H * K) float32
    """
    n_tokens, heads, width = q.shape
    scale = np.float32(1 / math.sqrt(width))
    is_padded = keys.shape[2] >= start + _POSITIONS
    if n_tokens == 1 and width % 16 == 0 and is_padded:
        out = np.empty((heads, width), np.float32)  # (H, K)
        _attend_one(q[0], keys, values, start + 1, scale, out)
        return out.reshape(1, heads * width)
    return attend_heads(q, len(keys), lambda g: (keys[g], values[g]), start)


def attend_heads(
    q: NDArray[np.float32], kv_heads: int, read: ReadHead, start: int
) -> NDArray[np.float32]:
    """Do what `attend` does, with keys and values that are fetched one kv head at a time.

    Parameters
    ----------
    q : (T, H, K) float32
    kv_heads : int
        G.
    read : callable
        Called for each kv head in turn; what it returned may be overwritten by the next call.
    start : int
        Position of the first query.

    Returns
    -------
    (T, H * K) float32
    """
    n_tokens, heads, width = q.shape
    scale = np.float32(1 / math.sqrt(width))
    shared = heads // kv_heads
    step = min(n_tokens, max(16, _SCORE_ROWS // shared))
    out = np.empty((n_tokens, heads, width), np.float32)  # (T, H, K)
    scratch = np.empty(step * shared * (start + n_tokens), np.float32)
    for g in range(kv_heads):
        keys, values = read(g)  # (K, S'), (S', K)
        mine = slice(g * shared, (g + 1) * shared)
        for first in range(0, n_tokens, step):
            last = min(first + step, n_tokens)
            seen = start + last  # S, the keys that the last query of the chunk sees
            rows = shared * (last - first)
            scores = scratch[: rows * seen].reshape(rows, seen)
            sums = np.empty((rows, 1), np.float32)
            # The heads that share a kv head are stacked, so that BLAS sees one tall matrix.
            stacked = q[first:last, mine].transpose(1, 0, 2).reshape(rows, width)  # (H/G * t, K)
            np.matmul(stacked, keys[:, :seen], out=scores)  # (H/G * t, S)
            _exponentiate(scores, start + first, last - first, scale, sums)
            mixed = scores @ values[:seen]  # (H/G * t, K)
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
        for r in range(task * 8, min(rows, task * 8 + 8)):
            seen = start + r % n_queries + 1
            _, sums[r, 0] = exponentiate_row(scores[r, :seen], scale)
            for s in range(seen, width):
                scores[r, s] = np.float32(0)


@kernel(parallel=True)
def _attend_one(q, keys, values, seen, scale, out):  # type: ignore[no-untyped-def]
    """Attention of one token: q, out (H, K), keys (G, K, S'), values (G, S', K), S = seen.

    Sixteen scores, then sixteen coordinates, are a vector; K is a multiple of 16. The scores of the
    last vector that lie beyond S come from the padding of the keys and are never looked at.
    """
    heads, width = q.shape
    shared = heads // keys.shape[0]
    for h in prange(heads):
        g = h // shared
        scores = np.empty(-(-seen // _POSITIONS) * _POSITIONS, np.float32)
        _scores_of_head(q[h], keys[g].ctypes.data, keys.strides[1], scores)
        _, total = exponentiate_row(scores[:seen], scale)
        first = values[g].ctypes.data
        for i in range(0, width, 16):
            store(out[h], i, _mixed(scores, seen, first + 4 * i, values.strides[1]) * (1 / total))


@kernel(inline=True)
def _scores_of_head(q, keys, stride, scores):  # type: ignore[no-untyped-def]
    """Set scores to the products of a query with keys, `_POSITIONS` at a time."""
    for s in range(0, scores.size, _POSITIONS):
        address = keys + 4 * s
        zero = filled(np.float32(0), load_floats_at(address))
        t0, t1, t2, t3 = zero, zero, zero, zero
        for i in range(q.size):
            x = filled(q[i], zero)
            t0 = fused_multiply_add(x, load_floats_at(address), t0)
            t1 = fused_multiply_add(x, load_floats_at(address + 64), t1)
            t2 = fused_multiply_add(x, load_floats_at(address + 128), t2)
            t3 = fused_multiply_add(x, load_floats_at(address + 192), t3)
            address += stride
        store(scores, s, t0)
        store(scores, s + 16, t1)
        store(scores, s + 32, t2)
        store(scores, s + 48, t3)


@kernel(inline=True)
def _mixed(weights, seen, values, stride):  # type: ignore[no-untyped-def]
    """Return the weighted sum of sixteen coordinates over positions, four positions at a time."""
    zero = filled(np.float32(0), load_floats_at(values))
    t0, t1, t2, t3 = zero, zero, zero, zero
    fours = seen - seen % 4
    for s in range(0, fours, 4):
        at = values + s * stride
        t0 = fused_multiply_add(filled(weights[s], zero), load_floats_at(at), t0)
        t1 = fused_multiply_add(filled(weights[s + 1], zero), load_floats_at(at + stride), t1)
        t2 = fused_multiply_add(filled(weights[s + 2], zero), load_floats_at(at + 2 * stride), t2)
        t3 = fused_multiply_add(filled(weights[s + 3], zero), load_floats_at(at + 3 * stride), t3)
    for s in range(fours, seen):
        t0 = fused_multiply_add(filled(weights[s], zero), load_floats_at(values + s * stride), t0)
    return (t0 + t1) + (t2 + t3)
