r"""The lattice of the Hamming code: integer vectors whose parities form a codeword.

Construction A of the extended Hamming code [8, 4, 4] gives a lattice with determinant 16 and least
norm 4: E8 turned and scaled by √2. Its points are integers, which E8's are not.

**The code.** The parities of coordinates 0 to 3 are free; that of coordinate 4 + j is that of
coordinate j plus those of all four. So a codeword is (m, m) or, for odd m, (m, 1 − m).

**Closest point.** A coordinate y_i has nearest even and odd integers, and the odd one costs f_i =
1 − 2|y_i − even_i| more. Codewords are the affine functions of the points of a cube, coordinate i
standing for point `POINTS`[i]: the best one is found in the eight Hadamard sums of f, at the
largest magnitude, and its sign says which of a codeword and its complement it is.

**Ties** are defined: between equal magnitudes the first sum, at zero the codeword that is not
complemented; a half of an odd integer rounds to the multiple of four; without error the odd
neighbour is the larger one.

Source: Conway and Sloane, *Sphere Packings, Lattices and Groups*, chapters 7 and 20.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.jit import kernel
from latticeq.simd import (
    argmax,
    block,
    coordinate,
    magnitude,
    onehot,
    rint,
    select,
    sign,
    to_int,
    total,
)

__all__ = ["POINTS", "closest_point_hamming_lanes"]

POINTS = (0, 1, 2, 4, 7, 6, 5, 3)
"""The vertex of the cube, bits of a number, that each coordinate stands for."""


@kernel(inline=True)
def closest_point_hamming_lanes(y: Any) -> Any:
    """Return the closest points of the Hamming lattice to sixteen blocks, one a lane."""
    even = rint(y * np.float32(0.5)) * np.float32(2)
    error = y - even
    sums = _hadamard_sums(1 - magnitude(error) * np.float32(2))
    best = argmax(magnitude(sums))
    negative = to_int(total(select(onehot(best), sums, 0)) < 0)
    b0, b1, b2 = best & 1, (best >> 1) & 1, best >> 2
    zero = b0 ^ b0
    codeword = block(zero, b0, b1, b2, b0 ^ b1 ^ b2, b1 ^ b2, b0 ^ b2, b0 ^ b1) ^ negative
    return even + select(codeword == 1, sign(error), 0)


@kernel(inline=True)
def _hadamard_sums(f: Any) -> Any:
    """Return Σ_i (−1)^⟨j, POINTS[i]⟩ f_i for j = 0..7."""
    p0, p1, p2, p4 = coordinate(f, 0), coordinate(f, 1), coordinate(f, 2), coordinate(f, 3)
    p7, p6, p5, p3 = coordinate(f, 4), coordinate(f, 5), coordinate(f, 6), coordinate(f, 7)
    p0, p1, p2, p3 = p0 + p1, p0 - p1, p2 + p3, p2 - p3
    p4, p5, p6, p7 = p4 + p5, p4 - p5, p6 + p7, p6 - p7
    p0, p1, p2, p3 = p0 + p2, p1 + p3, p0 - p2, p1 - p3
    p4, p5, p6, p7 = p4 + p6, p5 + p7, p4 - p6, p5 - p7
    return block(p0 + p4, p1 + p5, p2 + p6, p3 + p7, p0 - p4, p1 - p5, p2 - p6, p3 - p7)
