"""Every word means in LLVM what it means in NumPy, on random lanes and at the edges."""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from latticeq import simd
from latticeq.jit import IS_JIT, kernel
from latticeq.simd import load, load_blocks, store, store_blocks, to_int

pytestmark = pytest.mark.skipif(not IS_JIT, reason="without the JIT there is only one meaning")

FLOATS = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-30, -1e30, 1e30, 8388607.5, -1.0, 1.0, 3.25]
INTEGERS = [0, 1, -1, 2**31 - 1, -(2**31), 255, 256, -256, 0x7F7F7F7F, -0x7F7F7F80, 0x01010101]


def lanes(rng: np.random.Generator, dtype: type, coords: int) -> np.ndarray:
    """Return (coords, 16) values, some random and some at the edges."""
    if dtype is np.int32:
        values = rng.integers(-(2**31), 2**31, (coords, 16))
        edges = rng.choice(INTEGERS, (coords, 16))
    else:
        values = rng.normal(size=(coords, 16)) * 100
        edges = rng.choice(FLOATS, (coords, 16))
    return np.where(rng.random((coords, 16)) < 0.5, values, edges).astype(dtype)


def in_memory(x: np.ndarray) -> np.ndarray:
    """Return the flat array from which a kernel loads these lanes."""
    return np.ascontiguousarray(x[0] if len(x) == 1 else x.T.reshape(-1))


def compiled(expression: Callable[..., Any], arity: int, coords: int, result: int) -> Any:
    """Compile `expression` of one to three values into a kernel from arrays to an array."""
    word = kernel(inline=True)(expression)
    take = load if coords == 1 else load_blocks
    put = store if result == 1 else store_blocks

    def one(out: Any, a: Any) -> None:
        put(out, 0, word(take(a, 0)))

    def two(out: Any, a: Any, b: Any) -> None:
        put(out, 0, word(take(a, 0), take(b, 0)))

    def three(out: Any, a: Any, b: Any, c: Any) -> None:
        put(out, 0, word(take(a, 0), take(b, 0), take(c, 0)))

    import numba

    return numba.njit([one, two, three][arity - 1])


def run(
    expression: Callable[..., Any], inputs: list[np.ndarray], result_coords: int, dtype: type
) -> np.ndarray:
    """Return what the compiled expression stores, as (coords, 16)."""
    out = np.zeros(16 * result_coords, dtype)
    coords = len(inputs[0])
    compiled(expression, len(inputs), coords, result_coords)(out, *map(in_memory, inputs))
    return out.reshape(1, 16) if result_coords == 1 else out.reshape(16, 8).T


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def plain(word: Any) -> Any:
    return word.plain


total, parity_bits, largest = simd.total, simd.parity_bits, simd.largest
smallest, maximum, minimum = simd.smallest, simd.maximum, simd.minimum
argmax, onehot, select, rint = simd.argmax, simd.onehot, simd.select, simd.rint
magnitude, to_float, filled, top_two = simd.magnitude, simd.to_float, simd.filled, simd.top_two
places, lane_index, any_lane, block = simd.places, simd.lane_index, simd.any_lane, simd.block
coordinate = simd.coordinate
