"""What tests of lattices and codes draw: generic blocks, blocks full of ties, lattice points."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from reference.e8 import GENERATOR


def blocks(n: int | st.SearchStrategy[int] = 8, largest: float = 64.0) -> st.SearchStrategy[Any]:
    """Draw float32 arrays (rows, n), half of them of quarters, where ties are everywhere."""
    shapes = st.tuples(st.integers(1, 40), st.just(n) if isinstance(n, int) else n)
    generic = st.floats(-largest, largest, width=32, allow_subnormal=False)
    quarters = st.integers(int(-4 * largest), int(4 * largest)).map(lambda i: i / 4)
    return shapes.flatmap(
        lambda shape: st.one_of(
            arrays(np.float32, shape, elements=generic),
            arrays(np.float32, shape, elements=quarters),
        )
    )


def lattice_points(rng: np.random.Generator, count: int, largest: int = 9) -> NDArray[np.float64]:
    """Return random points of E8 whose coefficients are at most ``largest``."""
    coefficients = rng.integers(-largest, largest + 1, (count, 8)).astype(np.float64)
    return np.asarray(coefficients @ GENERATOR.T)
