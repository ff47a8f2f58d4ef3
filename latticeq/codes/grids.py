r"""Finite scalar grids, sixteen levels named by four bits, and the small floats of their scales.

A number x under a scale s is stored as the code of the level nearest to x/s. A tie between two
levels takes the even code, which for integers and for E2M1 is IEEE's rounding to even.

Scales are small floats: float16, E4M3 (four bits of exponent, three of mantissa) or E8M0 (a power
of two). Their codes are the bits of a float32 with m instead of 23 bits of mantissa, rounded to
even, and another bias of the exponent; below the least normal exponent e₀ they count 2^(e₀−m).

Sources: Dettmers et al., *QLoRA*, arXiv 2305.14314, appendix E (NF4); OCP *Microscaling Formats
(MX) Specification* 1.0, sections 5.3.3 (E2M1) and 5.4.1 (E8M0); OCP *8-bit Floating Point
Specification* 1.0 (E4M3: no infinity, largest 448).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.errors import InputError
from latticeq.jit import kernel
from latticeq.simd import broadcast, filled, select

__all__ = [
    "E2M1",
    "GRIDS",
    "INT4",
    "NF4",
    "UINT4",
    "Grid",
    "code_lanes",
    "decode_e4m3",
    "decode_e8m0",
    "e4m3_code",
    "e8m0_code",
    "e8m0_value",
    "encode_e4m3",
    "encode_e8m0",
    "half_bits",
    "half_value",
    "level_lanes",
    "small_float_value",
]

LEVELS = 16
"""Levels of a grid: a code is four bits."""


@dataclass(frozen=True)
class Grid:
    """Sixteen numbers, the level of code c being ``levels[c]``.

    Two codes may share a level, as +0 and -0 do: then only the first is ever chosen.

    Parameters
    ----------
    name : str
    levels : tuple of float
        Sixteen of them, exact in float32.

    Examples
    --------
    Every level is its own nearest level:

    >>> bool((NF4.decode(NF4.encode(NF4.levels)) == np.float32(NF4.levels)).all())
    True
    """

    name: str
    levels: tuple[float, ...]

    @property
    def peak(self) -> float:
        """The largest level."""
        return max(self.levels)

    @cached_property
    def by_code(self) -> NDArray[np.float32]:
        """The levels in the order of their codes, float32, shape (16,)."""
        return np.array(self.levels, np.float32)

    @cached_property
    def codes(self) -> NDArray[np.uint8]:
        """The codes in the order of their levels, shape (16,); the end is padded with the last."""
        first = sorted(
            {level: code for code, level in reversed(list(enumerate(self.levels)))}.items()
        )
        codes = [code for _, code in first]
        return np.array(codes + codes[-1:] * (LEVELS - len(codes)), np.uint8)

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """Fifteen numbers: x is nearest to level number r in order if it exceeds r of them.

        They are the middles between neighbours, one ulp less where the upper code is the even one.
        Where `codes` is padded they are infinite.
        """
        codes = self.codes
        levels = self.by_code[codes].astype(np.float64)
        middle = (levels[:-1] + levels[1:]) / 2  # exact: both are float32
        middle = np.where(codes[1:] % 2 == 0, np.nextafter(middle, -np.inf), middle)
        return np.where(levels[:-1] == levels[1:], np.inf, middle)

    @cached_property
    def thresholds32(self) -> NDArray[np.float32]:
        """The thresholds rounded down to float32: a float32 exceeds these exactly if those."""
        rounded = self.thresholds.astype(np.float32)
        too_large = rounded.astype(np.float64) > self.thresholds
        return np.where(too_large, np.nextafter(rounded, np.float32(-np.inf)), rounded)

    def encode(self, x: ArrayLike) -> NDArray[np.uint8]:
        """Return the code of the level nearest to each number; beyond the ends, of the end.

        Parameters
        ----------
        x : array_like of float32 or float64, any shape

        Raises
        ------
        InputError
            If a number is NaN.
        """
        x = np.asarray(x)
        if np.isnan(x).any():
            raise InputError(f"{np.isnan(x).sum()} of the numbers are NaN, which {self.name} lacks")
        return np.asarray(self.codes[np.searchsorted(self.thresholds, x)])

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Return the levels of codes.

        Parameters
        ----------
        codes : array_like of integers in 0..15, any shape

        Raises
        ------
        InputError
            If a code is out of its range.
        """
        codes = np.asarray(codes)
        if codes.dtype.kind not in "ui" or (
            codes.size and not 0 <= codes.min() <= codes.max() < 16
        ):
            raise InputError(f"codes of {self.name} must be integers in 0..15")
        return np.asarray(self.by_code[codes])


INT4 = Grid("int4", tuple(range(-8, 8)))
"""Code c is c − 8; −8 is met only where a scale is clipped or feedback pushes a number there."""

UINT4 = Grid("uint4", tuple(range(16)))
"""Code c is c, above a zero point that is stored beside the scale."""

