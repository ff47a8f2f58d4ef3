"""Unions of nested codes at k scales, for every cell.

Savkin et al., *NestQuant*, arXiv 2502.09720, section 3. Notation: x block, beta scale, y = x /
beta, t point of the fine lattice, q nesting ratio; lambda is a vector of the coarse lattice.

Not in the paper: a block whose closest point is overloaded gets a codeword near it
(`closest_inside`) instead of being given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference import cubic, hamming, voronoi
from reference.e8 import closest_e8, norm

Array = NDArray[np.floating]
Digits = NDArray[np.uint8]

STEP = 0.125
PULL = 0.5
MOVES = 4
FEW = 4
PATIENCE = 64
ENDLESS = 1 << 30


class Cell(NamedTuple):
    """How one cell codes blocks y."""

    nearest: Callable[[Array, int, int], tuple[Array, NDArray[np.bool_]]]
    encode: Callable[[Array, int], Digits]
    decode: Callable[[Digits, int], NDArray[np.float64]]


def closest_inside(
    y: Array,
    q: int,
    moves: int,
    closest: Callable[[Array], Array],
    retreat: Callable[[Array, Array, int], Array],
) -> tuple[Array, NDArray[np.bool_]]:
    """Return codewords near y, shape (n, 8), and where there are overloaded points instead.

    While the closest point t of y is overloaded, y takes the step back that `retreat` names, up to
    `moves` times. After PATIENCE moves y is halved as well, which ends it.
    """
    y, t = y.copy(), closest(y)
    left, made = np.flatnonzero(retreat(y, t, q).any(axis=-1)), 0
    while left.size and made < moves:
        y[left] -= retreat(y[left], t[left], q)
        made += 1
        y[left] *= 0.5 if made > PATIENCE else 1
        t[left] = closest(y[left])
        left = left[retreat(y[left], t[left], q).any(axis=-1)]
    is_overloaded = np.zeros(len(y), np.bool_)
    is_overloaded[left] = True
    return t, is_overloaded


def back_from(y: Array, away: Array, q: int) -> Array:
    """Return the step against lambda = `away`.

    That is PULL times what y is beyond the bisector between 0 and q lambda, but at least STEP.
    """
    pull, step, half = (y.dtype.type(number) for number in (PULL, STEP, 0.5 * q))
    dot = y[:, 0] * away[:, 0]
    for i in range(1, 8):
        dot = dot + y[:, i] * away[:, i]
    beyond = dot / np.maximum(norm(away), 1) - half
    return np.asarray(np.maximum(beyond * pull, step)[:, None] * away)


def retreat_voronoi(y: Array, t: Array, q: int) -> Array:
    """Return the step back from the lambda of t."""
    return back_from(y, voronoi.overload(t, q), q)


def retreat_d8(y: Array, t: Array, q: int) -> Array:
    """Return the step back from the lambda of t."""
    return back_from(y, hamming.overload(t, q), q)


def retreat_nestquantm(y: Array, t: Array, q: int) -> Array:
    """Return the step back into the box that holds the cell, or inside it from the lambda of t."""
    half, face = voronoi.box_faces(t, q)
    beyond = np.abs(y) - half
    to_box = np.maximum(beyond * y.dtype.type(PULL), y.dtype.type(STEP)) * face
    inner = back_from(y, voronoi.fixed_overload(t, q), q)
    return np.where(face.any(axis=-1, keepdims=True), to_box, inner)


CELLS = {
    "voronoi": Cell(
        lambda y, q, moves: closest_inside(y, q, moves, closest_e8, retreat_voronoi),
        voronoi.encode,
        voronoi.decode,
    ),
    "nestquantm": Cell(
        lambda y, q, moves: closest_inside(y, q, moves, closest_e8, retreat_nestquantm),
        voronoi.encode,
        voronoi.fixed_decode,
    ),
    "cubic": Cell(cubic.nearest, cubic.encode, cubic.decode),
    "d8": Cell(
        lambda y, q, moves: closest_inside(y, q, moves, hamming.closest_hamming, retreat_d8),
        hamming.encode,
        hamming.decode,
    ),
}


def encode_union(
    x: Array, q: int, betas: Sequence[float], selection: str = "opt", cell: str = "voronoi"
) -> tuple[Digits, Digits, Array]:
    """Code blocks, float32 (n, 8): digits, scale indices, decoded values.

    Opt-beta keeps the scale with the least decoded squared error, passing over a scale that is not
    the last if no codeword is found there in MOVES moves (any number of them if q <= FEW).
    First-beta keeps the smallest scale that is not overloaded, and if there is none, the last. All
    arithmetic is in the dtype of x, 1 / beta included.
    """
    code = CELLS[cell]
    scales = np.asarray(betas, x.dtype)
    before_last = 0 if selection == "first" else MOVES if q > FEW else ENDLESS
    allowed = [before_last] * (len(betas) - 1) + [ENDLESS]
    found, costs = [], []
    for beta, moves in zip(scales, allowed, strict=True):
        t, is_overloaded = code.nearest(x * (1 / beta), q, moves)
        fits = np.full(len(x), 0.5 if moves == ENDLESS else 0.0)
        cost = norm(x - t * beta) if selection == "opt" else fits
        costs.append(np.where(is_overloaded, np.inf, cost))
        found.append(t)
    index = np.argmin(costs, axis=0)  # the first of equals
    chosen = np.stack(found)[index, np.arange(len(x))]
    return code.encode(chosen, q), index.astype(np.uint8), chosen * scales[index][:, None]


def decode_union(
    digits: Digits, index: Digits, q: int, betas: Sequence[float], cell: str = "voronoi"
) -> Array:
    """Return the values that digits and scale indices stand for."""
    return np.asarray(CELLS[cell].decode(digits, q) * np.asarray(betas)[index][..., None])
