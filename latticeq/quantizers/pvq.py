r"""Pyramid vector quantization: rows normalised, rotated, and coded in groups as gain and shape.

For a matrix M x N: each row is rotated by an orthonormal Hadamard matrix and divided by its scale
r/√N with r = ‖row‖₂ (kept as float16). A group x of g entries becomes the word y of a pyramid code
with the largest cosine, and the nearest of a few levels to its gain ⟨x, y/‖y‖⟩:

    x̂ = level · y / ‖y‖.

With a Hessian the groups are coded last to first under error feedback
(`latticeq.quantizers.feedback`).

Bits an entry: those of a word's index and of a level's, over g, and 16/N for the row's scale.

Source: van der Ouderaa et al., *Pyramid Vector Quantization for LLMs*, arXiv 2410.16926.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.codes.pyramid import PyramidCode, most_pulses
from latticeq.errors import InputError
from latticeq.quantizers.base import CodedTensor
from latticeq.quantizers.feedback import DAMPING, Factor, rotated_factor
from latticeq.quantizers.gains import (
    MAX_GAIN_BITS,
    Split,
    gain_levels,
    group_bits,
    split_with,
    splits,
)
from latticeq.quantizers.unit_rows import encode_columns, unit_rows
from latticeq.transforms.rotation import Rotation

__all__ = ["MAX_GROUP", "PVQ", "PVQTensor", "decoded_groups", "nearest_level", "pvq_nbytes"]

MAX_GROUP = 256
"""The most entries of a group."""

MAX_BITS = 8.0


def pvq_nbytes(m: int, n: int, group: int, shape_bits: int, gain_bits: int) -> int:
    """Return the bytes that a matrix M x N takes: indices, row scales and the levels of gains.

    Rows are padded to sixteen; sixteen indices take whole bytes.

    Examples
    --------
    >>> pvq_nbytes(16, 64, 16, 64, 4) == 16 * 4 * (64 + 4) // 8 + 2 * 16 + 4 * 2**4
    True
    """
    return 2 * -(-m // 16) * (n // group) * (shape_bits + gain_bits) + 2 * m + (4 << gain_bits)


def nearest_level(gains: NDArray[np.floating], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the index of the level nearest to each gain; ties take the lower one."""
    edges = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.searchsorted(edges, gains, side="left").astype(np.uint8)


