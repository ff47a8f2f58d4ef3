"""Many tokens at once in integers: tiles rounded to int8 under a scale a row, int8 dot products.

    y_tm = a_t b_m Σ_i u_ti w_mi,      u, w integers from -127 to 127

with a_t the scale of token t and b_m that of row m. The sums are exact: only rounding weights and
activations to int8 costs accuracy. A weight decoded from four bits is Gaussian to a good
approximation, so the largest of a row of N is about sqrt(2 ln N) standard deviations, and rounding
adds a mean squared error of (sqrt(2 ln N) / 127)² / 12 of the row's variance: 7e-5 for N = 576, to
be held against 4e-3 of the code itself.

Weights are kept as `latticeq.storage.formats.int8` keeps them, sixteen rows interleaved and raised
by 128; activations in panels of eight tokens. A step multiplies four coordinates of `GROUPS` x 16
rows by those of eight tokens, all sums in registers; between parts of wide rows the result's memory
keeps them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange, threads
from latticeq.linear.int8_kernels import OFFSET, int8_scale, quantize_row
from latticeq.simd import (
    dot_bytes,
    dot_wide_bytes,
    dot_wide_bytes_thrice,
    filled,
    load,
    load_strided,
    magnitude,
    maximum,
    path,
    rint,
    spread,
    store,
    store_blocks,
    store_strided,
    to_float,
    to_int,
    total_lanes,
)
from latticeq.transforms.hadamard import hadamard_codes
from latticeq.transforms.hadamard_kernels import hadamard_row_in, row_memory
from latticeq.transforms.rotation import Rotation

__all__ = ["MAX_COLUMNS", "Int8Rows", "multiply_tiles", "quantize_rows", "round_tile"]

TOKENS = 8
"""Of a panel."""

MAX_COLUMNS = 2**16
"""Of a row: sums of products of raised bytes, up to 255 · 127 each, fit 32 bits."""

STEPS = 4
"""Of a task, at most."""

TASKS_A_THREAD = 4
"""At least, where there are as many steps."""

FOURS = 160
"""Words of four weights a sweep, at most: those of three groups take 30 KiB of the first cache."""

GROUPS = 3 if path() == "avx512vnni" else 1
"""Of sixteen rows in a step: with 32 vector registers 24 sums fit; with 16 not even 8."""


class Int8Rows:
    """Tokens rounded to int8, laid out for `multiply_tiles`.

    Parameters
    ----------
    x : (T, N) float32
        Contiguous, N a multiple of 4.
    rotation : Rotation, optional
        Of N coordinates, applied first; a plain Hadamard matrix in the same pass over x.

    Attributes
    ----------
    operands : tuple of arrays
        The panels, totals and scales of `quantize_rows`.
    padded : int
        T, rounded up to whole panels.
    """

    def __init__(self, x: NDArray[np.float32], rotation: Rotation | None = None) -> None:
        codes = None
        if rotation is not None and rotation.is_plain:
            codes = hadamard_codes(rotation.n)
        elif rotation is not None:
            x = rotation.apply(x)
        count = -(-len(x) // TOKENS)
        self._length = len(x)
        self.padded = TOKENS * count
        self.operands = (
            np.empty((count, x.shape[1] // 4, TOKENS), np.int32),
            np.empty((count, TOKENS), np.int32),
            np.empty((count, TOKENS), np.float32),
        )
        quantize_rows(x, codes, *self.operands)

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
def quantize_rows(x: Any, codes: Any, panels: Any, totals: Any, scales: Any) -> None:
    """Rotate tokens, round them to int8, each under its own scale, and lay them out as panels.

    Parameters
    ----------
    x : (T, N) float32
        N a multiple of 4.
    codes : (m, m / 4) uint8, or None
        ``hadamard_codes(N)``; None if `x` is rotated already.
    panels : (P, N / 4, 8) int32, output
        Four coordinates of eight tokens each, P = ceil(T / 8); zeros where there is no token.
    totals : (P, 8) int32, output
        -128 times the sum of a token's integers: what sums start from, as weights are raised.
    scales : (P, 8) float32, output
        See `latticeq.linear.int8_kernels.scale_of_row`; 0 where there is no token.
    """
    n = x.shape[1]
    for p in prange(len(panels)):
        values = np.zeros((TOKENS, n + -n % 64), np.int8)
        rotated = np.empty(n if codes is not None else 0, np.float32)
        memory = row_memory(x, codes) if codes is not None else rotated
        scales[p] = 0
        for t in range(min(TOKENS, len(x) - TOKENS * p)):
            row, rounded = x[TOKENS * p + t], values[t, :n]
            if codes is not None:
                hadamard_row_in(row, rotated, codes, memory)
                scales[p, t] = quantize_row(rotated, rounded)
            else:
                scales[p, t] = quantize_row(row, rounded)
        _lay_out(values.view(np.int32), panels[p], totals[p])


@kernel
def _lay_out(fours: Any, panel: Any, totals: Any) -> None:
    """Interleave eight tokens and sum each; rows of `fours` are filled with zeros to vectors."""
    padded = fours.shape[1]
    last, sums = np.empty(16 * TOKENS, np.int32), np.empty(16 * TOKENS, np.int32)
    eight = load_strided(fours, 0, padded)
    total, ones = filled(0, eight), filled(0x01010101, eight)
    for j in range(0, padded, 16):
        eight = load_strided(fours, j, padded)
        total = dot_bytes(total, ones, eight)
        if j + 16 <= len(panel):
            store_blocks(panel, TOKENS * j, eight)
        else:
            store_blocks(last, 0, eight)
    whole = len(panel) - len(panel) % 16
    for j in range(whole, len(panel)):
        for t in range(TOKENS):
            panel[j, t] = last[TOKENS * (j - whole) + t]
    store_strided(sums, 0, 16, total)
    for t in range(TOKENS):
        totals[t] = -OFFSET * total_lanes(load(sums, 16 * t))


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
        Contiguous. Columns from `first` on are written, C at least first + 16 n.
    """
    sweeps = -(-words.shape[1] // FOURS)
    share = min(STEPS, len(words) // (GROUPS * TASKS_A_THREAD * threads())) if sweeps > 1 else 1
    _multiply(words, row_scale, panels, totals, scales, first, sweeps, max(1, share), out)


@kernel(parallel=True)
def _multiply(
    words: Any, row_scale: Any, panels: Any, totals: Any, scales: Any, first: int,
    sweeps: int, share: int, out: Any,
) -> None:  # fmt: skip
    """Multiply by `share` steps of `GROUPS` row groups a task.

    A task sweeps over a part of the columns at a time, integer sums carried in the memory of `out`,
    so that a step's part serves all tokens from the first cache, and the tokens' part all steps
    from the second.
    """
    groups, fours = len(words), words.shape[1]
    sums = out.view(np.int32)
    steps = -(-groups // GROUPS)
    for task in prange(-(-steps // share)):
        begin = int(share * np.int64(task))  # a loop's index is unsigned
        for sweep in range(sweeps):
            part = fours * sweep // sweeps, fours * (sweep + 1) // sweeps
            for step in range(begin, min(begin + share, steps)):
                group = GROUPS * step
                for p in range(len(panels)):
                    row = (panels[p], totals[p], scales[p])
                    at = TOKENS * p * out.shape[1] + 16 * group + first
                    if GROUPS == 3 and group + 2 < groups:
                        _sweep_three(words, row_scale, row, part, group, sums, out, at)
                    else:
                        for g in range(min(GROUPS, groups - group)):
                            _sweep_one(
                                words, row_scale, row, part, group + g, sums, out, at + 16 * g
                            )


@kernel(inline=True)
def _sweep_one(
    words: Any, row_scale: Any, row: Any, part: Any, g: int, sums: Any, out: Any, at: int
) -> None:
    """Add a part of a panel's products by one group to the sums at `at`, its first token's."""
    mine, panel = words[g], row[0]
    total = _begun(row, part, mine, sums, at)
    for j in range(part[0], part[1]):
        total = dot_wide_bytes(total, load(mine, 16 * j), spread(panel[j], load(mine, 0)))
    _keep(total, row_scale, row, part[1] == len(mine), g, sums, out, at)


@kernel(inline=True)
def _sweep_three(
    words: Any, row_scale: Any, row: Any, part: Any, g: int, sums: Any, out: Any, at: int
) -> None:
    """Do what `_sweep_one` does for three groups in a row, loading activations once."""
    first, second, third, panel = words[g], words[g + 1], words[g + 2], row[0]
    a = _begun(row, part, first, sums, at)
    b = _begun(row, part, first, sums, at + 16)
    c = _begun(row, part, first, sums, at + 32)
    for j in range(part[0], part[1]):
        u, v, w = load(first, 16 * j), load(second, 16 * j), load(third, 16 * j)
        a, b, c = dot_wide_bytes_thrice(a, b, c, u, v, w, spread(panel[j], u))
    is_last = part[1] == len(first)
    _keep(a, row_scale, row, is_last, g, sums, out, at)
    _keep(b, row_scale, row, is_last, g + 1, sums, out, at + 16)
    _keep(c, row_scale, row, is_last, g + 2, sums, out, at + 32)


@kernel(inline=True)
def _begun(row: Any, part: Any, mine: Any, sums: Any, at: int) -> Any:
    """Return the sums of the parts before: at first, what raised weights add."""
    total = spread(row[1], load(mine, 0))
    if part[0] > 0:
        total = load_strided(sums, at, sums.shape[1])
    return total


@kernel(inline=True)
def _keep(
    total: Any, row_scale: Any, row: Any, is_last: bool, g: int, sums: Any, out: Any, at: int
) -> None:
    """Store sums for the next part, or after the last one the products."""
    if is_last:
        scale = load(row_scale, 16 * g)
        store_strided(out, at, out.shape[1], to_float(total) * scale * spread(row[2], scale))
    else:
        store_strided(sums, at, sums.shape[1], total)
