r"""Nested Voronoi codes E8/qE8, and unions of k of them at different scales.

A lattice point t = G c carries the digits c mod q, eight numbers in 0..q−1: log₂ q bits an entry.
The decoder takes the member of G c + qE8 that lies in the Voronoi cell of qE8; t is *overloaded* if
that is another point. A union keeps k scales β₀ < β₁ < … and names the one used by log₂ k bits a
block.

**Ties.** Many lattice points lie exactly on the boundary of q times the cell. The decoder is f(y) =
y − q·Q((y + s)/q) with the fixed generic vector s_i = 2^−(4+i): the cell is moved by so little that
every representative still has minimal norm, and so generically that none lies on its boundary.
Hence f(y + λ) = f(y) for λ in qE8, and t is inside exactly when (t + s)·r < q for all 240 roots r,
which `gauge_lanes` asks. In doubled coordinates all of it is integer arithmetic.

**Overload-aware encoding.** When the closest point of y = x/β is outside, y is drawn back to the
boundary (times q over its gauge) and then shrunk by `SHRINK` until its closest point is inside.

Sources: Conway and Sloane, *A fast encoding method for lattice codes and quantizers*, IEEE Trans.
IT 29(6), 1983; Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.jit import kernel, prange
from latticeq.lattices.dn import checked
from latticeq.lattices.e8 import closest_point_e8_lanes
from latticeq.simd import (
    any_lane,
    block,
    coordinate,
    filled,
    largest,
    load_blocks,
    load_byte_blocks,
    magnitude,
    maximum,
    parity_bits,
    places,
    rint,
    select,
    smallest,
    spread,
    store,
    store_blocks,
    store_byte_blocks,
    to_float,
    to_int,
    top_two,
    total,
)

__all__ = ["MAX_Q", "VoronoiCode", "decode_doubled"]

MAX_Q = 63
"""The largest nesting ratio: doubled coordinates, at most 2q in magnitude, must fit int8."""

SHRINK = 0.98
SHIFT = 2.0 ** -np.arange(4.0, 12.0)
GROUP = 128


@dataclass(frozen=True)
class VoronoiCode:
    """The union of k Voronoi codes β·(E8/qE8), k = len(betas).

    Parameters
    ----------
    q : int
        Nesting ratio, 2 to 63.
    betas : tuple of float
        Scales, positive and increasing; 1 to 256 of them.
    selection : "opt" or "first"
        Keep the scale with the least decoded squared error (Opt-β), or the smallest one that does
        not overload (First-β; the largest one, drawn inside, if all do).

    Raises
    ------
    InputError
        If an argument is out of its range.

    References
    ----------
    Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.

    Examples
    --------
    Every digit string is a codeword, and codewords encode to themselves:

    >>> import numpy as np
    >>> code = VoronoiCode(q=16, betas=(0.25,))
    >>> digits = np.random.default_rng(0).integers(0, 16, (1000, 8), dtype=np.uint8)
    >>> scale_index = np.zeros(1000, np.uint8)
    >>> again, _ = code.encode(code.decode(digits, scale_index))
    >>> bool((again == digits).all())
    True
    """

    q: int
    betas: tuple[float, ...]
    selection: str = "opt"

    def __post_init__(self) -> None:
        if type(self.q) is not int or not 2 <= self.q <= MAX_Q:
            raise InputError(
                f"q is {self.q!r}; the nesting ratio must be an integer from 2 to {MAX_Q}"
            )
        scales = np.asarray(self.betas, np.float64)
        rising = scales.ndim == 1 and 1 <= scales.size <= 256 and bool((np.diff(scales) > 0).all())
        if not (rising and np.isfinite(scales).all() and scales[0] > 0):
            raise InputError(
                f"betas are {self.betas}; they must be 1 to 256 positive, increasing scales"
            )
        if self.selection not in {"opt", "first"}:
            raise InputError(f"selection is {self.selection!r}; it must be 'opt' or 'first'")

    @property
    def rate(self) -> float:
        """Bits an entry: log₂ q and an eighth of log₂ k."""
        return float(np.log2(self.q) + np.log2(len(self.betas)) / 8)

    def encode(self, x: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the digits and the scale index of the codeword chosen for each block.

        Parameters
        ----------
        x : array_like, shape (..., 8)
            float32 or float64; magnitudes over the smallest scale up to 2**20.

        Returns
        -------
        digits : ndarray of uint8, shape (..., 8)
        scale_index : ndarray of uint8, shape (...)

        Raises
        ------
        InputError
            If the last axis is not 8 or a value is not finite or too large for the scales.
        """
        digits, scale_index, _ = self.encode_decoded(x)
        return digits, scale_index

    def encode_decoded(self, x: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any]]:
        """Return what `encode` returns, and the values that it decodes to, in the dtype of `x`."""
        rows, shape = checked(x, 8)
        betas = np.asarray(self.betas, rows.dtype)
        checked(rows * (1 / betas[0]), 8)
        short = -len(rows) % 16
        padded = np.concatenate([rows, np.zeros((short, 8), rows.dtype)]) if short else rows
        digits = np.empty(padded.shape, np.uint8)
        index = np.empty(len(padded), np.int32)
        values = np.empty_like(padded)
        _encode(padded, betas, 1 / betas, self.q, self.selection == "first", digits, index, values)
        n = len(rows)
        return (
            digits[:n].reshape(shape),
            index[:n].astype(np.uint8).reshape(shape[:-1]),
            values[:n].reshape(shape),
        )

    def decode(self, digits: Any, scale_index: Any, dtype: Any = np.float32) -> NDArray[Any]:
        """Return the values that digits and scale indices stand for.

        Parameters
        ----------
        digits : array_like of integers in 0..q-1, shape (..., 8)
        scale_index : array_like of integers in 0..k-1, shape (...)
        dtype : float32 or float64

        Raises
        ------
        InputError
            If a digit or an index is out of its range, or the shapes do not belong together.
        """
        digits = np.asarray(digits)
        scale_index = np.asarray(scale_index)
        if digits.ndim == 0 or digits.shape != (*scale_index.shape, 8):
            raise InputError(
                f"digits have shape {digits.shape} and scale indices {scale_index.shape}; "
                "they must be (..., 8) and (...)"
            )
        _check_range("digit", digits, self.q)
        _check_range("scale index", scale_index, len(self.betas))
        doubled = decode_doubled(digits.reshape(-1, 8), self.q)
        scales = np.asarray(self.betas, dtype)[scale_index.reshape(-1)] * np.dtype(dtype).type(0.5)
        values: NDArray[Any] = doubled * scales[:, None]
        return values.reshape(digits.shape)


