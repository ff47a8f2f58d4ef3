"""The element-wise parts of the forward pass, launched; the CUDA text is ``cuda/forward.cu``.

Arrays are CuPy's, C-contiguous unless a stride is named, on the current device; everything is put
on the current stream. Shape letters are those of `latticeq.model.llama`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.gpu.device import function
from latticeq.gpu.launch import launch_early

__all__ = ["add_norm", "nll_rows", "rotate", "softmax_rows", "swiglu"]

THREADS = 256


def _threads(columns: int) -> int:
    """Return how many threads take a row: whole warps, and no more than there is to do."""
    return min(1024, -(-columns // 32) * 32)


def add_norm(x: Any, added: Any, weight: Any, epsilon: float, out: Any, stream: Any = None) -> None:
    """Add to the residual stream, and normalise it.

    Parameters
    ----------
    x : (T, D) float32
        The residual stream, changed if there is no other place for the sum.
    added : (T, D) float32, or None
        What is added to it.
    weight : (D,) float32
    epsilon : float
    out : (T, D) float32, output
        As `latticeq.model.kernels.rms_norm` sets it.
    stream : (T, D) float32, output, optional
        Where the sum goes.
    """
    width = x.shape[1]
    kernel = function("forward", "add_norm")
    given = 0 if added is None else added
    kept = x if stream is None else stream
    arguments = (x, given, weight, np.float64(epsilon), width, kept, out)
    launch_early(kernel, (len(x),), (_threads(width),), arguments)


def rotate(x: Any, heads: int, width: int, turns: tuple[Any, Any], start: int) -> None:
    """Turn the first heads of each row by the angles of its position.

    Parameters
    ----------
    x : (T, n) float32, changed
        The heads come first, the rest of a row stays as it is.
    heads, width : int
        How many heads, and K.
    turns : pair of (S, K/2) float32
        Cosine and sine at all positions.
    start : int
        The position of the first row.
    """
    arguments = (x, np.int64(x.shape[1]), np.int32(width), *turns, np.int32(start))
    function("forward", "rotate")((len(x), heads), (_threads(width // 2),), arguments)


def swiglu(both: Any, out: Any) -> None:
    """Set out, (T, F), to silu(gate) * up: both is (T, 2 F), gate before up."""
    width = out.shape[1]
    grid = (len(out), -(-width // THREADS))
    function("forward", "swiglu")(grid, (THREADS,), (both, np.int32(width), out))


def softmax_rows(scores: Any, start: int, shared: int) -> None:
    """Make scores of queries and keys causal weights.

    Parameters
    ----------
    scores : (G, T * H / G, S) float32, changed
        Rows are the heads that share a kv head of the first token, then those of the next.
    start : int
        The position of the first token: a row sees it, and what is before it.
    shared : int
        H / G.
    """
    kv_heads, rows, columns = scores.shape
    kernel = function("forward", "softmax_rows")
    numbers = (np.int32(columns), np.int32(start), np.int32(shared))
    kernel((rows, kv_heads), (_threads(min(columns, THREADS)),), (scores, *numbers))


def nll_rows(logits: Any, targets: Any, out: Any) -> None:
    """Set out[t] = log(sum_v exp(logits[t, v])) - logits[t, targets[t]].

    Parameters
    ----------
    logits : (T, V) float32
    targets : (T,) int32
    out : (T,) float64, output
    """
    arguments = (logits, targets, np.int32(logits.shape[1]), out)
    function("forward", "nll_rows")((len(logits),), (1024,), arguments)
