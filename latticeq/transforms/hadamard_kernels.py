"""The kernels of the Hadamard transform: one row, sixteen neighbouring columns a vector.

A row of n = m 2^k entries is an m x 2^k matrix in C order. Both factors are applied to vectors of
sixteen columns; only the four lowest stages of Sylvester's factor cross the lanes of a vector.

What a float becomes is fixed by the order of additions, which nothing here may change: sums of four
from the tables first, one by one until a multiple of four groups is left, then four groups at a
time; then stages from the highest bit of the column to the lowest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.jit import kernel
from latticeq.simd import (
    butterfly,
    butterfly_lanes,
    filled,
    load,
    load_strided,
    peek_at,
    store,
    store_strided,
)

__all__ = ["hadamard_row", "hadamard_row_in", "row_memory"]

LOT = 128
"""Entries of eight vectors: seven stages are done on them in registers."""

QUADS = 3
"""Times four groups whose tables of sums are held at once, and up to three more: 15 KiB."""


@kernel
def hadamard_row(x: Any, out: Any, codes: Any) -> None:
    """Transform one row: the kernel for other kernels, and for one token at a time.

    Nothing is checked here; `latticeq.transforms.hadamard.hadamard` is the safe way in.

    Parameters
    ----------
    x : ndarray of float32 or float64, shape (n,)
        Contiguous; left as it is.
    out : ndarray of x's type, shape (n,)
        Contiguous. It must not overlap x, unless n is a power of two and it is x itself.
    codes : ndarray of uint8
        ``hadamard_codes(n)``, or ``hadamard_codes(n, transpose=True)`` for the inverse.
    """
    hadamard_row_in(x, out, codes, row_memory(x, codes))


@kernel
def row_memory(x: Any, codes: Any) -> Any:
    """Return the memory that `hadamard_row_in` works in, for all rows of the type of `x`."""
    if len(codes) == 1:
        return np.empty(0, x.dtype)
    memory = np.empty(256 * (4 * QUADS + 3) + 16, x.dtype)
    # A vector that lies across two cache lines costs twice as much to load and to store.
    return memory[-(memory.ctypes.data // memory.itemsize) % 16 :]


@kernel
def hadamard_row_in(x: Any, out: Any, codes: Any, memory: Any) -> None:
    """Do what `hadamard_row` does in the memory from `row_memory`: for rows one by one."""
    m = len(codes)
    width = x.size // m
    scale = x.dtype.type(1.0 / np.sqrt(x.size))
    columns = max(width, 16 if m > 1 else LOT)
    if columns == width:
        _transform(x, out, codes, scale, width, memory)
        return
    # Columns of zeros fill vectors: a stage that would mix them with others is left out.
    wide, result = np.zeros(m * columns, x.dtype), np.empty(m * columns, x.dtype)
    for r in range(m):
        for j in range(width):
            wide[r * columns + j] = x[r * width + j]
    _transform(wide, result, codes, scale, width, memory)
    for r in range(m):
        for j in range(width):
            out[r * width + j] = result[r * columns + j]


@kernel(inline=True)
def _transform(x: Any, out: Any, codes: Any, scale: Any, width: int, memory: Any) -> None:
    if len(codes) > 1:
        _apply_small(x, out, codes, scale, memory)
    else:
        for i in range(0, x.size, 16):
            store(out, i, load(x, i) * scale)
    _apply_sylvester(out, width)


@kernel
def _apply_small(x: Any, out: Any, codes: Any, scale: Any, tables: Any) -> None:
    """Set out = scale P x for rows of whole vectors and P given by its codes; not in place."""
    m, groups = codes.shape
    columns = x.size // m
    for column in range(0, columns, 16):
        alone = groups % 4
        start = 0
        while start < groups:
            quads = min(QUADS, (groups - start) // 4)
            stop = start + alone + 4 * quads
            for g in range(start, stop):
                _tabulate(x, 4 * g * columns + column, columns, scale, tables, 256 * (g - start))
            at, signs = column, codes.ctypes.data + start
            for _ in range(m):
                total = load(out, at) if start > 0 else filled(0.0, load(x, at))
                # Loops of so few rounds would take longer than what is in them.
                if alone > 0:
                    total = total + load(tables, 16 * peek_at(signs, 1))
                if alone > 1:
                    total = total + load(tables, 256 + 16 * peek_at(signs + 1, 1))
                if alone > 2:
                    total = total + load(tables, 512 + 16 * peek_at(signs + 2, 1))
                at_four, first = signs + alone, 256 * alone
                if quads > 0:
                    total = total + _four_sums(tables, first, peek_at(at_four, 4))
                if quads > 1:
                    total = total + _four_sums(tables, first + 1024, peek_at(at_four + 4, 4))
                if quads > 2:
                    total = total + _four_sums(tables, first + 2048, peek_at(at_four + 8, 4))
                store(out, at, total)
                at += columns
                signs += groups
            start, alone = stop, 0


@kernel(inline=True)
def _four_sums(tables: Any, first: int, codes: int) -> Any:
    """Add an entry each of four tables, named by four bytes."""
    a = load(tables, first + ((codes << 4) & 240))
    b = load(tables, first + 256 + ((codes >> 4) & 240))
    c = load(tables, first + 512 + ((codes >> 12) & 240))
    d = load(tables, first + 768 + ((codes >> 20) & 240))
    return (a + b) + (c + d)


@kernel(inline=True)
def _tabulate(x: Any, at: int, columns: int, scale: Any, tables: Any, first: int) -> None:
    """Store the sixteen sums scale (+-a +-b +-c +-d); a .. d are vectors of x, a row apart."""
    a, b = load(x, at), load(x, at + columns)
    c, d = load(x, at + 2 * columns), load(x, at + 3 * columns)
    ab, a_b = (a + b) * scale, (a - b) * scale
    cd, c_d = (c + d) * scale, (c - d) * scale
    _store_four(tables, first, ab, cd, c_d)
    _store_four(tables, first + 64, a_b, cd, c_d)
    _store_four(tables, first + 128, a_b * -1, cd, c_d)
    _store_four(tables, first + 192, ab * -1, cd, c_d)


@kernel(inline=True)
def _store_four(tables: Any, at: int, ab: Any, cd: Any, c_d: Any) -> None:
    store(tables, at, ab + cd)
    store(tables, at + 16, ab + c_d)
    store(tables, at + 32, ab - c_d)
    store(tables, at + 48, ab - cd)


@kernel
def _apply_sylvester(y: Any, width: int) -> None:
    """Transform each segment of y in place, highest stage first.

    Segments of up to sixteen entries have a vector each; longer ones follow each other.
    """
    high = 0
    while LOT << high < width:
        high += 1
    segment = width
    for _ in range(high % 3):
        half = segment // 2
        for start in range(0, y.size, segment):
            for j in range(start, start + half, LOT):
                a, b = load_strided(y, j, 16), load_strided(y, j + half, 16)
                store_strided(y, j, 16, a + b)
                store_strided(y, j + half, 16, a - b)
        segment = half
    for _ in range(high // 3):
        eighth = segment // 8
        for start in range(0, y.size, segment):
            for j in range(start, start + eighth, 16):
                eight = load_strided(y, j, eighth)
                eight = butterfly(butterfly(butterfly(eight, 4), 2), 1)
                store_strided(y, j, eighth, eight)
        segment = eighth
    whole = y.size - y.size % LOT
    for i in range(0, whole, LOT):
        eight = load_strided(y, i, 16)
        if width > 64:
            eight = butterfly(eight, 4)
        if width > 32:
            eight = butterfly(eight, 2)
        if width > 16:
            eight = butterfly(eight, 1)
        store_strided(y, i, 16, _mix_lanes(eight, width))
    for i in range(whole, y.size, 16):
        store(y, i, _mix_lanes(load(y, i), width))


@kernel(inline=True)
def _mix_lanes(x: Any, width: int) -> Any:
    """Do the stages inside vectors of segments of `width` entries."""
    if width > 8:
        x = butterfly_lanes(x, 8)
    if width > 4:
        x = butterfly_lanes(x, 4)
    if width > 2:
        x = butterfly_lanes(x, 2)
    if width > 1:
        x = butterfly_lanes(x, 1)
    return x
