r"""The product of two coded operands: int8 dots of eight, one float32 multiply-add a block.

Rows x of A and y of B are integer points v under one scale a block, so that

    ⟨x, y⟩ = Σ_j a_j b_j ⟨v_xj, v_yj⟩

with the scales of codes, rows and units all in a_j and b_j. The dots are exact in int32 and in
float32: |⟨v_x, v_y⟩| ≤ 8·128² < 2²⁴. Sums go block by block in one order, so that results depend on
neither tiles nor threads; each block rounds the product a_j·⟨v_x, v_y⟩ once and the sum once.

Sixteen rows of B are the lanes, eight rows of A the coordinates of a step. The dot instructions
want one unsigned operand: B's bytes are raised by an offset, and each dot starts at −offset·Σv_x to
undo it. Points up to `NARROW` in magnitude (q ≤ 31 in doubled coordinates) stay within the seven
bits that every CPU multiplies exactly at once; others take `dot_wide_bytes`.

Source: Savkin et al., *NestQuant*, arXiv 2502.09720, section 3 (inner products of coded vectors).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.jit import kernel, prange
from latticeq.simd import (
    dot_bytes,
    dot_wide_bytes,
    filled,
    fused_multiply_add,
    load,
    load_strided,
    spread,
    store,
    store_strided,
    to_float,
)

__all__ = ["ROWS", "block_starts", "coded_products", "multiply_panels", "panels"]

NARROW = 63
LANES = 16
ROWS = 8
TILE_BLOCKS = 128
"""Of a sweep: sixteen rows of B then take 24 KiB with their scales, and stay in the first cache."""
TILE_PANELS = 32
"""Of eight rows of A in a task: half a MiB in a sweep, in the second cache."""
TILE_GROUPS = 4
"""Of sixteen rows of B in a task."""


def coded_products(
    points_a: NDArray[np.int8],
    block_scale_a: NDArray[np.float32],
    points_b: NDArray[np.int8],
    block_scale_b: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Multiply the rows of A by those of B, both integer points under a scale a block of eight.

    Parameters
    ----------
    points_a : ndarray of int8, shape (T, N)
        N a multiple of 8.
    block_scale_a : ndarray of float32, shape (T, N / 8)
        What one unit of a block's points is worth: scales of the row, the code and its points.
    points_b : ndarray of int8, shape (M, N)
    block_scale_b : ndarray of float32, shape (M, N / 8)

    Returns
    -------
    ndarray of float32, shape (T, M)
        A Bᵀ: with S = Σ_j |a_j b_j ⟨v_xj, v_yj⟩| an entry is within (N / 8 + 1) · 2⁻²⁴ · S, to
        first order, of the exact product. NaN scales give NaN in their row or column alone.

    Raises
    ------
    InputError
        If shapes or dtypes do not fit.

    Examples
    --------
    >>> v = np.random.default_rng(0).integers(-32, 33, (3, 16)).astype(np.int8)
    >>> ones = np.ones((3, 2), np.float32)
    >>> bool((coded_products(v, ones, v, ones) == v.astype(int) @ v.T.astype(int)).all())
    True
    """
    for name, points, scale in (
        ("a", points_a, block_scale_a),
        ("b", points_b, block_scale_b),
    ):
        _check(name, points, scale)
    if points_a.shape[1] != points_b.shape[1]:
        raise InputError(
            f"rows of {points_a.shape[1]} and of {points_b.shape[1]} entries have no product; they "
            "must be as long"
        )
    is_wide = bool(points_b.size) and (points_b.min() < -NARROW or points_b.max() > NARROW)
    offset = 128 if is_wide else NARROW + 1
    rows = panels(points_a, block_scale_a, offset)
    words, scales_b = _groups(points_b, block_scale_b, offset)
    out = np.empty((ROWS * len(rows[0]), LANES * len(words)), np.float32)
    multiply_panels(*rows, None, words, scales_b, bool(is_wide), 0, out)
    return np.ascontiguousarray(out[: len(points_a), : len(points_b)])


