r"""Voronoi codewords of q <= 16 decoded four bytes at a time, sixteen words at once.

A block's digits are one 32-bit word, digit i in bits 4i to 4i + 3. Seen as bytes after one mask, its
even digits (c0, c2, c4, c6) and its odd digits (c1, c3, c5, c7) are two words, and all of
`latticeq.codes.voronoi.fold_lanes` happens in such pairs, eight coordinates in two registers. It is
the same rule with the same ties; the tests hold the two equal on every digit string they try.
"""

from __future__ import annotations

from typing import Any

from latticeq.jit import kernel
from latticeq.simd import (
    add_bytes,
    count_ones,
    dot_bytes,
    equal_bytes,
    filled,
    max_bytes,
    min_bytes,
    repeat_byte,
    rotate,
    shift_right,
    sign_bytes,
    sub_bytes,
)

__all__ = ["decode_words_lanes"]

ONES = 0x01010101
"""A word whose four bytes are one: times b, a word of four bytes b."""


@kernel(inline=True)
def decode_words_lanes(words: Any, q: int) -> Any:
    """Return the doubled coordinates of sixteen codewords, each byte raised by 2q.

    Parameters
    ----------
    words : int32 lanes
        Digits below q, q from 2 to 16, as described above.
    q : int

    Returns
    -------
    even, odd : int32 lanes
        Coordinates 0, 2, 4, 6 and 1, 3, 5, 7 plus 2q as unsigned bytes, 0 to 4q.
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
    r_even, r_odd, odd_whole = _reduce(v_even, v_odd, q)
    return _fold(r_even, r_odd, odd_whole, q)


@kernel(inline=True)
def _reduce(v_even: Any, v_odd: Any, q: int) -> Any:
    """Split v = 2q·z + r, -q <= r < q: return r and the parity of the sum of z."""
    lift = filled(ONES * (3 * q), v_even)  # v > -2q, so v + 3q > 0, and below 8q: a byte
    u_even = add_bytes(v_even, lift)
    u_odd = add_bytes(v_odd, lift)
    if q & (q - 1) == 0:
        mask = ONES * (2 * q - 1)
        parity = count_ones((u_even ^ u_odd) & (ONES * 2 * q)) & 1
        t_even = u_even & mask
        t_odd = u_odd & mask
    else:
        period = filled(ONES * (2 * q), v_even)
        t_even = u_even
        t_odd = u_odd
        for _ in range(3):  # a byte below 2q wraps to a larger one, so the smaller is the right one
            t_even = min_bytes(t_even, sub_bytes(t_even, period))
            t_odd = min_bytes(t_odd, sub_bytes(t_odd, period))
        # The sum of what was taken off is 2q times the sum of z: an odd multiple of its power of two.
        ones = filled(ONES, v_even)
        taken = dot_bytes(filled(0, v_even), sub_bytes(u_even, t_even), ones)
        taken = dot_bytes(taken, sub_bytes(u_odd, t_odd), ones)
        low_bit = (2 * q) & -(2 * q)
        parity = to_bit(taken, low_bit)
    low = filled(ONES * q, v_even)
    return sub_bytes(t_even, low), sub_bytes(t_odd, low), parity


@kernel(inline=True)
def to_bit(x: Any, bit: int) -> Any:
    """Return 1 where a power of two `bit` is set in x, else 0."""
    return count_ones(x & bit)


@kernel(inline=True)
def _fold(r_even: Any, r_odd: Any, odd_whole: Any, q: int) -> Any:
    """Do what `fold_lanes` does after its first line, on bytes."""
    zero = filled(0, r_even)
    below_even, below_odd = sign_bytes(r_even), sign_bytes(r_odd)
    odd_half = odd_whole ^ (count_ones((below_even ^ below_odd) & ONES) & 1)
    # zigzag: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ...: grows with |r|, and positive beats negative
    zig_even = add_bytes(r_even, r_even) ^ below_even
    zig_odd = add_bytes(r_odd, r_odd) ^ below_odd
    rank_even = (zig_even << 3) | ((below_even & 0x07070707) ^ 0x01030507)
    rank_odd = (zig_odd << 3) | ((below_odd & 0x07070707) ^ 0x00020406)
    top = max_bytes(rank_even, rank_odd)
    top = max_bytes(top, rotate(top, 16))
    top = max_bytes(top, rotate(top, 8))
    bottom = min_bytes(rank_even, rank_odd)
    bottom = min_bytes(bottom, rotate(bottom, 16))
    bottom = min_bytes(bottom, rotate(bottom, 8))

    ones = filled(ONES, r_even)
    spread = dot_bytes(zero, sub_bytes(r_even ^ below_even, below_even), ones)
    spread = dot_bytes(spread, sub_bytes(r_odd ^ below_odd, below_odd), ones)
    largest = ((top & 0xFF) + 8) >> 4
    smallest = ((bottom & 0xFF) + 8) >> 4
    difference = 4 * q - spread + 2 * odd_half * smallest - 2 * odd_whole * (q - largest)

    whole, half = zero - odd_whole, zero - odd_half  # masks of ones where the parity is odd
    flip_whole_even = equal_bytes(rank_even, top) & whole
    flip_half_even = equal_bytes(rank_even, bottom) & half
    pull = (flip_whole_even | flip_half_even) & 1
    take_half = (difference + (pull ^ (below_even & 1)) - 1) >> 31

    flip_even = (flip_half_even & take_half) | (flip_whole_even & (take_half ^ -1))
    flip_odd = equal_bytes(rank_odd, bottom) & half & take_half
    flip_odd = flip_odd | (equal_bytes(rank_odd, top) & whole & (take_half ^ -1))
    return (
        _moved(r_even, below_even, flip_even, take_half, q),
        _moved(r_odd, below_odd, flip_odd, take_half, q),
    )


@kernel(inline=True)
def _moved(r: Any, below: Any, flip: Any, take_half: Any, q: int) -> Any:
    """Return r, or r - sign(r) q for the half set, its flipped coordinate moved by 2q; plus 2q."""
    step = sub_bytes((filled(ONES * q, r)) ^ below, below)  # sign(r) q
    moved = sub_bytes(r, step & take_half)
    back = add_bytes(step, step) & flip
    back = back ^ (take_half ^ -1)  # a negation in two steps, where the whole set is taken
    moved = add_bytes(moved, sub_bytes(back, (take_half ^ -1)))
    return add_bytes(moved, filled(ONES * (2 * q), r))
