"""Causal grouped-query attention of many tokens over a key-value cache.

    out[t, h] = sum_{s <= start + t} p[s] values[g, s]
    p[s]      = softmax_s(q[t, h] . keys[g, :, s] / sqrt(K))

with g the kv head that query head h shares with H / G - 1 others.

A layer of a cache is a list of pages of P positions each, P a multiple of `TILE`. A page holds keys
in tiles of 64 positions, transposed, (G, P / 64, K, 64), and values as (G, P, K); a plan, (pages,
2) int64, holds the addresses of both in every page. So a cache grows without a copy, one token's
products with keys and with values run along contiguous memory (`latticeq.model.attention_one`), and
many queries find 64 positions of keys, and of values, in a few KiB.

Sixteen queries are the lanes here. The rows of a kv head are its query heads of token 0, then those
of token 1, and so on, so that few tokens fill lanes as well. A task takes up to `ROWS` rows through
all tiles that they see; what is left of them between tiles is the largest score, the sum of
exponentials and the mix of values so far (Milakov and Gimelshein, *Online normalizer calculation
for softmax*, arXiv 1805.02867; Dao et al., *FlashAttention*, arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.model.kernels import exp_lanes
from latticeq.simd import (
    coordinate,
    filled,
    filled_rows,
    fused_multiply_add,
    load,
    load_numbers_at,
    load_rows,
    maximum,
    select,
    spread_at,
    store,
    store_strided,
)

__all__ = ["TILE", "ReadHead", "attend_heads", "attend_many", "tiled"]

ReadHead = Callable[[int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Returns the keys, (S' / 64, K, 64), and the values, (S', K), of one kv head, both contiguous; S'
is a multiple of 64, and at least what is seen."""

TILE = 64
"""Positions of a tile."""

PAIR = 32
"""Rows that go through a tile together: two vectors."""

ROWS = 4 * PAIR
"""Rows of a task: those for which a tile in float16 is widened once."""

_LOWEST = np.float32(-3e38)


def attend_heads(
    q: NDArray[np.float32], kv_heads: int, read: ReadHead, start: int
) -> NDArray[np.float32]:
    """Let each query attend to every position up to its own, one kv head at a time.

    Parameters
    ----------
    q : (T, H, K) float32
        Rotated queries of positions ``start`` to ``start + T - 1``.
    kv_heads : int
        G.
    read : callable
        Called for each kv head in turn; what it returned may be overwritten by the next call.
    start : int
        Position of the first query.

    Returns
    -------
    (T, H * K) float32
    """
    q = np.ascontiguousarray(q)
    out = np.empty(q.shape, np.float32)
    for g in range(kv_heads):
        keys, values = read(g)
        plan = np.array([[keys.ctypes.data, values.ctypes.data]], np.int64)
        attend_many(q, plan, keys.reshape(-1), len(values), (g, 1, kv_heads), start, out)
    return out.reshape(len(q), -1)


