"""Kernels that number the words of a pyramid code, and find the word of a number.

Words are in Fischer's order: by the magnitude of the first coordinate, a positive one before its
negative, then by the coordinates after it. With N(m, k) the words of m coordinates and k pulses,
C(m, k) = N(m, 0) + … + N(m, k), and N(m+1, k) = C(m, k) + C(m, k−1), the words whose first
coordinate of m + 1 has a magnitude below b number

    N(m+1, k) − 2 C(m, k−b).

So one table of C serves both ways. Its numbers, and the indices, have as many words of 64 bits
("limbs", the lowest first) as the code needs; with one limb they are plain integers.

Source: Fischer, *A pyramid vector quantizer*, IEEE Trans. IT 32(4), 1986, section III.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.jit import kernel, prange

__all__ = ["FRONT", "rank_words", "unrank_into", "unrank_words"]

FRONT = 8
"""Columns of zeros before a table: how many magnitudes `_unrank_narrow` tries at a time."""

CHUNK = 64
"""Rows that share their scratch arrays."""

_ONE = np.uint64(1)
_TOP = np.uint64(63)


@kernel(parallel=True)
def rank_words(words: Any, table: Any, index: Any, are_words: Any) -> None:
    """Write the number of each word.

    Parameters
    ----------
    words : (R, n) int16
    table : (n, FRONT + K + 2, limbs) uint64
        At (m, FRONT + j): C(m, j − 1), which is 0 for j = 0, as is all before it.
    index : (R, limbs) uint64, output
        Zero for what is no word.
    are_words : (R,) bool, output
        Whether magnitudes sum to K.
    """
    for row in prange(len(words)):
        are_words[row] = _magnitudes(words[row]) == table.shape[1] - 2 - FRONT
        if not are_words[row]:
            index[row] = 0
        elif table.shape[2] == 1:
            index[row, 0] = _rank_narrow(words[row], table)
        else:
            _rank(words[row], table, index[row])


@kernel
def _magnitudes(word: Any) -> Any:
    total = np.int64(0)
    for i in range(len(word)):
        total += abs(np.int64(word[i]))
    return total


@kernel
def _rank_narrow(word: Any, table: Any) -> Any:
    n, at, index = len(word), np.int64(table.shape[1] - 2), np.uint64(0)
    for i in range(n):
        m, y = n - 1 - i, np.int64(word[i])
        if y != 0:
            rest = at - abs(y)
            index += table[m, at + 1, 0] + table[m, at, 0] - table[m, rest + 1, 0]
            index -= table[m, rest + 1, 0] if y > 0 else table[m, rest, 0]
            at = rest
    return index


@kernel
def _rank(word: Any, table: Any, index: Any) -> None:
    n, at = len(word), np.int64(table.shape[1] - 2)
    index[:] = 0
    for i in range(n):
        y = np.int64(word[i])
        if y != 0:
            row = table[n - 1 - i]
            rest = at - abs(y)
            _add(index, row[at + 1])
            _add(index, row[at])
            _subtract(index, row[rest + 1])
            _subtract(index, row[rest + 1] if y > 0 else row[rest])
            at = rest


@kernel(parallel=True)
def unrank_words(index: Any, size: Any, table: Any, words: Any) -> None:
    """Write the word of each number.

    Parameters
    ----------
    index : (R, limbs) uint64
        Each below the size: others give words that mean nothing.
    size : (limbs,) uint64
        N(n, K), the number of all words.
    table : (n, FRONT + K + 2, limbs) uint64
        As in `rank_words`.
    words : (R, n) int16, output
    """
    rows = index.shape[0]
    for chunk in prange((rows + CHUNK - 1) // CHUNK):
        left = np.empty_like(size)
        first = np.int64(chunk) * CHUNK
        for row in range(first, min(rows, first + CHUNK)):
            left[:] = index[row]
            unrank_into(left, size, table, words[row])


@kernel
def unrank_into(index: Any, size: Any, table: Any, word: Any) -> None:
    """Find the word of one number, (limbs,) uint64, which is used up."""
    if len(size) == 1:
        _unrank_narrow(size[0] - index[0], table.reshape(table.shape[0], table.shape[1]), word)
    else:
        # From the number of words before it to that of words after it, itself included.
        for w in range(len(size)):
            index[w] = ~index[w]
        _add(index, size)
        _add_one(index)
        _unrank(index, table, word)


@kernel
def _unrank_narrow(left: Any, table: Any, word: Any) -> None:
    """Do what `_unrank` does with plain integers, and hardly a branch: these are hard to foresee.

    Numbers of the table, (n, FRONT + K + 2) uint64, rise, so the magnitude is how many of those
    below the present one are at least half of what is left: `FRONT` of them are compared at a time.
    """
    n, at = len(word), np.int64(table.shape[1] - 2)
    for i in range(n):
        row, rest = table[n - 1 - i], at
        half = (left + _ONE) >> _ONE
        while True:
            larger = np.int64(0)
            for step in range(1, FRONT + 1):
                larger += np.int64(1) if row[rest - FRONT + step] >= half else np.int64(0)
            rest -= larger
            if larger < FRONT:
                break
        below, magnitude = row[rest], at - rest
        left -= below << _ONE
        # Of a magnitude above 0 the positive words come first: `same` and more remain.
        same = row[rest + 1] - below
        is_first = left > same
        left -= same * np.uint64(magnitude > 0 and is_first)
        word[i] = magnitude if is_first else -magnitude
        at = rest


@kernel
def _unrank(left: Any, table: Any, word: Any) -> None:
    """Find the word after which `left` words remain, itself included; `left` is used up."""
    n, at = len(word), np.int64(table.shape[1] - 2)
    for i in range(n):
        row = table[n - 1 - i]
        rest = at
        while rest > FRONT and not _exceeds_twice(left, row[rest]):
            rest -= 1
        _subtract(left, row[rest])
        _subtract(left, row[rest])
        magnitude = at - rest
        if magnitude > 0:  # the positive words come first: N(m, rest) and more remain
            _add(left, row[rest])
            if _exceeds(left, row[rest + 1]):
                _subtract(left, row[rest + 1])
            else:
                _subtract(left, row[rest])
                magnitude = -magnitude
        word[i] = magnitude
        at = rest


@kernel(inline=True)
def _add(total: Any, term: Any) -> None:
    carry = np.uint64(0)
    for w in range(len(total)):
        part = total[w] + term[w]
        whole = part + carry
        carry = np.uint64((part < term[w]) | (whole < part))
        total[w] = whole


@kernel(inline=True)
def _add_one(total: Any) -> None:
    for w in range(len(total)):
        total[w] += _ONE
        if total[w] != 0:
            break


@kernel(inline=True)
def _subtract(total: Any, term: Any) -> None:
    borrow = np.uint64(0)
    for w in range(len(total)):
        part = total[w] - term[w]
        whole = part - borrow
        borrow = np.uint64((total[w] < term[w]) | (part < borrow))
        total[w] = whole


@kernel(inline=True)
def _exceeds(left: Any, right: Any) -> Any:
    """Tell whether left > right."""
    for w in range(len(left) - 1, -1, -1):
        if left[w] != right[w]:
            return left[w] > right[w]
    return False


@kernel(inline=True)
def _exceeds_twice(left: Any, right: Any) -> Any:
    """Tell whether left > 2·right, which has no more limbs than a number of words."""
    for w in range(len(left) - 1, -1, -1):
        low = right[w - 1] >> _TOP if w > 0 else np.uint64(0)
        double = (right[w] << _ONE) | low
        if left[w] != double:
            return left[w] > double
    return False
