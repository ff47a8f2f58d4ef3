"""Rows coded one by one on a scalar grid: the baselines for activations and the KV cache.

Bytes of a row, in this order, all little-endian:

- codes, two a byte, the even column in the low four bits;
- scales, one a group: float16 (int4, nf4), E8M0 (mxfp4) or E4M3 (nvfp4);
- zero points, one a group: float16 (asymmetric int4 only);
- the scale of the row that E4M3 scales are relative to: float32 (nvfp4 only).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.grids import code_lanes, half_value
from latticeq.errors import InputError
from latticeq.jit import kernel, prange
from latticeq.quantizers.grid_tensor import grid_of
from latticeq.quantizers.rows import (
    checked_bytes,
    checked_rows,
    read_integer,
    write_integer,
)
from latticeq.quantizers.scalar import Scalar, scalar_rule
from latticeq.quantizers.scales import (
    E4M3,
    E8M0,
    HALF,
    LANES,
    Rule,
    chosen_scale,
    inverse_step,
    scale_value,
    scratch,
)
from latticeq.simd import load, store

__all__ = ["ScalarRowCodec"]


@dataclass(frozen=True)
class ScalarRowCodec:
    """The row codec of a scalar quantizer: what it would do to each row, as bytes.

    Parameters
    ----------
    scalar : Scalar
        Its rotation and seed play no part: the caller rotates.
    n : int
        Length of a row; for mxfp4 and nvfp4 a multiple of 32 and of 16.

    Raises
    ------
    InputError
        If n does not divide.

    Examples
    --------
    >>> codec = ScalarRowCodec(Scalar("int4", clip=0.9), 64)
    >>> codec.row_nbytes, codec.bits_per_entry
    (34, 4.25)
    >>> x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    >>> again = codec.decode(codec.encode(x))
    >>> bool(np.mean((again - x) ** 2) < 0.02)
    True
    """

    scalar: Scalar
    n: int

    def __post_init__(self) -> None:
        multiple = self.scalar.group_size(self.n) if self.scalar.is_float else 1
        if type(self.n) is not int or self.n < 1 or self.n % multiple:
            raise InputError(
                f"n is {self.n!r}; rows of {self.scalar.kind} must be a positive multiple of "
                f"{multiple} long"
            )

    @cached_property
    def rule(self) -> Rule:
        """What the kernels know of the grid and its scales."""
        return scalar_rule(self.scalar, self.n)

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes of a coded row."""
        top_at = int(_offsets(self.n, self.rule)[3])
        return top_at + (4 if self.rule.kind == E4M3 else 0)

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry, scales included."""
        return 8 * self.row_nbytes / self.n

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Code rows.

        Parameters
        ----------
        x : ndarray of float32, shape (R, n)
            A row with an infinite or NaN entry, and a group whose scale float16 cannot hold, decode
            to NaN.

        Returns
        -------
        ndarray of uint8, shape (R, row_nbytes)

        Raises
        ------
        InputError
            If the shape is another.
        """
        rows = checked_rows(x, self.n)
        coded = np.empty((len(rows), self.row_nbytes), np.uint8)
        _encode(rows, self.rule, coded)
        return coded

    def decode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows that bytes stand for.

        Parameters
        ----------
        rows : ndarray of uint8, shape (R, row_nbytes)

        Returns
        -------
        ndarray of float32, shape (R, n)
            level · step + zero, each operation rounded to float32.

        Raises
        ------
        InputError
            If shape or dtype are others.
        """
        coded = checked_bytes(rows, self.row_nbytes)
        x = np.empty((len(coded), self.n), np.float32)
        levels = grid_of(self.scalar.kind, self.scalar.symmetric).by_code
        _decode(coded, self.rule, levels, x)
        return x


@kernel
def _offsets(n: int, rule: Any) -> Any:
    """Return the number of groups, and where scales, zero points and the row's scale begin."""
    groups = (n + rule.group - 1) // rule.group
    scales = (n + 1) // 2
    zeros = scales + groups * (2 if rule.kind == HALF else 1)
    return groups, scales, zeros, zeros + (2 * groups if rule.offset else 0)


@kernel(parallel=True)
def _encode(x: Any, rule: Any, coded: Any) -> None:
    for row in prange(len(x)):
        _encode_row(x[row], rule, coded[row])


@kernel
def _encode_row(x: Any, rule: Any, coded: Any) -> None:
    n = len(x)
    groups, scales_at, zeros_at, top_at = _offsets(n, rule)
    room = scratch()
    codes = np.zeros(n + LANES, np.int32)
    row = np.zeros(n + LANES, np.float32)
    peak, is_finite = np.float32(0), True
    for i in range(n):
        is_finite &= abs(x[i]) < np.inf
        peak = max(peak, abs(x[i]))
    for i in range(n if is_finite else 0):
        row[i] = x[i]
    top = peak / rule.peak if is_finite else np.float32(np.nan)
    size = 2 if rule.kind == HALF else 1
    for g in range(groups):
        first, last = g * rule.group, min(n, (g + 1) * rule.group)
        scale, zero = (0xFF if rule.kind == E8M0 else 0x7E00 if rule.kind == HALF else 0), 0
        if is_finite:
            scale, zero = chosen_scale(x, first, last, rule, top, room)
        write_integer(coded, scales_at + size * g, scale, size)
        if rule.offset:
            write_integer(coded, zeros_at + 2 * g, zero, 2)
        step = scale_value(scale, rule.kind, top)
        inverse = inverse_step(step)
        bottom = half_value(zero)
        # What the last sixteen write beyond the group, the next group overwrites.
        for at in range(first, last, LANES):
            y = (load(row, at) - bottom) * inverse
            store(codes, at, code_lanes(y, rule.thresholds, rule.codes))
    codes[n] = 0
    for i in range(scales_at):
        coded[i] = codes[2 * i] | (codes[2 * i + 1] << 4)
    if rule.kind == E4M3:
        write_integer(coded, top_at, np.int64(np.float32(top).view(np.uint32)), 4)


@kernel(parallel=True)
def _decode(coded: Any, rule: Any, levels: Any, x: Any) -> None:
    for row in prange(len(x)):
        _decode_row(coded[row], rule, levels, x[row])


@kernel
def _decode_row(coded: Any, rule: Any, levels: Any, x: Any) -> None:
    n = len(x)
    groups, scales_at, zeros_at, top_at = _offsets(n, rule)
    top = np.float32(1)
    if rule.kind == E4M3:
        top = np.uint32(read_integer(coded, top_at, 4)).view(np.float32)
    size = 2 if rule.kind == HALF else 1
    for g in range(groups):
        step = scale_value(read_integer(coded, scales_at + size * g, size), rule.kind, top)
        bottom = np.float32(0)
        if rule.offset:
            bottom = half_value(read_integer(coded, zeros_at + 2 * g, 2))
        for i in range(g * rule.group, min(n, (g + 1) * rule.group)):
            code = (coded[i >> 1] >> (4 * (i & 1))) & 15
            x[i] = levels[code] * step + bottom
