r"""Pyramid codes: integer vectors whose magnitudes sum to K, directions named by one integer each.

    P(n, K) = { y ∈ Zⁿ : |y_1| + … + |y_n| = K },        y stands for y / ‖y‖

There is no codebook: a word is found by search and named by counting. Pulses sit where a vector is
large, so the words cover the sphere nearly evenly at any K, and K sets the rate, log₂|P(n, K)| / n
bits an entry, in small steps.

Sources: Fischer, *A pyramid vector quantizer*, IEEE Trans. IT 32(4), 1986; van der Ouderaa et al.,
*Pyramid Vector Quantization for LLMs*, arXiv 2410.16926.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.pyramid_index import FRONT, rank_words, unrank_words
from latticeq.codes.pyramid_search import nearest_words
from latticeq.errors import InputError

__all__ = ["MAX_N", "MAX_PULSES", "PyramidCode", "most_pulses", "word_count"]

MAX_N = 1024
"""The most coordinates of a word."""

MAX_PULSES = 4095
"""The most pulses: sums of squares stay exact in float32."""

MAX_TABLE_BYTES = 2**25
"""Of the table that numbers words."""

SEARCHES = ("cosine", "projection")


def word_count(n: int, k: int) -> int:
    """Return N(n, K), the number of words of n coordinates and K pulses, exactly.

    Examples
    --------
    It satisfies Fischer's recurrence:

    >>> word_count(8, 4) == word_count(7, 4) + word_count(8, 3) + word_count(7, 3)
    True
    """
    if k == 0:
        return 1
    return sum(comb(n, j) * comb(k - 1, j - 1) << j for j in range(1, min(n, k) + 1))


def most_pulses(n: int, bits: int) -> int:
    """Return the largest K, up to `MAX_PULSES`, whose words can be told apart by so many bits.

    Raises
    ------
    InputError
        If not even one pulse fits: that takes 2n words.

    Examples
    --------
    >>> k = most_pulses(16, 64)
    >>> word_count(16, k) <= 2**64 < word_count(16, k + 1)
    True
    """
    if bits < 0 or word_count(n, 1) > 2**bits:
        raise InputError(
            f"{bits} bits were given for the shape of {n} numbers; one pulse needs "
            f"{(2 * n - 1).bit_length()}"
        )
    low, high = 1, MAX_PULSES + 1
    while high - low > 1:
        middle = (low + high) // 2
        if word_count(n, middle) <= 2**bits:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class PyramidCode:
    """The pyramid code P(n, K).

    Parameters
    ----------
    n : int
        Coordinates, 2 to 1024.
    pulses : int
        K, 1 to 4095.

    Raises
    ------
    InputError
        If an argument is out of its range, or the table that numbers words would be too large.

    Examples
    --------
    Every word is its own nearest word, and has an index of its own:

    >>> code = PyramidCode(8, 4)
    >>> index = np.arange(code.size, dtype=np.uint64)[:, None]
    >>> words = code.unrank(index)
    >>> bool((code.rank(words) == index).all() and (code.nearest(words)[0] == words).all())
    True
    """

    n: int
    pulses: int

    def __post_init__(self) -> None:
        for name, most in (("n", MAX_N), ("pulses", MAX_PULSES)):
            value, least = getattr(self, name), 2 if name == "n" else 1
            if type(value) is not int or not least <= value <= most:
                raise InputError(
                    f"{name} is {value!r}; it must be an integer from {least} to {most}"
                )
        nbytes = 8 * self.n * (FRONT + self.pulses + 2) * self.limbs
        if nbytes > MAX_TABLE_BYTES:
            raise InputError(
                f"words of {self.n} numbers and {self.pulses} pulses need a table of {nbytes} "
                f"bytes to be numbered; {MAX_TABLE_BYTES} are allowed: take smaller groups"
            )

    @cached_property
    def size(self) -> int:
        """The number of words."""
        return word_count(self.n, self.pulses)

    @property
    def index_bits(self) -> int:
        """Bits that name a word."""
        return (self.size - 1).bit_length()

    @property
    def limbs(self) -> int:
        """Words of 64 bits that an index takes in memory, and the number of words, too.

        In the range of the parameters no number of words is a power of 2^64.
        """
        return -(-self.index_bits // 64)

    @property
    def rate(self) -> float:
        """Bits an entry: log₂ of the number of words, over n."""
        return log2(self.size) / self.n

    def nearest(
        self, x: Any, search: str = "cosine"
    ) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Return the word nearest to each vector, and its gain.

        Parameters
        ----------
        x : array_like, shape (..., n)
            Rounded to float32; finite.
        search : "cosine" or "projection"
            The word of largest cosine, or the one closest to x scaled to magnitudes that sum to K:
            cheaper, and worse: by 7 % of the squared error where K is small beside n, by 1 % else.

        Returns
        -------
        words : ndarray of int16, shape (..., n)
            Ties favour the first coordinates. Zeros get all pulses in the first.
        gains : ndarray of float64, shape (...)
            The gain g that brings g·y/‖y‖ closest to x: ⟨x, y/‖y‖⟩, never negative.

        Raises
        ------
        InputError
            If the last axis is not n, an entry is not finite, or the search is another.
        """
        if search not in SEARCHES:
            raise InputError(f"search is {search!r}; it must be 'cosine' or 'projection'")
        rows = self._rows(np.asarray(x), "vectors").astype(np.float32, copy=False)
        if not np.isfinite(rows).all():
            raise InputError("the vectors have entries that are not finite in float32")
        words, gains = np.empty(rows.shape, np.int16), np.empty(len(rows))
        nearest_words(rows, self.pulses, search == "cosine", words, gains)
        shape = np.shape(x)
        return words.reshape(shape), gains.reshape(shape[:-1])

    def rank(self, words: Any) -> NDArray[np.uint64]:
        """Return the index of each word.

        Parameters
        ----------
        words : ndarray of int16, shape (..., n)

        Returns
        -------
        ndarray of uint64, shape (..., limbs)
            The index in words of 64 bits, the lowest first.

        Raises
        ------
        InputError
            If the last axis is not n, or magnitudes do not sum to K.
        """
        rows = self._rows(np.asarray(words, np.int16), "words")
        index, are_words = np.empty((len(rows), self.limbs), np.uint64), np.empty(len(rows), bool)
        with np.errstate(over="ignore"):  # limbs wrap, and carry
            rank_words(rows, self.table, index, are_words)
        if not are_words.all():
            raise InputError(f"a word has magnitudes that do not sum to {self.pulses}")
        return index.reshape(*np.shape(words)[:-1], self.limbs)

    def unrank(self, index: NDArray[np.uint64]) -> NDArray[np.int16]:
        """Return the word of each index.

        Parameters
        ----------
        index : ndarray of uint64, shape (..., limbs)

        Returns
        -------
        ndarray of int16, shape (..., n)

        Raises
        ------
        InputError
            If the last axis is not the limbs, or an index is no word's.
        """
        rows = np.ascontiguousarray(index, np.uint64).reshape(-1, np.shape(index)[-1])
        if rows.shape[1] != self.limbs:
            raise InputError(f"indices have {rows.shape[1]} limbs; this code has {self.limbs}")
        if (bad := self.first_invalid(rows)) is not None:
            raise InputError(f"index {bad} of {len(rows)} is not below {self.size}")
        words = np.empty((len(rows), self.n), np.int16)
        with np.errstate(over="ignore"):
            unrank_words(rows, self.size_limbs, self.table, words)
        return words.reshape(*np.shape(index)[:-1], self.n)

    def first_invalid(self, index: NDArray[np.uint64]) -> int | None:
        """Return which of the indices (R, limbs) is the first that names no word, if one is."""
        exceeds = np.ones(len(index), bool)  # so far equal to the size: not below
        for w in range(self.limbs):
            size = self.size_limbs[w]
            exceeds = (index[:, w] > size) | ((index[:, w] == size) & exceeds)
        return int(np.argmax(exceeds)) if exceeds.any() else None

    @property
    def table(self) -> NDArray[np.uint64]:
        """What kernels number words by: see `latticeq.codes.pyramid_index`."""
        return _table(self.n, self.pulses, self.limbs)

    @cached_property
    def size_limbs(self) -> NDArray[np.uint64]:
        """The number of words, in words of 64 bits, the lowest first."""
        limbs: NDArray[np.uint64] = _as_limbs([self.size], self.limbs)[0]
        return limbs

    def _rows(self, x: NDArray[Any], what: str) -> NDArray[Any]:
        if x.ndim == 0 or x.shape[-1] != self.n:
            raise InputError(f"the {what} have shape {x.shape}; the last axis must be {self.n}")
        return np.ascontiguousarray(x).reshape(-1, self.n)


@lru_cache(maxsize=32)
def _table(n: int, pulses: int, limbs: int) -> NDArray[np.uint64]:
    """Return C(m, j − 1) for m < n and j up to K + 1, row by row as N(m, k) follows from them."""
    counts = [1] + [0] * pulses  # N(0, k)
    rows: list[int] = []
    for _ in range(n):
        sums = [0]
        for count in counts:
            sums.append(sums[-1] + count)
        rows += [0] * FRONT + sums
        counts = [sums[k + 1] + sums[k] for k in range(pulses + 1)]
    table: NDArray[np.uint64] = _as_limbs(rows, limbs).reshape(n, FRONT + pulses + 2, limbs)
    return table


def _as_limbs(numbers: list[int], limbs: int) -> NDArray[np.uint64]:
    raw = b"".join(number.to_bytes(8 * limbs, "little") for number in numbers)
    found: NDArray[np.uint64] = np.frombuffer(raw, "<u8").astype(np.uint64).reshape(-1, limbs)
    return found