def decoded_groups(words: NDArray[np.int16], lengths: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return groups of given lengths that point where words do.

    An entry is y · (length / ‖y‖), every operation rounded to float32. Kernels that decode from
    packed bytes give the same bits.

    Parameters
    ----------
    words : ndarray of int16, shape (..., g)
    lengths : ndarray of float32, shape (...)
    """
    values = words.astype(np.float32)
    norms = np.sqrt(np.einsum("...i,...i->...", values, values))  # of integers: exact, but the root
    values *= (lengths / norms)[..., None]
    return values


@dataclass(frozen=True, eq=False)
class PVQTensor(CodedTensor):
    """A tensor held as words of a pyramid code, levels of gains and row scales.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor that was quantized, (..., N).
    code : PyramidCode
        Of groups of g entries.
    rotation : Rotation
        Of size N.
    words : ndarray of int16, shape (M, N / g, g)
        M is the number of rows, the product of all axes but the last.
    gain_index : ndarray of uint8, shape (M, N / g)
    levels : ndarray of float32, shape (2^gain_bits,)
        Of gains, in rows of unit mean square; not negative.
    row_scale : ndarray of float16, shape (M,)
    damping : float or None
        The damping of the Hessian that was used; None without feedback.
    """

    shape: tuple[int, ...]
    code: PyramidCode
    rotation: Rotation
    words: NDArray[np.int16]
    gain_index: NDArray[np.uint8]
    levels: NDArray[np.float32]
    row_scale: NDArray[np.float16]
    damping: float | None = None

    @property
    def gain_bits(self) -> int:
        """Bits of a gain."""
        return (len(self.levels) - 1).bit_length()

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: rows padded to sixteen, scales and levels included."""
        m, groups, group = self.words.shape
        return pvq_nbytes(m, groups * group, group, self.code.index_bits, self.gain_bits)

    def rotated(self) -> NDArray[np.float32]:
        """Return the decoded rows in the rotated basis, M x N.

        A group is `decoded_groups` of its word and row scale · level, rounded to float32.
        """
        lengths = self.row_scale.astype(np.float32)[:, None] * self.levels[self.gain_index]
        return decoded_groups(self.words, lengths).reshape(len(self.words), -1)


@dataclass(frozen=True)
class PVQ:
    """The pyramid vector quantizer.

    Parameters
    ----------
    group : int
        Entries that share a word and a gain, 2 to 256. Larger groups lose a little less and take
        longer, in coding and in decoding.
    bits : float
        An entry, for words and gains together: any number up to 8; of a group the whole bits are
        spent. Row scales take 16/N more.
    gain_bits : int, optional
        Of a group, 0 to 8; where it is omitted, those of `splits` that lose least.
    search : "cosine" or "projection"
        Of `PyramidCode.nearest`.
    rotate : "hadamard" or "none"
    seed : int, optional
        Of random signs before the Hadamard matrix; none by default.

    Raises
    ------
    InputError
        If an argument is out of range, or the bits do not suffice for one pulse a group.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(64, 256))
    >>> quantized = PVQ(group=16, bits=4.25).quantize(x)
    >>> bool(np.mean((x - quantized.dequantize()) ** 2) < 0.005)
    True
    """

    group: int = 16
    bits: float = 4.25
    gain_bits: int | None = None
    search: str = "cosine"
    rotate: str = "hadamard"
    seed: int | None = None

    def __post_init__(self) -> None:
        if type(self.group) is not int or not 2 <= self.group <= MAX_GROUP:
            raise InputError(
                f"group is {self.group!r}; it must be an integer from 2 to {MAX_GROUP}"
            )
        if isinstance(self.bits, bool) or not 0 < self.bits <= MAX_BITS:
            raise InputError(f"bits is {self.bits!r}; it must be a number above 0, up to 8")
        if self.rotate not in {"hadamard", "none"}:
            raise InputError(f"rotate is {self.rotate!r}; it must be 'hadamard' or 'none'")
        if self.search not in {"cosine", "projection"}:
            raise InputError(f"search is {self.search!r}; it must be 'cosine' or 'projection'")
        given = self.gain_bits
        if given is not None and (type(given) is not int or not 0 <= given <= MAX_GAIN_BITS):
            raise InputError(
                f"gain_bits is {given!r}; it must be an integer from 0 to {MAX_GAIN_BITS}, or None"
            )
        # The most pulses that any split has: whether they fit, and can be numbered.
        shape_bits = group_bits(self.group, self.bits) - (given or 0)
        PyramidCode(self.group, most_pulses(self.group, shape_bits))

    def split(self, n: int) -> Split:
        """Return how the bits of a group are spent in rows of n numbers."""
        if self.gain_bits is None:
            return splits(self.group, self.bits, n)[0]
        return split_with(self.group, self.bits, n, self.gain_bits)

    def code_and_levels(self, n: int) -> tuple[PyramidCode, NDArray[np.float32]]:
        """Return the code of groups in rows of n numbers, and the levels of their gains."""
        split = self.split(n)
        code = PyramidCode(self.group, split.pulses)
        return code, gain_levels(code, n, split.gain_bits)

    def rotation(self, n: int) -> Rotation:
        """Return the rotation of rows of length n."""
        return Rotation(n, self.seed, self.rotate)  # type: ignore[arg-type]

    def factor(self, hessian: NDArray[np.float64] | Factor, damping: float = DAMPING) -> Factor:
        """Return the factor of a Hessian (N, N) as `quantize` needs it; a factor is one already.

        Errors are those of `latticeq.quantizers.feedback.factor`.
        """
        return rotated_factor(hessian, self.rotation, self.group, damping)

    def quantize(
        self,
        x: ArrayLike,
        hessian: NDArray[np.float64] | Factor | None = None,
        damping: float = DAMPING,
    ) -> PVQTensor:
        """Quantize the rows of a tensor.

        Parameters
        ----------
        x : array_like, shape (..., N)
            Real and finite; N a multiple of the group.
        hessian : ndarray of float64, shape (N, N), optional
            E[a aᵀ] of the activations a that the rows will multiply: turns error feedback on. Or
            its `factor`, where several matrices share it.
        damping : float
            Relative damping of the Hessian.

        Returns
        -------
        PVQTensor

        Raises
        ------
        InputError
            If the shape does not divide, an entry is not finite, a row's scale does not fit float16
            or the Hessian does not fit.
        LatticeqError
            If the Hessian cannot be factored.
        """
        group = self.group
        unit = unit_rows(x, group, self.rotation, hessian is None)
        factored = None if hessian is None else self.factor(hessian, damping)
        m, n = unit.values.shape
        code, levels = self.code_and_levels(n)
        words = np.empty((m, n // group, group), np.int16)
        gain_index = np.empty((m, n // group), np.uint8)

        def take(columns: slice, target: NDArray[Any]) -> NDArray[Any]:
            groups = slice(columns.start // group, columns.stop // group)
            found, gains = code.nearest(target.reshape(m, -1, group), self.search)
            chosen = nearest_level(gains, levels)
            words[:, groups], gain_index[:, groups] = found, chosen
            return decoded_groups(found, levels[chosen]).reshape(target.shape)

        encode_columns(unit.values, factored, take)
        used = None if factored is None else factored.damping
        return PVQTensor(
            np.shape(x), code, unit.rotation, words, gain_index, levels, unit.row_scale, used
        )