def _check(name: str, points: NDArray[Any], scale: NDArray[Any]) -> None:
    if points.ndim != 2 or points.shape[1] % 8 or points.shape[1] == 0 or points.dtype != np.int8:
        raise InputError(
            f"points_{name} are {points.dtype} of shape {points.shape}; they must be int8, rows of "
            "a multiple of 8"
        )
    wanted = (len(points), points.shape[1] // 8)
    if scale.shape != wanted or scale.dtype != np.float32:
        raise InputError(
            f"block_scale_{name} is {scale.dtype} of shape {scale.shape}; it must be float32 of "
            f"shape {wanted}"
        )


def _padded(array: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Return C-contiguous rows, with zero rows up to a multiple."""
    short = -len(array) % multiple
    if not short:
        return np.ascontiguousarray(array)
    return np.concatenate([array, np.zeros((short, *array.shape[1:]), array.dtype)])


def panels(
    points: NDArray[np.int8], scale: NDArray[np.float32], offset: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Lay A out for `multiply_panels`: eight rows a panel.

    Parameters
    ----------
    points : (T, N) int8
    scale : (T, N / 8) float32
    offset : int
        What the bytes of B are raised by.

    Returns
    -------
    words : (T / 8, N / 4, 8) int32
        Four coordinates of each row as bytes.
    starts : (T / 8, N / 8, 8) int32
        From `block_starts`.
    scales : (T / 8, N / 8, 8) float32
    """
    whole = _padded(points, ROWS)
    blocks = whole.shape[1] // 8
    words = np.ascontiguousarray(whole.view("<i4").reshape(-1, ROWS, 2 * blocks).swapaxes(1, 2))
    scales = _padded(scale, ROWS).reshape(-1, ROWS, blocks).swapaxes(1, 2)
    return words, block_starts(words, offset), np.ascontiguousarray(scales)


def block_starts(words: NDArray[np.int32], offset: int) -> NDArray[np.int32]:
    """Return where the dots of blocks start, as B is raised: -offset times the sum of A's block.

    Parameters
    ----------
    words : (P, N / 4, 8) int32
    offset : int

    Returns
    -------
    (P, N / 8, 8) int32
    """
    starts = np.empty((len(words), words.shape[1] // 2, ROWS), np.int32)
    _block_starts(words, offset, starts)
    return starts


@kernel(parallel=True)
def _block_starts(words: Any, offset: int, starts: Any) -> None:
    for panel in prange(len(words)):
        mine, sums = words[panel], np.empty(LANES, np.int32)
        ones = filled(0x01010101, load(mine, 0))
        for j in range(starts.shape[1]):  # both halves of eight rows are sixteen lanes
            halves = dot_bytes(filled(0, ones), ones, load(mine, LANES * j))
            store(sums, 0, halves * -offset)
            for row in range(ROWS):
                starts[panel, j, row] = sums[row] + sums[ROWS + row]


def _groups(
    points: NDArray[np.int8], scale: NDArray[np.float32], offset: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Lay B out for `multiply_panels`: sixteen rows a group, its bytes raised by the offset.

    Returns
    -------
    words : (M / 16, N / 8, 2, 16) int32
        Coordinates 0 to 3 and 4 to 7 of each row's block.
    scales : (M / 16, N / 8, 16) float32
    """
    raised = _padded(points, LANES).view(np.uint8) + np.uint8(offset)
    blocks = raised.shape[1] // 8
    words = raised.view("<i4").reshape(-1, LANES, blocks, 2).transpose(0, 2, 3, 1)
    scales = _padded(scale, LANES).reshape(-1, LANES, blocks).transpose(0, 2, 1)
    return np.ascontiguousarray(words), np.ascontiguousarray(scales)


@kernel(parallel=True)
def multiply_panels(
    words_a: Any, starts: Any, scales_a: Any, row_scale_a: Any, words: Any, scales_b: Any,
    is_wide: bool, column: int, out: Any,
) -> None:  # fmt: skip
    """Multiply all panels of A by some groups of B.

    A task owns the products of `TILE_PANELS` panels and `TILE_GROUPS` groups. It sweeps over
    `TILE_BLOCKS` blocks at a time, sums carried in `out`, so that a group's part of a sweep serves
    all panels from the first cache.

    Parameters
    ----------
    words_a : (P, N / 4, 8) int32
    starts : (P, N / 8, 8) int32
    scales_a : (P, N / 8, 8) float32, or None
        One a block, from `panels`; None counts as ones.
    row_scale_a : (P, 8) float32, or None
        One a row; None counts as ones.
    words : (groups, N / 8, 2, 16) int32
    scales_b : (groups, N / 8, 16) float32
        From `_groups`.
    is_wide : bool
        Whether raised bytes pass 127.
    column : int
        Of `out`, where the first group's products go.
    out : (8 P, C) float32, output
        C at least column + 16 * groups.
    """
    blocks, columns = words.shape[1], out.shape[1]
    across = -(-len(words) // TILE_GROUPS)
    for task in prange(-(-len(words_a) // TILE_PANELS) * across):
        panel = task // across * TILE_PANELS
        group = task % across * TILE_GROUPS
        last_panel = min(panel + TILE_PANELS, len(words_a))
        for first in range(0, blocks, TILE_BLOCKS):
            last = min(first + TILE_BLOCKS, blocks)
            for g in range(group, min(group + TILE_GROUPS, len(words))):
                for p in range(panel, last_panel):
                    at = p * ROWS * columns + g * LANES + column
                    a, b = (words_a[p], starts[p]), (words[g], scales_b[g])
                    _sweep(a, b, (first, last), p, scales_a, is_wide, out, at)
                    if row_scale_a is not None and last == blocks:
                        _scale_strips(row_scale_a[p], out, at)


@kernel(inline=True)
def _sweep(
    a: Any, b: Any, blocks: Any, panel: int, scales_a: Any, is_wide: bool, out: Any, at: int
) -> None:
    """Add some blocks' products of a panel and a group to eight strips of `out`, from `at`."""
    words_a, starts = a
    words, scales_b = b
    first, last = blocks
    columns = out.shape[1]
    total = to_float(spread(starts[0], load(words, 0)))
    total = total - total
    if first > 0:
        total = load_strided(out, at, columns)
    for j in range(first, last):
        low, high = load(words, 32 * j), load(words, 32 * j + 16)
        dot = spread(starts[j], low)
        if is_wide:
            dot = dot_wide_bytes(dot, low, spread(words_a[2 * j], low))
            dot = dot_wide_bytes(dot, high, spread(words_a[2 * j + 1], low))
        else:
            dot = dot_bytes(dot, low, spread(words_a[2 * j], low))
            dot = dot_bytes(dot, high, spread(words_a[2 * j + 1], low))
        scale = load(scales_b, 16 * j)
        value = to_float(dot)
        if scales_a is not None:
            value = value * spread(scales_a[panel, j], scale)
        total = fused_multiply_add(value, scale, total)
    store_strided(out, at, columns, total)


@kernel(inline=True)
def _scale_strips(row_scale: Any, out: Any, at: int) -> None:
    columns = out.shape[1]
    total = load_strided(out, at, columns)
    store_strided(out, at, columns, total * spread(row_scale, load(out, at)))
