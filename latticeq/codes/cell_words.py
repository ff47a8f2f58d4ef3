r"""Codewords of the cells cubic, d8 and nestquantm decoded four bytes at a time, q <= 16.

As in `latticeq.codes.words`: a block's digits are one 32-bit word, digit i in bits 4i to 4i + 3,
and coordinates come in two words of unsigned bytes, 0, 2, 4, 6 in one and 1, 3, 5, 7 in the other,
raised by a constant that the caller takes off after multiplying.

The word of d8 also holds the scale index: its fields are those of `latticeq.codes.d8_fields`.
"""

from __future__ import annotations

from typing import Any

from latticeq.codes.words import (
    ONES,
    largest_byte_lanes,
    moved_bytes_lanes,
    residues_of_words_lanes,
)
from latticeq.jit import kernel
from latticeq.simd import (
    add_bytes,
    count_ones,
    dot_bytes,
    equal_bytes,
    filled,
    shift_right,
    sign_bytes,
    sub_bytes,
)

__all__ = ["cubic_words_lanes", "d8_words_lanes", "fixed_words_lanes"]


@kernel(inline=True)
def cubic_words_lanes(words: Any) -> Any:
    """Return the quadrupled coordinates of sixteen codewords of cell cubic, raised by 2q − 1.

    Parameters
    ----------
    words : int32 lanes
        Digits n_i below q, q from 2 to 16 and even.

    Returns
    -------
    even, odd : int32 lanes
        4 n_i + 2 b_i as bytes, 0 to 4q − 2: b_i is the parity of Σ n, but for b_0 its contrary.
    """
    even = (words & 0x0F0F0F0F) << 2
    odd = shift_right(words, 2) & 0x3C3C3C3C
    halves = (0 - (count_ones(words & 0x11111111) & 1)) & 0x02020202
    return even | (halves ^ 2), odd | halves


@kernel(inline=True)
def d8_words_lanes(words: Any, q: int) -> Any:
    """Return the coordinates of sixteen codewords of cell d8, raised by q, and their scale indices.

    Parameters
    ----------
    words : int32 lanes
        As described above, with w = 4.
    q : int
        From 2 to 16, even.

    Returns
    -------
    even, odd : int32 lanes
        v_i + q as bytes, 0 to 2q.
    index : int32 lanes
        0 to 7.
    """
    spare = shift_right(words, 16) & 0x1111
    index = (spare | shift_right(spare, 3) | shift_right(spare, 6)) & 7
    coset = shift_right(words, 28)
    # The lowest bits of digits 4 to 7: those of digits 0 to 3, all flipped if their sum is odd.
    flipped = (0 - (count_ones(words & 0x1111) & 1)) & 0x1111
    digits = words ^ (((words ^ flipped ^ spare) & 0x1111) << 16)
    even = digits & 0x0F0F0F0F
    odd = shift_right(digits, 4) & 0x0F0F0F0F
    # Digits from q/2 upwards are residues of q less: r >= -q/2.
    threshold = filled(ONES * (128 - q // 2), words)
    below_even = sign_bytes(add_bytes(even, threshold))
    below_odd = sign_bytes(add_bytes(odd, threshold))
    period = filled(ONES * q, words)
    rank_even = _rank(sub_bytes(even, below_even & period), below_even, 0x01030507)
    rank_odd = _rank(sub_bytes(odd, below_odd & period), below_odd, 0x00020406)
    top = largest_byte_lanes(rank_even, rank_odd)
    is_odd = 0 - ((count_ones((below_even ^ below_odd) & ONES) + coset) & 1)
    # r + q is the digit, and q more unless r is negative; a flipped coordinate the other way round.
    raise_even = below_even ^ (equal_bytes(rank_even, top) & is_odd) ^ -1
    raise_odd = below_odd ^ (equal_bytes(rank_odd, top) & is_odd) ^ -1
    return add_bytes(even, period & raise_even), add_bytes(odd, period & raise_odd), index


@kernel(inline=True)
def _rank(r: Any, below: Any, places: int) -> Any:
    """Return bytes that grow with |r|, then positive before negative, then by the shift's rule.

    `places` holds 7 less the index of each coordinate.
    """
    return ((add_bytes(r, r) ^ below) << 3) | ((below & 0x07070707) ^ places)


@kernel(inline=True)
def fixed_words_lanes(words: Any, q: int) -> Any:
    """Return the doubled coordinates of sixteen codewords of cell nestquantm, raised by 2q.

    Parameters
    ----------
    words : int32 lanes
        Digits below q, q from 2 to 16.
    q : int

    Returns
    -------
    even, odd : int32 lanes
        2 x_i + 2q as bytes, 0 to 4q.
    """
    t_even, t_odd, odd_whole = residues_of_words_lanes(words, q)
    low = filled(ONES * q, words)
    r_even, r_odd = sub_bytes(t_even, low), sub_bytes(t_odd, low)
    below_even, below_odd = sign_bytes(r_even), sign_bytes(r_odd)
    odd_half = odd_whole ^ count_ones((below_even ^ below_odd) & ONES)
    whole, half = 0 - (odd_whole & 1), 0 - (odd_half & 1)
    magnitude_even = sub_bytes(r_even ^ below_even, below_even)
    magnitude_odd = sub_bytes(r_odd ^ below_odd, below_odd)
    twice_first = (magnitude_even & 0xFF) << 1
    minus_ones = filled(-1, words)
    difference = dot_bytes(filled(4 * q, words), magnitude_even, minus_ones)
    difference = dot_bytes(difference, magnitude_odd, minus_ones)
    difference = difference + (twice_first & half) - ((2 * q - twice_first) & whole)
    take_half = (difference + (((whole | half) ^ below_even) & 1) - 1) >> 31
    flip = ((half & take_half) | (whole & (take_half ^ -1))) & 0xFF
    return (
        moved_bytes_lanes(r_even, below_even, flip, take_half, q),
        moved_bytes_lanes(r_odd, below_odd, flip & 0, take_half, q),
    )
