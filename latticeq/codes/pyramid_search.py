"""Kernels that find the word of a pyramid code nearest to a vector.

The words closest to t·a, for t from 0 to infinity, form a path on which one pulse at a time moves
to a larger coordinate, and the word of largest cosine with a is one of them; reference/pyramid.py
has the proof and the bounds of the walk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.jit import kernel, prange

__all__ = ["nearest_words"]

CHUNK = 64
"""Rows that share their scratch arrays."""


@kernel(parallel=True)
def nearest_words(x: Any, pulses: int, is_exact: bool, words: Any, gains: Any) -> None:
    """Find a word for each row, and its gain.

    Parameters
    ----------
    x : (R, n) float32
        Finite.
    pulses : int
    is_exact : bool
        Whether the word of largest cosine is looked for, or the projection will do.
    words : (R, n) int16, output
    gains : (R,) float64, output
        <x, y/‖y‖>.
    """
    rows, n = x.shape
    for chunk in prange((rows + CHUNK - 1) // CHUNK):
        scratch = np.empty((4, n))
        first = np.int64(chunk) * CHUNK
        for row in range(first, min(rows, first + CHUNK)):
            gains[row] = _nearest_word(x[row], pulses, is_exact, scratch, words[row])


@kernel
def _nearest_word(x: Any, pulses: int, is_exact: bool, scratch: Any, out: Any) -> Any:
    """Write the word of a row; return its gain."""
    n = len(x)
    a, word, best, scaled = scratch[0], scratch[1], scratch[2], scratch[3]
    total, energy = 0.0, 0.0
    for i in range(n):
        a[i] = abs(np.float64(x[i]))
        total += a[i]
        energy += a[i] * a[i]
    _project(a, total, pulses, scaled, best)
    if is_exact:
        _walk_both_ways(a, total, energy, pulses, word, best)
    dot, norm = 0.0, 0.0
    for i in range(n):
        dot += a[i] * best[i]
        norm += best[i] * best[i]
        out[i] = -best[i] if x[i] < 0 else best[i]
    return dot / np.sqrt(norm)


@kernel
def _project(a: Any, total: float, pulses: int, scaled: Any, word: Any) -> None:
    """Write the word closest to t·a at t = K / ‖a‖₁; ties favour the first coordinates."""
    n = len(a)
    left = np.float64(pulses)
    if total == 0:
        word[:] = 0
        word[0] = left
        return
    t = left / total
    for i in range(n):
        scaled[i] = a[i] * t
        word[i] = np.floor(scaled[i])
        left -= word[i]
    for _ in range(np.int64(left)):
        most, where = -np.inf, 0
        for i in range(n):
            short = scaled[i] - word[i]
            if short > most:
                most, where = short, i
        word[where] += 1


@kernel
def _walk_both_ways(a: Any, total: float, energy: float, pulses: int, word: Any, best: Any) -> None:
    """Move along the path to both its ends and keep the best word, beginning with the one given."""
    n = len(a)
    most = _alignment(a, best)
    if not most > 0:
        return
    spread = np.sqrt(n * max(energy - most, 0.0))
    highest = pulses / np.sqrt(most)
    if total > spread:
        highest = min(highest, pulses / (total - spread))
    start = pulses / total
    first = best.copy()
    for way in range(2):
        word[:] = first
        t = start
        end = highest if way == 0 else pulses / (total + spread)
        for _ in range(n * pulses):  # more moves than any path has
            i, j, t = _next_move(a, word, t, end)
            if i < 0:
                break
            word[i] -= 1
            word[j] += 1
            found = _alignment(a, word)
            if found > most:
                most = found
                best[:] = word


@kernel
def _alignment(a: Any, word: Any) -> Any:
    """Return (a·y)² / ‖y‖²."""
    dot, norm = 0.0, 0.0
    for i in range(len(a)):
        dot += a[i] * word[i]
        norm += word[i] * word[i]
    return dot * dot / norm


@kernel
def _next_move(a: Any, word: Any, t: float, end: float) -> Any:
    """Return the first move of a pulse between t and the end: from, to and where; or -1."""
    source, target = -1, -1
    while True:
        low, high, i, j = np.inf, -np.inf, 0, 0
        for c in range(len(a)):
            short = end * a[c] - word[c]
            if short > high:
                high, j = short, c
            if word[c] > 0 and short < low:
                low, i = short, c
        if not high - low > 1 or a[i] == a[j]:
            return source, target, end
        crossing = (word[j] - word[i] + 1) / (a[j] - a[i])
        if source >= 0 and not abs(crossing - t) < abs(end - t):
            return source, target, end
        source, target, end = i, j, crossing
