"""Pyramid codes: integer vectors whose magnitudes sum to K, named by one integer each.

Fischer, *A pyramid vector quantizer*, IEEE Trans. IT 32(4), 1986; van der Ouderaa et al., *Pyramid
Vector Quantization for LLMs*, arXiv 2410.16926.

Notation: n coordinates, K pulses, y a word with |y_1| + ... + |y_n| = K, x the vector to code,
a = |x|. A word stands for the direction y / ‖y‖.

The word of largest cosine with x. Let y be any best word and t = ‖y‖² / (a·y). By Cauchy no word z
is closer to t·a than y is:

    ‖z‖² - 2t a·z  >=  ‖z‖² - 2‖y‖‖z‖  >=  -‖y‖²  =  ‖y‖² - 2t a·y.

So it is enough to know the word closest to t·a for every t, and these form a path: as t grows, one
pulse at a time moves from a smaller to a larger coordinate. The path begins where t = K / ‖a‖₁
(there it is rounding down, and a pulse more where the most was cut off) and is walked both ways.
How far is known: with θ the angle between x and a word at hand, a better word has

    |K - t ‖a‖₁|  =  |sum(z - t a)|  <=  √n ‖z - t a‖  <=  t √n ‖a‖ sin θ,   t <= K / (‖a‖ cos θ).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Word = NDArray[np.int64]


@cache
def count(n: int, k: int) -> int:
    """Return the number of words of n coordinates and k pulses: N(n, k)."""
    if k == 0:
        return 1
    if n == 0:
        return 0
    return count(n - 1, k) + count(n, k - 1) + count(n - 1, k - 1)


def words(n: int, k: int) -> Iterator[tuple[int, ...]]:
    """Yield all words, in the order of their indices."""
    if n == 0:
        if k == 0:
            yield ()
        return
    for magnitude in range(k + 1):
        for first in (magnitude, -magnitude)[: 1 + (magnitude > 0)]:
            for rest in words(n - 1, k - magnitude):
                yield (first, *rest)


def rank(word: Word) -> int:
    """Return the index of a word: how many words come before it."""
    index, k = 0, int(np.abs(word).sum())
    for i, y in enumerate(map(int, word)):
        m = len(word) - i - 1
        if y != 0:
            index += count(m, k) + 2 * sum(count(m, k - j) for j in range(1, abs(y)))
            index += count(m, k - abs(y)) if y < 0 else 0
        k -= abs(y)
    return index


def unrank(index: int, n: int, k: int) -> Word:
    """Return the word of an index."""
    word = np.zeros(n, np.int64)
    for i in range(n):
        m = n - i - 1
        for magnitude in range(k + 1):
            same = count(m, k - magnitude)  # words that go on after this coordinate
            signs = 1 + (magnitude > 0)
            if index < signs * same:
                break
            index -= signs * same
        word[i] = magnitude if index < same else -magnitude
        index -= 0 if index < same else same
        k -= magnitude
    return word


def projection(a: Vector, k: int) -> Word:
    """Return the word closest to t·a at t = K / ‖a‖₁; ties favour the first coordinates."""
    word = np.zeros(len(a), np.int64)
    total = in_order(a)
    if total == 0:
        word[0] = k
        return word
    scaled = a * (k / total)
    word[:] = np.floor(scaled)
    for _ in range(k - word.sum()):
        word[np.argmax(scaled - word)] += 1
    return word


def in_order(terms: Vector) -> float:
    """Return a sum whose roundings are those of adding from the first to the last."""
    return float(np.cumsum(terms)[-1])


def next_move(a: Vector, word: Word, t: float, end: float) -> tuple[int, int, float] | None:
    """Return the first move of a pulse (from, to, t') that the word closest to t'·a asks for.

    Moving a pulse from i to j brings the word closer to t·a where

        (t a_j - y_j) - (t a_i - y_i) > 1.

    The largest left side over all pairs is convex in t and at most 1 at the start: from the end,
    Newton's method comes down to where it crosses 1.
    """
    move = None
    while True:
        short = end * a - word
        i, j = int(np.argmin(np.where(word > 0, short, np.inf))), int(np.argmax(short))
        if not short[j] - short[i] > 1 or a[i] == a[j]:
            return move
        crossing = (word[j] - word[i] + 1) / (a[j] - a[i])
        if move is not None and not abs(crossing - t) < abs(end - t):
            return move
        move, end = (i, j, crossing), crossing


def alignment(a: Vector, word: Word) -> float:
    """Return (a·y)² / ‖y‖²."""
    dot = in_order(a * word)
    return dot * dot / float(word @ word)


def closest_word(x: Vector, k: int) -> Word:
    """Return the word of largest cosine with x."""
    a = np.abs(np.asarray(x, np.float64))
    start = projection(a, k)
    best, best_alignment = start, alignment(a, start)
    total, energy = in_order(a), in_order(a * a)
    if best_alignment > 0:
        spread = float(np.sqrt(len(a) * max(energy - best_alignment, 0.0)))
        highest = k / float(np.sqrt(best_alignment))
        if total > spread:
            highest = min(highest, k / (total - spread))
        for end in (highest, k / (total + spread)):
            word, t = start.copy(), k / total
            while (move := next_move(a, word, t, end)) is not None:
                i, j, t = move
                word[i] -= 1
                word[j] += 1
                if alignment(a, word) > best_alignment:
                    best, best_alignment = word.copy(), alignment(a, word)
    return np.where(np.asarray(x) < 0, -best, best)


def gain(x: Vector, word: Word) -> float:
    """Return the factor g that brings g·y/‖y‖ closest to x: the least-squares gain <x, y/‖y‖>."""
    return in_order(np.asarray(x, np.float64) * word) / float(np.sqrt(word @ word))
