r"""NestQuantM: the code E8/qE8 under a cheaper decoder.

Any map f with f(y + λ) = f(y) for λ in qE8 names one member of each coset. The true Voronoi cell
takes the nearest point Q of E8, which rounds the worst coordinate the other way where a sum is odd.
Here coordinate 0 is re-rounded instead, whatever the errors: f(y) = y − q·Q'((y + s)/q), with the
shift s and the digits of `latticeq.codes.voronoi`. The cell reaches farther in some directions,
and the mean error is larger: by 23 % at q = 16, k = 4.

Source: Savkin et al., *NestQuant*, arXiv 2502.09720, where it is called NestQuantM.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.codes.union import (
    GROUP,
    PULL,
    STEP,
    closest_codeword_lanes,
    closest_inside_lanes,
    retreat_lanes,
    store_codewords,
)
from latticeq.codes.voronoi import UNIT, digits_lanes, generator_lanes, residues_lanes
from latticeq.jit import kernel, prange
from latticeq.lattices.e8 import closest_point_e8_lanes
from latticeq.simd import (
    coordinate,
    filled,
    load_blocks,
    load_byte_blocks,
    magnitude,
    maximum,
    parity_bits,
    places,
    select,
    store_byte_blocks,
    to_float,
    to_int,
    total,
)

__all__ = ["UNIT", "decode_blocks", "encode_blocks"]


@kernel(parallel=True)
def encode_blocks(
    x: Any, betas: Any, inverse: Any, q: int, first_fit: bool, digits: Any, index: Any, values: Any
) -> None:
    """Fill the digits, scale indices and values of blocks; see `latticeq.codes.nested`."""
    for group in prange(x.size // GROUP):
        blocks = load_blocks(x, group * GROUP)
        point, which = closest_codeword_lanes(blocks, betas, inverse, q, first_fit, _nearest)
        found = digits_lanes(to_int(point + point), q)
        store_codewords(group, point, which, betas, found, digits, index, values)


@kernel(inline=True)
def _nearest(y: Any, q: int, moves: int) -> Any:
    return closest_inside_lanes(y, q, moves, closest_point_e8_lanes, _retreat)


@kernel(inline=True)
def _retreat(y: Any, t: Any, q: int) -> Any:
    """Return the step that takes y back into the box that holds the cell, or inside it from λ.

    The box is |t_0| <= q, |t_i| <= q/2. The λ of a point outside the box says little about where it
    is, as re-rounding changes coordinate 0 by as much as the point is off.
    """
    v = to_int(t + t)
    limit = select(places(v) == 0, filled(2 * q, v), q)
    face = to_float(to_int(v >= limit) - to_int(v + limit < 0))
    beyond = magnitude(y) - to_float(limit) * np.float32(0.5)
    to_box = maximum(beyond * PULL, filled(STEP, y)) * face
    away = to_float(v - fold_fixed_lanes(v, q)) * np.float32(0.5 / q)
    return select(total(magnitude(face)) > 0, to_box, retreat_lanes(y, away, q))


@kernel
def decode_blocks(digits: Any, q: int, points: Any) -> None:
    """Fill the points of digits, both (16 n, 8)."""
    for first in range(0, digits.size, GROUP):
        c = load_byte_blocks(digits, first)
        store_byte_blocks(points, first, fold_fixed_lanes(generator_lanes(c), q))


@kernel(inline=True)
def fold_fixed_lanes(v: Any, q: int) -> Any:
    """Return the representatives of lattice points modulo qE8, both in doubled coordinates.

    As `latticeq.codes.voronoi.fold_lanes`, but the coordinate that moves by 2q in a set of odd
    parity is coordinate 0. The costs of the two sets then differ by 2q times

        4q − Σ|r| + 2·odd_half·|r_0| − 2·odd_whole·(q − |r_0|),

    and a tie is decided by the sign with which s_0 enters.
    """
    z, r = residues_lanes(v, 2 * q)
    a, negative = magnitude(r), r < 0
    odd_whole = parity_bits(z) & 1
    odd_half = odd_whole ^ parity_bits(to_int(negative))
    first, sign = coordinate(a, 0), select(negative, filled(-1, r), 1)
    difference = 4 * q - total(a) + 2 * odd_half * first - 2 * odd_whole * (q - first)
    tie_broken = 2 * difference + coordinate(sign, 0) * (2 * (odd_whole | odd_half) - 1)
    step = select(places(r) == 0, sign * (2 * q), 0)
    whole = r - odd_whole * step
    half = r - sign * q + odd_half * step
    return select(tie_broken < 0, half, whole)