NF4 = Grid(
    "nf4",
    (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
"""Quantiles of a Gaussian, scaled to end at ±1."""

E2M1 = Grid("e2m1", (0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6))
"""Bit 3 is the sign. Code 8, negative zero, reads as zero and is never written."""

GRIDS = {grid.name: grid for grid in (INT4, UINT4, NF4, E2M1)}


@kernel(inline=True)
def level_lanes(y: Any, thresholds: Any, levels: Any) -> Any:
    """Return the nearest level of each lane; `levels` are in order."""
    level = filled(levels[0], y)
    for j in range(LEVELS - 1):
        level = select(y > thresholds[j], levels[j + 1], level)
    return level


@kernel(inline=True)
def code_lanes(y: Any, thresholds: Any, codes: Any) -> Any:
    """Return the codes, int32, of the nearest level of each lane; `codes` are in their order."""
    code = broadcast(codes[0], y)
    for j in range(LEVELS - 1):
        code = select(y > thresholds[j], codes[j + 1], code)
    return code


@kernel
def _power_of_two(exponent: int) -> Any:
    return np.int32((exponent + 127) << 23).view(np.float32)


@kernel
def _small_float_code(x: Any, mantissa: int, least: int) -> Any:
    """Return the code of a finite float32 x >= 0, whatever the largest code is."""
    if x < _power_of_two(least):
        return int(np.rint(x * _power_of_two(mantissa - least)))
    bits = int(np.float32(x).view(np.int32))
    dropped = 23 - mantissa
    half_to_even = (1 << (dropped - 1)) - 1 + ((bits >> dropped) & 1)
    return ((bits + half_to_even) >> dropped) - ((least + 126) << mantissa)


@kernel
def small_float_value(code: int, mantissa: int, least: int) -> Any:
    """Return the float32 of a code without a sign."""
    if code < 1 << mantissa:
        return np.float32(code) * _power_of_two(least - mantissa)
    bits = (code + ((least + 126) << mantissa)) << (23 - mantissa)
    return np.int32(bits).view(np.float32)


@kernel
def half_bits(x: Any) -> Any:
    """Return the bits of a float32 in float16; NaN's for what is not finite there."""
    if not abs(x) < 65520.0:
        return 0x7E00
    return _small_float_code(abs(x), 10, -14) | (0x8000 if x < 0 else 0)


@kernel
def half_value(bits: int) -> Any:
    """Return the float32 of the bits of a float16; infinities count as NaN."""
    if bits & 0x7FFF >= 0x7C00:
        return np.float32(np.nan)
    value = small_float_value(bits & 0x7FFF, 10, -14)
    return -value if bits & 0x8000 else value


@kernel
def e4m3_code(x: Any) -> Any:
    """Return the code of a finite x >= 0 in E4M3: to nearest even, at most 448."""
    return 0x7E if x >= 448 else _small_float_code(x, 3, -6)


@kernel
def e8m0_code(x: Any) -> int:
    """Return the code of the largest power of two that is not above a finite x >= 0."""
    return int(np.float32(x).view(np.int32)) >> 23  # the exponent of a float32, biased as here


@kernel
def e8m0_value(code: int) -> Any:
    """Return the float32 2^(code − 127); NaN for 255."""
    if code == 255:
        return np.float32(np.nan)
    return _power_of_two(code - 127) if code > 0 else np.float32(2.0**-127)


@kernel
def _encode_small(x: Any, is_e4m3: bool, codes: Any) -> None:
    for i in range(len(x)):
        a = abs(x[i])
        if is_e4m3:
            codes[i] = (0x80 if x[i] < 0 else 0) | (0x7F if np.isnan(a) else e4m3_code(a))
        else:
            codes[i] = e8m0_code(a) if a < np.inf else 0xFF


def _encoded(x: ArrayLike, is_e4m3: bool) -> NDArray[np.uint8]:
    rows = np.ascontiguousarray(x, np.float32)
    codes = np.empty(rows.shape, np.uint8)
    _encode_small(rows.reshape(-1), is_e4m3, codes.reshape(-1))
    return codes


def encode_e4m3(x: ArrayLike) -> NDArray[np.uint8]:
    """Return the E4M3 code of each number: to nearest even, ±448 beyond the ends.

    Parameters
    ----------
    x : array_like, any shape
        Taken as float32.

    Examples
    --------
    >>> codes = np.arange(127, dtype=np.uint8)  # of the numbers 0 to 448
    >>> bool((encode_e4m3(decode_e4m3(codes)) == codes).all())
    True
    """
    return _encoded(x, True)


def encode_e8m0(x: ArrayLike) -> NDArray[np.uint8]:
    """Return the E8M0 code of the largest power of two not above each number, 2^-127 to 2^127.

    Parameters
    ----------
    x : array_like, any shape
        Not negative, taken as float32. Infinity and NaN give 255, which is NaN.

    Raises
    ------
    InputError
        If a number is negative.

    Examples
    --------
    >>> decode_e8m0(encode_e8m0([1.0, 1.9, 0.3])).tolist()
    [1.0, 1.0, 0.25]
    """
    if (np.asarray(x) < 0).any():
        raise InputError("a number is negative; E8M0 has no sign")
    return _encoded(x, False)


@cache
def _e8m0_values() -> NDArray[np.float32]:
    return np.array([e8m0_value(code) for code in range(256)], np.float32)


@cache
def _e4m3_values() -> NDArray[np.float32]:
    values = [float(small_float_value(code, 3, -6)) for code in range(127)] + [np.nan]
    return np.array(values + [-value for value in values], np.float32)


def decode_e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the numbers of E4M3 codes; 0x7F and 0xFF are NaN."""
    return np.asarray(_e4m3_values()[codes])


def decode_e8m0(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 2^(code − 127); NaN for 255."""
    return np.asarray(_e8m0_values()[codes])
