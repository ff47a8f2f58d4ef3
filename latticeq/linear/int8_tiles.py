"""Many tokens at once in integers: tiles rounded to int8 under a scale a row, int8 dot products.

    y_tm = a_t b_m Σ_i u_ti w_mi,      u, w integers from -127 to 127

with a_t the scale of token t and b_m that of row m. The sums are exact: only rounding weights and
activations to int8 costs accuracy. A weight decoded from four bits is Gaussian to a good
approximation, so the largest of a row of N is about sqrt(2 ln N) standard deviations, and rounding
adds a mean squared error of (sqrt(2 ln N) / 127)² / 12 of the row's variance: 7e-5 for N = 576, to
be held against 4e-3 of the code itself.

Weights are kept as `latticeq.storage.formats.int8` keeps them, sixteen rows interleaved and raised
by 128; activations in panels of eight tokens. A step multiplies four coordinates of `GROUPS` x 16
rows by those of eight tokens, all sums in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.linear.int8_kernels import OFFSET, int8_scale, quantize_row
from latticeq.simd import (
    dot_wide_bytes,
    load,
    magnitude,
    maximum,
    path,
    rint,
    spread,
    store,
    store_strided,
    to_float,
    to_int,
)

__all__ = ["Int8Rows", "multiply_tiles", "quantize_rows", "round_tile"]

TOKENS = 8
"""Of a panel."""

GROUPS = 3 if path() == "avx512vnni" else 1
"""Of sixteen rows in a step: with 32 vector registers 24 sums fit; with 16 not even 8."""


class Int8Rows:
    """Tokens rounded to int8, laid out for `multiply_tiles`.

    Parameters
    ----------
    x : (T, N) float32
        Contiguous, N a multiple of 4.

    Attributes
    ----------
    operands : tuple of arrays
        The panels, totals and scales of `quantize_rows`.
    padded : int
        T, rounded up to whole panels.
    """

    def __init__(self, x: NDArray[np.float32]) -> None:
        count = -(-len(x) // TOKENS)
        self._length = len(x)
        self.padded = TOKENS * count
        self.operands = (
            np.empty((count, x.shape[1] // 4, TOKENS), np.int32),
            np.empty((count, TOKENS), np.int32),
            np.empty((count, TOKENS), np.float32),
        )
        quantize_rows(x, *self.operands)

    def __len__(self) -> int:
        """Return T."""
        return self._length


@kernel(parallel=True)
def round_tile(tile: Any, words: Any, row_scale: Any) -> None:
    """Round decoded rows to int8, each under its own scale.

    Parameters
    ----------
    tile : (N, 16 n) float32
        Column j is a row of the matrix. N is a multiple of 4.
    words : (n, N / 4, 16) int32, output
        Four weights each, raised by 128.
    row_scale : (16 n,) float32, output
        The largest magnitude of a row over 127; 1 for a row of zeros.
    """
    columns = tile.shape[1]
    for group in prange(len(words)):
        largest = magnitude(load(tile, 16 * group))
        for i in range(1, len(tile)):
            largest = maximum(largest, magnitude(load(tile, i * columns + 16 * group)))
        scale, inverse = int8_scale(largest)
        store(row_scale, 16 * group, scale)
        mine = words[group]
        for j in range(len(mine)):
            at = 4 * j * columns + 16 * group
            word = _raised(tile, at, inverse)
            word = word | (_raised(tile, at + columns, inverse) << 8)
            word = word | (_raised(tile, at + 2 * columns, inverse) << 16)
            word = word | (_raised(tile, at + 3 * columns, inverse) << 24)
            store(mine, 16 * j, word)


@kernel(inline=True)
def _raised(tile: Any, at: int, inverse: Any) -> Any:
    return to_int(rint(load(tile, at) * inverse)) + OFFSET


@kernel(parallel=True)
def quantize_rows(x: Any, panels: Any, totals: Any, scales: Any) -> None:
    """Round tokens to int8, each under its own scale, and lay them out for `multiply_tiles`.

    Parameters
    ----------
    x : (T, N) float32
        N a multiple of 4.
    panels : (P, N / 4, 8) int32, output
        Four coordinates of eight tokens each, P = ceil(T / 8); zeros where there is no token.
    totals : (P, 8) int32, output
        -128 times the sum of a token's integers: what sums start from, as weights are raised.
    scales : (P, 8) float32, output
        See `latticeq.linear.int8_kernels.quantize_row`.
    """
    for p in prange(len(panels)):
        values = np.zeros((TOKENS, x.shape[1]), np.int8)
        for t in range(TOKENS):
            total = np.int32(0)
            scales[p, t] = np.float32(0)
            if TOKENS * p + t < len(x):
                scales[p, t] = quantize_row(x[TOKENS * p + t], values[t])
                for value in values[t]:
                    total += np.int32(value)
            totals[p, t] = np.int32(-OFFSET) * total
        fours = values.view(np.int32)
        for j in range(panels.shape[1]):
            for t in range(TOKENS):
                panels[p, j, t] = fours[t, j]


@kernel(parallel=True)
def multiply_tiles(
    words: Any, row_scale: Any, panels: Any, totals: Any, scales: Any, first: int, out: Any
) -> None:
    """Multiply panels of tokens by some row groups.

    Parameters
    ----------
    words : (n, N / 4, 16) int32
    row_scale : (16 n,) float32
        From `round_tile`.
    panels, totals, scales
        From `quantize_rows`.
    first : int
        The column of `out` that the first row belongs to.
    out : (8 P, C) float32, output
        Columns from `first` on are written, C at least first + 16 n.
    """
    groups, columns = len(words), out.shape[1]
    for step in prange(-(-groups // GROUPS)):
        group = GROUPS * step
        for p in range(len(panels)):
            at = TOKENS * p * columns + first
            if GROUPS == 3 and group + 2 < groups:
                _multiply_three(words, row_scale, panels[p], totals[p], scales[p], group, out, at)
            else:
                for g in range(group, min(group + GROUPS, groups)):
                    _multiply_one(words, row_scale, panels[p], totals[p], scales[p], g, out, at)


@kernel(inline=True)
def _multiply_one(
    words: Any, row_scale: Any, panel: Any, totals: Any, scales: Any, g: int, out: Any, at: int
) -> None:
    """Multiply a panel by one group; `at` is where `out` has the panel's first token."""
    mine = words[g]
    total = spread(totals, load(mine, 0))
    for j in range(len(mine)):
        total = dot_wide_bytes(total, load(mine, 16 * j), spread(panel[j], load(mine, 0)))
    _store_scaled(total, row_scale, scales, g, out, at)


@kernel(inline=True)
def _multiply_three(
    words: Any, row_scale: Any, panel: Any, totals: Any, scales: Any, g: int, out: Any, at: int
) -> None:
    """Do what `_multiply_one` does for three groups in a row, loading activations once."""
    first, second, third = words[g], words[g + 1], words[g + 2]
    a = spread(totals, load(first, 0))
    b, c = a, a
    for j in range(len(first)):
        u, v, w = load(first, 16 * j), load(second, 16 * j), load(third, 16 * j)
        x = spread(panel[j], u)
        a = dot_wide_bytes(a, u, x)
        b = dot_wide_bytes(b, v, x)
        c = dot_wide_bytes(c, w, x)
    _store_scaled(a, row_scale, scales, g, out, at)
    _store_scaled(b, row_scale, scales, g + 1, out, at)
    _store_scaled(c, row_scale, scales, g + 2, out, at)


@kernel(inline=True)
def _store_scaled(total: Any, row_scale: Any, scales: Any, g: int, out: Any, at: int) -> None:
    scale = load(row_scale, 16 * g)
    store_strided(out, at + 16 * g, out.shape[1], to_float(total) * scale * spread(scales, scale))