def tiled(
    keys: NDArray[np.float32], values: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the keys and values of one head, (S, K) each, as `ReadHead` does."""
    count, width = keys.shape
    padded = np.zeros((2, -(-count // TILE) * TILE, width), np.float32)
    padded[0, :count], padded[1, :count] = keys, values
    return np.ascontiguousarray(padded[0].reshape(-1, TILE, width).transpose(0, 2, 1)), padded[1]


@kernel(parallel=True)
def attend_many(q, plan, like, page, groups, start, out):  # type: ignore[no-untyped-def]
    """Let each query attend to every position up to its own.

    Parameters
    ----------
    q : (T, H, K) float32
        Rotated queries of positions ``start`` to ``start + T - 1``.
    plan : (pages, 2) int64
        Addresses of the layer's keys and values in each page.
    like : (n,) float32 or uint16
        Its dtype is that of the cache, uint16 for float16.
    page : int
        Positions of a page.
    groups : tuple of int
        The first kv head to do and how many, which are those that pages hold; and G.
    start : int
        Position of the first query.
    out : (T, H, K) float32, output
        Query heads of the kv heads that are done.
    """
    first, count, kv_heads = groups
    shared = q.shape[1] // kv_heads
    blocks = -(-len(q) * shared // ROWS)
    for task in prange(count * blocks):
        # Later queries see more: a long block next to a short one makes shares of a row even.
        step = task % blocks
        block = step // 2 if step % 2 == 0 else blocks - 1 - step // 2
        where = (task // blocks, (first + task // blocks) * shared, shared, block * ROWS)
        _attend_block(q, plan, like, page, where, start, out)


@kernel
def _attend_block(q, plan, like, page, where, start, out):  # type: ignore[no-untyped-def]
    """Do the rows of one task: `where` is kv head, its first query head, H / G, and first row."""
    g, head, shared, first = where
    width = q.shape[2]
    n_rows = min(ROWS, len(q) * shared - first)
    pairs = -(-n_rows // PAIR)
    padded = -(-width // 8) * 8
    size = width * TILE
    queries = _aligned(pairs * padded * PAIR).reshape(pairs, padded, PAIR)
    mixed = _aligned(pairs * padded * PAIR).reshape(pairs, padded, PAIR)
    state = _aligned(2 * pairs * PAIR).reshape(2, pairs, PAIR)  # largest, sum of exponentials
    state[0] = _LOWEST
    scores = _aligned(TILE * PAIR)
    own_keys, own_values = _aligned(size + 16), _aligned(size + 16)
    positions = np.empty((pairs, PAIR), np.int32)
    _gather(q, head, shared, first, n_rows, queries, positions)
    is_wide = like.itemsize == 4
    for tile in range((start + (first + n_rows - 1) // shared) // TILE + 1):
        spot = g * (page // TILE) + tile * TILE % page // TILE
        keys = plan[tile * TILE // page, 0] + spot * size * like.itemsize
        values = plan[tile * TILE // page, 1] + spot * size * like.itemsize
        if not is_wide:
            _widen(keys, like, own_keys)
            keys = np.int64(own_keys.ctypes.data)
        if not is_wide or width % 8:  # eight coordinates of the last value may lie beyond it
            _widen(values, like, own_values)
            values = np.int64(own_values.ctypes.data)
        for pair in range(pairs):
            last_row = min(first + n_rows, first + PAIR * (pair + 1)) - 1
            limit = min(TILE, start + last_row // shared + 1 - tile * TILE)
            if limit > 0:
                sees_all = start + (first + PAIR * pair) // shared >= tile * TILE + TILE - 1
                at = (pair, limit, tile * TILE - start, sees_all)
                _add_tile(queries, positions, keys, values, width, at, scores, state, mixed)
    _scatter(mixed, state[1], head, shared, first, n_rows, out)


@kernel
def _aligned(count):  # type: ignore[no-untyped-def]
    """Return float32 zeros at a multiple of 64 bytes: no vector then lies in two cache lines."""
    room = np.zeros(count + 16, np.float32)
    skipped = -np.int64(room.ctypes.data) % 64 // 4
    return room[skipped : skipped + count]


@kernel
def _widen(address, like, out):  # type: ignore[no-untyped-def]
    """Copy a tile to float32; the sixteen numbers at the end of `out` are left."""
    for at in range(0, out.size - 16, 16):
        store(out, at, load_numbers_at(address + at * like.itemsize, like))


@kernel
def _gather(q, head, shared, first, count, queries, positions):  # type: ignore[no-untyped-def]
    """Transpose rows of q, over the root of K, to lanes, (pairs, K', 32), and say where they are.

    Positions, (pairs, 32) int32, count from that of the first query.
    """
    width = q.shape[2]
    scale = np.float32(1 / np.sqrt(width))
    for place in range(positions.size):
        pair, lane = place // PAIR, place % PAIR
        t = (first + place) // shared
        positions[pair, lane] = t
        if place < count:
            row = q[t, head + first + place - t * shared]
            for i in range(width):
                queries[pair, i, lane] = row[i] * scale


@kernel
def _scatter(mixed, sums, head, shared, first, count, out):  # type: ignore[no-untyped-def]
    """Divide rows by their sums, (pairs, 32), and transpose them back: undo `_gather`."""
    width = out.shape[2]
    for place in range(count):
        pair, lane = place // PAIR, place % PAIR
        t = (first + place) // shared
        row = out[t, head + first + place - t * shared]
        scale = np.float32(1) / sums[pair, lane]
        for i in range(width):
            row[i] = mixed[pair, i, lane] * scale


@kernel
def _add_tile(queries, positions, keys, values, width, at, scores, state, mixed):  # type: ignore[no-untyped-def]
    """Add the first positions of a tile to what a pair of vectors of rows has got so far.

    Parameters
    ----------
    queries : (pairs, K', 32) float32
    positions : (pairs, 32) int32
        Of each row, from that of the first query.
    keys, values : int
        Addresses of the tile in float32: (K, 64) and (64, K).
    width : int
        K; K' is the next multiple of eight.
    at : tuple
        The pair, how many positions of the tile, the tile's first position, counted
        as those are, and whether every row sees all of the tile.
    scores : (64 * 32,) float32
        Scratch.
    state : (2, pairs, 32) float32
    mixed : (pairs, K', 32) float32
    """
    pair, limit, begin, sees_all = at
    _score(queries, pair, keys, width, limit, scores)
    if not sees_all:
        _hide(positions, pair, begin, limit, _LOWEST, scores)
    place, two = PAIR * pair, filled_rows(np.float32(0), 2)
    before = load_rows(state, place, 16, two)
    most = before
    for s in range(0, PAIR * limit, PAIR):
        most = maximum(most, load_rows(scores, s, 16, two))
    store_strided(state, place, 16, most)
    for s in range(0, PAIR * limit, PAIR):
        store_strided(scores, s, 16, exp_lanes(load_rows(scores, s, 16, two) - most))
    if not sees_all:
        _hide(positions, pair, begin, limit, np.float32(0), scores)
    share = exp_lanes(before - most)
    place += state.size // 2
    sums = load_rows(state, place, 16, two) * share
    for s in range(0, PAIR * limit, PAIR):
        sums = sums + load_rows(scores, s, 16, two)
    store_strided(state, place, 16, sums)
    share0, share1 = coordinate(share, 0), coordinate(share, 1)
    zero = filled_rows(np.float32(0), 8)
    padded = mixed.shape[1]
    for i in range(0, padded, 8):
        place = PAIR * (pair * padded + i)
        t0 = load_rows(mixed, place, PAIR, zero) * share0
        t1 = load_rows(mixed, place + 16, PAIR, zero) * share1
        address = values + 4 * i
        for s in range(0, PAIR * limit, PAIR):
            x = spread_at(address, 4, zero)
            t0 = fused_multiply_add(x, load(scores, s), t0)
            t1 = fused_multiply_add(x, load(scores, s + 16), t1)
            address += 4 * width
        store_strided(mixed, place, PAIR, t0)
        store_strided(mixed, place + 16, PAIR, t1)


@kernel
def _score(queries, pair, keys, width, limit, scores):  # type: ignore[no-untyped-def]
    """Set scores, (64, 32), to the products of a pair's rows with keys, eight at a time."""
    zero = filled_rows(np.float32(0), 8)
    for s in range(0, limit, 8):
        t0, t1 = zero, zero
        address, place = keys + 4 * s, PAIR * pair * queries.shape[1]
        for _ in range(width):
            x = spread_at(address, 4, zero)
            t0 = fused_multiply_add(x, load(queries, place), t0)
            t1 = fused_multiply_add(x, load(queries, place + 16), t1)
            address += 4 * TILE
            place += PAIR
        store_strided(scores, PAIR * s, PAIR, t0)
        store_strided(scores, PAIR * s + 16, PAIR, t1)


@kernel
def _hide(positions, pair, begin, limit, value, scores):  # type: ignore[no-untyped-def]
    """Set scores to a value where a row does not see a position."""
    for half in range(0, PAIR, 16):
        seen = load(positions, PAIR * pair + half) - begin
        for s in range(limit):
            score = load(scores, PAIR * s + half)
            store(scores, PAIR * s + half, select(filled(s, seen) <= seen, score, value))
