r"""The code of the Hamming lattice modulo qD8, q even: q⁸/8 codewords, log₂ q − 3/8 bits an entry.

The fine lattice is `latticeq.lattices.hamming`'s, integer vectors whose parities are codewords;
q·D8, multiples of q with an even sum of quotients, lies in it. The representative of a coset is its
member in the Voronoi cell of qD8, found by rounding to multiples of q and, where the quotients' sum
is odd, moving the coordinate of largest residue by q. Ties follow the shift s of
`latticeq.codes.voronoi`.

**Digits.** v_i mod q for each coordinate, and one bit that tells the two cosets of qD8 in qZ⁸
apart: the parity of Σ ⌊v_i/q⌋. It is carried by the first digit, which gains q times it and so lies
in 0..2q−1. The digits are themselves a member of the coset. The parities of digits 4 to 7 follow
from those of digits 0 to 3: a word has four bits to spare, for this bit and for a scale index of
k <= 8 (`latticeq.codes.d8_fields`).

Source: Conway and Sloane, *Voronoi regions of lattices, second moments of polytopes, and
quantization*, IEEE Trans. IT 28(2), 1982, for the closest point of D8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.union import (
    GROUP,
    closest_codeword_lanes,
    closest_inside_lanes,
    retreat_lanes,
    store_codewords,
)
from latticeq.codes.voronoi import residues_lanes
from latticeq.jit import kernel, prange
from latticeq.lattices.hamming import closest_point_hamming_lanes
from latticeq.simd import (
    filled,
    largest,
    load_blocks,
    load_byte_blocks,
    magnitude,
    parity_bits,
    places,
    select,
    store_byte_blocks,
    to_float,
    to_int,
)

__all__ = ["UNIT", "decode_blocks", "encode_blocks", "is_codeword"]

UNIT = 1.0
"""Points are integers, at most q in magnitude."""


def is_codeword(digits: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which digits, shape (..., 8), have parities that form a word of the Hamming code."""
    parities = digits & 1
    total = parities[..., :4].sum(axis=-1, keepdims=True)
    follows: NDArray[np.bool_] = ((parities[..., :4] + total + parities[..., 4:]) & 1) == 0
    return np.asarray(follows.all(axis=-1))


@kernel(parallel=True)
def encode_blocks(
    x: Any, betas: Any, inverse: Any, q: int, first_fit: bool, digits: Any, index: Any, values: Any
) -> None:
    """Fill the digits, scale indices and values of blocks; see `latticeq.codes.nested`."""
    for group in prange(x.size // GROUP):
        blocks = load_blocks(x, group * GROUP)
        point, which = closest_codeword_lanes(blocks, betas, inverse, q, first_fit, _nearest)
        found = _digits_lanes(to_int(point), q)
        store_codewords(group, point, which, betas, found, digits, index, values)


@kernel(inline=True)
def _nearest(y: Any, q: int, moves: int) -> Any:
    return closest_inside_lanes(y, q, moves, closest_point_hamming_lanes, _retreat)


@kernel(inline=True)
def _retreat(y: Any, t: Any, q: int) -> Any:
    v = to_int(t)
    return retreat_lanes(y, to_float(v - fold_d8_lanes(v, q)) * np.float32(1 / q), q)


@kernel(inline=True)
def _digits_lanes(v: Any, q: int) -> Any:
    """Return the digits of representatives, which are at least −q and at most q."""
    quotient = to_int(v >= q) - to_int(v < 0)
    coset = parity_bits(quotient) & 1
    return v - quotient * q + select(places(v) == 0, coset * q, 0)


@kernel
def decode_blocks(digits: Any, q: int, points: Any) -> None:
    """Fill the points of digits, both (16 n, 8)."""
    for first in range(0, digits.size, GROUP):
        store_byte_blocks(points, first, fold_d8_lanes(load_byte_blocks(digits, first), q))


@kernel(inline=True)
def fold_d8_lanes(v: Any, q: int) -> Any:
    """Return the representatives of integer vectors modulo qD8.

    The shift s decides ties: among equal magnitudes positive residues count as larger than negative
    ones, and earlier ones as more so.
    """
    z, r = residues_lanes(v, q)
    negative = r < 0
    rank = (magnitude(r) << 4) + select(negative, places(r), 15 - places(r))
    flip = (rank == largest(rank)) & (parity_bits(z) & 1 == 1)
    return select(flip, r - select(negative, filled(-q, r), q), r)
