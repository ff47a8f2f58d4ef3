r"""How long the pieces of a row are: the Beta law, levels for it, and the bits that it is worth.

A row of D numbers that a rotation has spread evenly points in a uniform direction. The share of its
energy in g of them then follows Beta(g/2, (D−g)/2), and with unit mean square their length is

    √(D·B),      B ~ Beta(g/2, (D−g)/2).

Levels that lose least on that law are found by Lloyd's iteration: boundaries half-way between
levels, levels at the means of their cells, which are incomplete Beta functions.

Sources: van der Ouderaa et al., *Pyramid Vector Quantization for LLMs*, arXiv 2410.16926; Lloyd,
*Least squares quantization in PCM*, IEEE Trans. IT 28(2), 1982.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.pyramid import PyramidCode, most_pulses
from latticeq.errors import InputError

__all__ = [
    "MAX_GAIN_BITS",
    "Split",
    "gain_levels",
    "group_bits",
    "length_levels",
    "split_with",
    "splits",
]

MAX_GAIN_BITS = 8
"""Of a gain: its index is one byte in memory."""

SAMPLED = 2**16
"""Numbers of N(0, 1) that a code's loss of shape is measured on."""

ROUNDS = 10000
TOLERANCE = 1e-6
"""Of Lloyd's iteration, over the mean length; what levels lose depends on the square of that."""


@dataclass(frozen=True)
class Split:
    """One way to spend the bits of a group.

    Parameters
    ----------
    gain_bits : int
    shape_bits : int
        Of the index of a word.
    pulses : int
        Of the words.
    error : float
        What an entry of N(0, 1) is expected to lose, squared.
    """

    gain_bits: int
    shape_bits: int
    pulses: int
    error: float


@lru_cache(maxsize=256)
def splits(group: int, bits: float, n: int) -> tuple[Split, ...]:
    """Return ways to spend so many bits an entry on gain and shape, the best one first.

    They have 0, 1, 2, ... bits for the gain, up to where two more bits in a row only lose.

    Parameters
    ----------
    group : int
        Entries of a group.
    bits : float
        An entry, on average; of a group the whole bits are spent.
    n : int
        Length of the rows: their law is Beta(group / 2, (n − group) / 2).

    Raises
    ------
    InputError
        If the bits do not suffice for one pulse.
    """
    budget = group_bits(group, bits)
    found: list[Split] = []
    for gain_bits in range(min(MAX_GAIN_BITS, budget - _least_bits(group)) + 1):
        found.append(split_with(group, bits, n, gain_bits))
        if len(found) > 2 and found[-3].error < found[-2].error < found[-1].error:
            break  # a bit more for the gain takes more from the shape than the one before
    return tuple(sorted(found, key=lambda split: split.error))


def split_with(group: int, bits: float, n: int, gain_bits: int) -> Split:
    """Return the way that spends so many bits on the gain; arguments and errors as of `splits`."""
    pulses = most_pulses(group, group_bits(group, bits) - gain_bits)
    mean, square = _cosine(group, pulses)
    _, lost = length_levels(group, n, gain_bits)
    error = 1 - square + mean * mean * lost / group
    return Split(gain_bits, PyramidCode(group, pulses).index_bits, pulses, error)


def group_bits(group: int, bits: float) -> int:
    """Return the whole bits of a group, refusing fewer than one pulse needs."""
    budget = int(np.floor(bits * group + 1e-9))
    if budget < _least_bits(group):
        raise InputError(
            f"bits is {bits} for groups of {group}: {budget} bits a group; the direction alone "
            f"needs at least {_least_bits(group)}"
        )
    return budget


def _least_bits(group: int) -> int:
    """Return the bits that tell the words of one pulse apart."""
    return (2 * group - 1).bit_length()


def gain_levels(code: PyramidCode, n: int, gain_bits: int) -> NDArray[np.float32]:
    """Return the 2^gain_bits levels of gains in rows of n numbers of unit mean square, rising.

    The gain of a word is the length of the group times the cosine between them; the levels take
    the cosine at its mean.
    """
    mean, _ = _cosine(code.n, code.pulses)
    levels, _ = length_levels(code.n, n, gain_bits)
    return (mean * levels).astype(np.float32)


@lru_cache(maxsize=256)
def length_levels(group: int, n: int, bits: int) -> tuple[NDArray[np.float64], float]:
    """Return the best levels of a group's length, and the mean squared error that they leave.

    Parameters
    ----------
    group, n : int
        Of a row of n numbers with unit mean square, the length of `group` of them.
    bits : int
        There are 2^bits levels.

    Returns
    -------
    levels : ndarray of float64, shape (2^bits,)
        Rising.
    error : float

    Examples
    --------
    Each bit divides the error nearly by four:

    >>> errors = [length_levels(16, 4096, bits)[1] for bits in (3, 4, 5)]
    >>> bool(3.3 < errors[0] / errors[1] < errors[1] / errors[2] < 4)
    True
    """
    from scipy.special import betainc, betaincinv

    if group >= n:  # a row by itself has the length √n
        return np.full(2**bits, np.sqrt(n)), 0.0
    a, b = group / 2, (n - group) / 2
    mean = _mean_root(a, b)
    levels = np.sqrt(betaincinv(a, b, (np.arange(2**bits) + 0.5) / 2**bits))
    for _ in range(ROUNDS):
        edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2, [1.0]]) ** 2
        mass = np.diff(betainc(a, b, edges))
        moment = mean * np.diff(betainc(a + 0.5, b, edges))  # the law of B weighted with √B
        means = np.where(mass > 0, moment / np.where(mass > 0, mass, 1), levels)
        moved = float(np.abs(means - levels).max())
        levels = means
        if moved < TOLERANCE * mean:
            break
    error = group / n - 2 * float(levels @ moment) + float((levels * levels) @ mass)
    return np.sqrt(n) * levels, float(n * error)


def _mean_root(a: float, b: float) -> float:
    """Return E[√B] of B ~ Beta(a, b)."""
    from scipy.special import betaln

    return float(np.exp(betaln(a + 0.5, b) - betaln(a, b)))


@lru_cache(maxsize=256)
def _cosine(group: int, pulses: int) -> tuple[float, float]:
    """Return the mean of the cosine between a direction and its word, and that of its square."""
    samples = np.random.default_rng(0).standard_normal((SAMPLED // group, group), np.float32)
    _, gains = PyramidCode(group, pulses).nearest(samples)
    cosines = gains / np.linalg.norm(samples.astype(np.float64), axis=1)
    return float(cosines.mean()), float(np.square(cosines).mean())