def _check_range(what: str, values: NDArray[Any], limit: int) -> None:
    if values.dtype.kind not in "ui":
        raise InputError(f"{what}s have dtype {values.dtype}; they must be integers")
    if values.size and not (values.min() >= 0 and values.max() < limit):
        raise InputError(
            f"{what}s run from {values.min()} to {values.max()}; they must be in 0..{limit - 1}"
        )


def decode_doubled(digits: NDArray[Any], q: int) -> NDArray[np.int8]:
    """Return the lattice points of digits, in doubled coordinates.

    Parameters
    ----------
    digits : ndarray of integers in 0..q-1, shape (n, 8)
    q : int

    Returns
    -------
    ndarray of int8, shape (n, 8)
        Twice the point of E8 in the Voronoi cell of qE8: magnitudes up to 2q.
    """
    short = -len(digits) % 16
    padded = np.zeros((len(digits) + short, 8), np.uint8)
    padded[: len(digits)] = digits
    doubled = np.empty(padded.shape, np.int8)
    _decode(padded, q, doubled)
    return doubled[: len(digits)]


@kernel(parallel=True)
def _encode(
    x: Any, betas: Any, inverse: Any, q: int, first_fit: bool, digits: Any, index: Any, values: Any
) -> None:
    for group in prange(x.size // GROUP):
        at = group * GROUP
        blocks = load_blocks(x, at)
        point, which = closest_codeword_lanes(blocks, betas, inverse, q, first_fit)
        scale = betas[0] + 0 * coordinate(blocks, 0)
        for p in range(1, len(betas)):
            scale = select(which == p, filled(betas[p], scale), scale)
        store_blocks(values, at, point * scale)
        store(index, group * 16, which)
        store_byte_blocks(digits, at, digits_lanes(to_int(point + point), q))


@kernel(inline=True)
def closest_codeword_lanes(x: Any, betas: Any, inverse: Any, q: int, first_fit: bool) -> Any:
    """Choose for each lane a scale and a point of E8 inside q times the cell.

    Returns the points, unscaled, and the indices of their scales.
    """
    one = coordinate(x, 0)
    least = filled(np.inf, one)
    point = filled(0, x)
    which = to_int(filled(0, one))
    for p in range(len(betas)):
        y = x * inverse[p]
        t = closest_point_e8_lanes(y)
        outside = gauge_lanes(t + spread(SHIFT, y)) >= q
        if any_lane(outside) and (not first_fit or p + 1 == len(betas)):
            t = _drawn_inside(y, t, outside, q)
        error = x - t * betas[p]
        cost = total(error * error)
        if first_fit:  # fitting costs nothing; the last scale, drawn inside, beats not fitting
            cost = select(outside, filled(1.0 if p + 1 < len(betas) else 0.5, one), 0)
        better = cost < least
        least = select(better, cost, least)
        point = select(better, t, point)
        which = select(better, filled(p, which), which)
    return point, which


@kernel(inline=True)
def _drawn_inside(y: Any, t: Any, outside: Any, q: int) -> Any:
    """Shrink the lanes that are outside until their closest point is inside."""
    reach = gauge_lanes(y)
    factor = q / maximum(reach, filled(q, reach))
    while any_lane(outside):
        t = select(outside, closest_point_e8_lanes(y * factor), t)
        outside = gauge_lanes(t + spread(SHIFT, y)) >= q
        factor = factor * SHRINK
    return t


@kernel(inline=True)
def gauge_lanes(y: Any) -> Any:
    """Return max y·r over the 240 roots r, the gauge of E8's Voronoi cell, one number a lane.

    Integer roots give the sum of the two largest magnitudes; half-integer roots half the sum of
    all, less the smallest where y's signs have odd parity.
    """
    a = magnitude(y)
    whole = total(a)
    odd = parity_bits(to_int(y < 0)) == 1
    half = select(odd, whole - 2 * smallest(a), whole) * 0.5
    return maximum(top_two(a), half)


@kernel(inline=True)
def digits_lanes(v: Any, q: int) -> Any:
    """Return the digits G⁻¹t mod q of lattice points given in doubled coordinates, v = 2t."""
    last = coordinate(v, 7)
    halves = (v - last) >> 1
    c6 = coordinate(halves, 6)
    c5 = coordinate(halves, 5) + c6
    c4 = coordinate(halves, 4) + c5
    c3 = coordinate(halves, 3) + c4
    c2 = coordinate(halves, 2) + c3
    c1 = coordinate(halves, 1) + c2
    c0 = (coordinate(halves, 0) + c1) >> 1
    return _modulo(block(c0, c1, c2, c3, c4, c5, c6, last), q)


@kernel(inline=True)
def _modulo(n: Any, q: int) -> Any:
    """Return n mod q in 0..q-1, for |n| < 2**22: the nearest multiple is never half-way."""
    quotient = rint((to_float(n) - np.float32((q - 1) / 2)) * np.float32(1 / q))
    return n - to_int(quotient) * q


@kernel
def _decode(digits: Any, q: int, doubled: Any) -> None:
    for first in range(0, digits.size, GROUP):
        c = load_byte_blocks(digits, first)
        store_byte_blocks(doubled, first, fold_lanes(generator_lanes(c), q))


@kernel(inline=True)
def generator_lanes(c: Any) -> Any:
    """Return 2 G c, the doubled lattice points of digits."""
    c1, c2, c3 = coordinate(c, 1), coordinate(c, 2), coordinate(c, 3)
    c4, c5, c6 = coordinate(c, 4), coordinate(c, 5), coordinate(c, 6)
    c0, zero = coordinate(c, 0), 0 * coordinate(c, 0)
    steps = block(2 * c0 - c1, c1 - c2, c2 - c3, c3 - c4, c4 - c5, c5 - c6, c6, zero)
    return 2 * steps + coordinate(c, 7)


@kernel(inline=True)
def fold_lanes(v: Any, q: int) -> Any:
    """Return the representatives of lattice points modulo qE8, both in doubled coordinates.

    With v = 2q·z + r and −q ≤ r < q, the nearest points of 2q·Z⁸ and of q·1 + 2q·Z⁸ leave r and
    r ∓ q. A set of odd parity must move its cheapest coordinate by 2q: the one with the largest |r|
    in the first set, the smallest |r| in the second. The costs of the two then differ by 2q times

        4q − Σ|r| + 2·odd_half·min|r| − 2·odd_whole·(q − max|r|).

    The shift s decides every tie: among equal magnitudes positive entries count as larger than
    negative ones, and earlier entries as more so (`rank`); a tie between the sets is decided by the
    sign with which s_0 enters.
    """
    z = to_int(rint((to_float(v) + np.float32(0.5)) * np.float32(0.5 / q)))
    r = v - z * (2 * q)
    a = magnitude(r)
    negative = r < 0
    odd_whole = parity_bits(z) & 1
    odd_half = odd_whole ^ parity_bits(to_int(negative))
    rank = (a << 4) + select(negative, places(r), 15 - places(r))
    flip_whole = (rank == largest(rank)) & (odd_whole == 1)
    flip_half = (rank == smallest(rank)) & (odd_half == 1)
    difference = 4 * q - total(a)
    difference = difference + 2 * odd_half * smallest(a) - 2 * odd_whole * (q - largest(a))
    pull = to_int(coordinate(flip_whole, 0) | coordinate(flip_half, 0))
    sign = select(negative, filled(-1, r), 1)
    tie_broken = 2 * difference + coordinate(sign, 0) * (2 * pull - 1)
    whole = select(flip_whole, r - sign * (2 * q), r)
    half = select(flip_half, r + sign * q, r - sign * q)
    return select(tie_broken < 0, half, whole)
