r"""The nested Voronoi code E8/qE8.

A lattice point t = G c carries the digits c mod q, eight numbers in 0..q−1: log₂ q bits an entry.
The decoder takes the member of G c + qE8 that lies in the Voronoi cell of qE8; t is *overloaded* if
that is another point.

**Ties.** Many lattice points lie exactly on the boundary of q times the cell. The decoder is f(y) =
y − q·Q((y + s)/q) with the fixed generic vector s_i = 2^−(4+i): the cell is moved by so little that
every representative still has minimal norm, and so generically that none lies on its boundary.
Hence f(y + λ) = f(y) for λ in qE8. In doubled coordinates all of it is integer arithmetic.

Sources: Conway and Sloane, *A fast encoding method for lattice codes and quantizers*, IEEE Trans.
IT 29(6), 1983; Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.codes.union import (
    GROUP,
    closest_codeword_lanes,
    closest_inside_lanes,
    retreat_lanes,
    store_codewords,
)
from latticeq.jit import kernel, prange
from latticeq.lattices.e8 import closest_point_e8_lanes
from latticeq.simd import (
    block,
    coordinate,
    filled,
    largest,
    load_blocks,
    load_byte_blocks,
    magnitude,
    parity_bits,
    places,
    rint,
    select,
    smallest,
    store_byte_blocks,
    to_float,
    to_int,
    total,
)

__all__ = ["UNIT", "decode_blocks", "encode_blocks"]

UNIT = 0.5
"""Points are given in doubled coordinates, at most 2q in magnitude."""


@kernel(parallel=True)
def encode_blocks(
    x: Any, betas: Any, inverse: Any, q: int, first_fit: bool, digits: Any, index: Any, values: Any
) -> None:
    """Fill the digits, scale indices and values of blocks; see `latticeq.codes.nested`."""
    for group in prange(x.size // GROUP):
        blocks = load_blocks(x, group * GROUP)
        point, which = codeword_lanes(blocks, betas, inverse, q, first_fit)
        found = digits_lanes(to_int(point + point), q)
        store_codewords(group, point, which, betas, found, digits, index, values)


@kernel(inline=True)
def codeword_lanes(x: Any, betas: Any, inverse: Any, q: int, first_fit: bool) -> Any:
    """Return the points chosen for sixteen blocks, unscaled, and the indices of their scales."""
    return closest_codeword_lanes(x, betas, inverse, q, first_fit, _nearest)


@kernel(inline=True)
def _nearest(y: Any, q: int, moves: int) -> Any:
    return closest_inside_lanes(y, q, moves, closest_point_e8_lanes, _retreat)


@kernel(inline=True)
def _retreat(y: Any, t: Any, q: int) -> Any:
    v = to_int(t + t)
    return retreat_lanes(y, to_float(v - fold_lanes(v, q)) * np.float32(0.5 / q), q)


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
def decode_blocks(digits: Any, q: int, points: Any) -> None:
    """Fill the points of digits, both (16 n, 8)."""
    for first in range(0, digits.size, GROUP):
        c = load_byte_blocks(digits, first)
        store_byte_blocks(points, first, fold_lanes(generator_lanes(c), q))


@kernel(inline=True)
def generator_lanes(c: Any) -> Any:
    """Return 2 G c, the doubled lattice points of digits."""
    c1, c2, c3 = coordinate(c, 1), coordinate(c, 2), coordinate(c, 3)
    c4, c5, c6 = coordinate(c, 4), coordinate(c, 5), coordinate(c, 6)
    c0, zero = coordinate(c, 0), 0 * coordinate(c, 0)
    steps = block(2 * c0 - c1, c1 - c2, c2 - c3, c3 - c4, c4 - c5, c5 - c6, c6, zero)
    return 2 * steps + coordinate(c, 7)


@kernel(inline=True)
def residues_lanes(v: Any, period: int) -> Any:
    """Split integers v = period·z + r with −period/2 <= r < period/2, the period even."""
    z = to_int(rint((to_float(v) + np.float32(0.5)) * np.float32(1 / period)))
    return z, v - z * period


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
    z, r = residues_lanes(v, 2 * q)
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
