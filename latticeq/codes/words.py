r"""Voronoi codewords of q <= 16 decoded four bytes at a time, sixteen words at once.

A block's digits are one 32-bit word, digit i in bits 4i to 4i + 3. Seen as bytes after one mask,
its even digits (c0, c2, c4, c6) and its odd digits (c1, c3, c5, c7) are two words, and all of
`latticeq.codes.voronoi.fold_lanes` happens in such pairs, eight coordinates in two registers. It is
the same rule with the same ties; the tests hold the two equal on every digit string they try.

A residue r takes at most 32 values, so where the CPU looks 64 bytes up in one instruction, what
depends on one residue is read from tables (`word_tables`); elsewhere it is computed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel
from latticeq.simd import (
    add_bytes,
    count_ones,
    dot_bytes,
    equal_bytes,
    filled,
    has_byte_tables,
    max_bytes,
    min_bytes,
    permute_bytes,
    repeat_byte,
    rotate,
    shift_right,
    sign_bytes,
    sub_bytes,
)

__all__ = [
    "ONES",
    "decode_words_lanes",
    "largest_byte_lanes",
    "moved_bytes_lanes",
    "residues_of_words_lanes",
    "word_tables",
]

ONES = 0x01010101
"""A word whose four bytes are one: times b, a word of four bytes b."""

USE_TABLES = has_byte_tables()


@cache
def word_tables(q: int) -> NDArray[np.int32]:
    """Return the tables that `decode_words_lanes` reads, each 64 bytes seen as sixteen int32.

    Entry t = r + q holds in row 0 the rank of residue r, but for the coordinate's index, and in row
    1 its magnitude. Entry t + 32 h, with h = 1 for the half set, holds in row 2 the decoded
    coordinate plus 2q, and in row 3 what flipping it adds (mod 256).

    Parameters
    ----------
    q : int
        From 2 to 16.
    """
    r = np.arange(2 * q) - q
    below, sign = r < 0, np.where(r < 0, -1, 1)
    zigzag = np.where(below, -2 * r - 1, 2 * r)
    tables = np.zeros((4, 64), np.uint8)
    tables[0, : 2 * q] = 8 * zigzag + np.where(below, 0, 7)
    tables[1, : 2 * q] = np.abs(r)
    for half in (0, 1):
        part = slice(32 * half, 32 * half + 2 * q)
        tables[2, part] = r + 2 * q - half * sign * q
        tables[3, part] = (sign * 2 * q * (2 * half - 1)) % 256
    packed = tables.view("<i4").astype(np.int32)
    packed.flags.writeable = False
    return packed


@kernel(inline=True)
def decode_words_lanes(words: Any, q: int, tables: Any) -> Any:
    """Return the doubled coordinates of sixteen codewords, each byte raised by 2q.

    Parameters
    ----------
    words : int32 lanes
        Digits below q, q from 2 to 16, as described above.
    q : int
    tables : four int32 lanes
        The rows of `word_tables` for q.

    Returns
    -------
    even, odd : int32 lanes
        Coordinates 0, 2, 4, 6 and 1, 3, 5, 7 plus 2q as unsigned bytes, 0 to 4q.
    """
    t_even, t_odd, odd_whole = residues_of_words_lanes(words, q)
    if USE_TABLES:
        return _fold_by_tables(t_even, t_odd, odd_whole, q, tables)
    low = filled(ONES * q, words)
    return _fold(sub_bytes(t_even, low), sub_bytes(t_odd, low), odd_whole, q)


@kernel(inline=True)
def residues_of_words_lanes(words: Any, q: int) -> Any:
    """Return the residues of 2 G c of sixteen words' digits c.

    With 2 G c = 2q·z + r and -q <= r < q, these are r + q as bytes, even and odd coordinates apart,
    and a number as odd as the sum of z is.
    """
    even = words & 0x0F0F0F0F
    odd = shift_right(words, 4) & 0x0F0F0F0F
    # Twice the generator matrix: v = 2 (c_i - c_{i+1}) + c_7, with c_0 doubled and c_7 alone.
    last = repeat_byte(odd, 3)
    middle = odd & 0x00FFFFFF
    v_even = sub_bytes(add_bytes(even, even & 0xFF), middle)
    v_odd = sub_bytes(middle, shift_right(even, 8))
    v_even = add_bytes(add_bytes(v_even, v_even), last)
    v_odd = add_bytes(add_bytes(v_odd, v_odd), last)
    lift = filled(ONES * (3 * q), v_even)  # v > -2q, so v + 3q > 0, and below 8q: a byte
    u_even = add_bytes(v_even, lift)
    u_odd = add_bytes(v_odd, lift)
    if q & (q - 1) == 0:
        mask = ONES * (2 * q - 1)
        parity = count_ones((u_even ^ u_odd) & (ONES * 2 * q))
        t_even = u_even & mask
        t_odd = u_odd & mask
    else:
        period = filled(ONES * (2 * q), v_even)
        t_even = u_even
        t_odd = u_odd
        for _ in range(3):  # a byte below 2q wraps to a larger one, so the smaller is the right one
            t_even = min_bytes(t_even, sub_bytes(t_even, period))
            t_odd = min_bytes(t_odd, sub_bytes(t_odd, period))
        # The sum of what was taken off is 2q times the sum of z: an odd multiple of its power of
        # two.
        ones = filled(ONES, v_even)
        taken = dot_bytes(filled(0, v_even), sub_bytes(u_even, t_even), ones)
        taken = dot_bytes(taken, sub_bytes(u_odd, t_odd), ones)
        parity = count_ones(taken & ((2 * q) & -(2 * q)))
    return t_even, t_odd, parity


@kernel(inline=True)
def _fold_by_tables(t_even: Any, t_odd: Any, odd_whole: Any, q: int, tables: Any) -> Any:
    """Do what `_fold` does, reading from tables what depends on one residue alone."""
    ranks, magnitudes, places, flips = tables
    rank_even = permute_bytes(ranks, t_even) ^ 0x06040200
    rank_odd = permute_bytes(ranks, t_odd) ^ 0x07050301
    odd_half = odd_whole ^ count_ones((rank_even ^ rank_odd) & ONES)  # a rank's low bit: its sign
    whole, half = (odd_whole << 31) >> 31, (odd_half << 31) >> 31
    top, bottom = _extremes(rank_even, rank_odd)
    magnitude_even = permute_bytes(magnitudes, t_even)
    magnitude_odd = permute_bytes(magnitudes, t_odd)
    difference = _difference(magnitude_even, magnitude_odd, top, bottom, whole, half, q)
    pull = (equal_bytes(rank_even, top) & whole) | (equal_bytes(rank_even, bottom) & half)
    take_half = (difference - ((pull ^ rank_even) & 1)) >> 31

    target = (bottom & take_half) | (top & (take_half ^ -1))
    active = (half & take_half) | (whole & (take_half ^ -1))
    set_bit = take_half & (ONES * 32)
    at_even, at_odd = t_even | set_bit, t_odd | set_bit
    flip_even = permute_bytes(flips, at_even) & equal_bytes(rank_even, target) & active
    flip_odd = permute_bytes(flips, at_odd) & equal_bytes(rank_odd, target) & active
    return (
        add_bytes(permute_bytes(places, at_even), flip_even),
        add_bytes(permute_bytes(places, at_odd), flip_odd),
    )


@kernel(inline=True)
def _extremes(rank_even: Any, rank_odd: Any) -> Any:
    """Return the largest and the smallest of eight ranks, each in all four bytes."""
    top = largest_byte_lanes(rank_even, rank_odd)
    bottom = min_bytes(rank_even, rank_odd)
    bottom = min_bytes(bottom, rotate(bottom, 16))
    bottom = min_bytes(bottom, rotate(bottom, 8))
    return top, bottom


@kernel(inline=True)
def largest_byte_lanes(even: Any, odd: Any) -> Any:
    """Return the largest of eight unsigned bytes, in all four bytes."""
    top = max_bytes(even, odd)
    top = max_bytes(top, rotate(top, 16))
    return max_bytes(top, rotate(top, 8))


@kernel(inline=True)
def _difference(
    a_even: Any, a_odd: Any, top: Any, bottom: Any, whole: Any, half: Any, q: int
) -> Any:
    """Return what the half set costs more than the whole one: 4q - sum |r|, and the flips."""
    minus_ones = filled(-1, top)
    difference = dot_bytes(filled(4 * q, top), a_even, minus_ones)
    difference = dot_bytes(difference, a_odd, minus_ones)
    twice_largest = (shift_right(top, 27) + 1) & 62  # a rank's high bits are the zigzag of r
    twice_smallest = (shift_right(bottom, 27) + 1) & 62
    return difference + (twice_smallest & half) - ((2 * q - twice_largest) & whole)


@kernel(inline=True)
def _fold(r_even: Any, r_odd: Any, odd_whole: Any, q: int) -> Any:
    """Do what `fold_lanes` does after its first line, on bytes; parities become masks of ones."""
    below_even, below_odd = sign_bytes(r_even), sign_bytes(r_odd)
    odd_half = odd_whole ^ count_ones((below_even ^ below_odd) & ONES)
    whole, half = (odd_whole << 31) >> 31, (odd_half << 31) >> 31
    # zigzag: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...: grows with |r|, and positive beats negative
    zig_even = add_bytes(r_even, r_even) ^ below_even
    zig_odd = add_bytes(r_odd, r_odd) ^ below_odd
    rank_even = (zig_even << 3) | ((below_even & 0x07070707) ^ 0x01030507)
    rank_odd = (zig_odd << 3) | ((below_odd & 0x07070707) ^ 0x00020406)
    top, bottom = _extremes(rank_even, rank_odd)
    magnitude_even = sub_bytes(r_even ^ below_even, below_even)
    magnitude_odd = sub_bytes(r_odd ^ below_odd, below_odd)
    difference = _difference(magnitude_even, magnitude_odd, top, bottom, whole, half, q)
    # A tie between the sets is decided by coordinate 0: its sign, and whether it is flipped.
    pull = (equal_bytes(rank_even, top) & whole) | (equal_bytes(rank_even, bottom) & half)
    take_half = (difference + ((pull ^ below_even) & 1) - 1) >> 31

    target = (bottom & take_half) | (top & (take_half ^ -1))
    active = (half & take_half) | (whole & (take_half ^ -1))
    return (
        moved_bytes_lanes(
            r_even, below_even, equal_bytes(rank_even, target) & active, take_half, q
        ),
        moved_bytes_lanes(r_odd, below_odd, equal_bytes(rank_odd, target) & active, take_half, q),
    )


@kernel(inline=True)
def moved_bytes_lanes(r: Any, below: Any, flip: Any, take_half: Any, q: int) -> Any:
    """Return r + 2q, or r + 2q - sign(r) q for the half set, a flipped coordinate moved by 2q.

    The flip goes against sign(r) in the whole set and along it in the half set.
    """
    step = sub_bytes(filled(ONES * q, r) ^ below, below)  # sign(r) q
    moved = sub_bytes(add_bytes(r, filled(ONES * (2 * q), r)), step & take_half)
    against = take_half ^ -1
    twice = sub_bytes(add_bytes(step, step) ^ against, against)
    return add_bytes(moved, twice & flip)
