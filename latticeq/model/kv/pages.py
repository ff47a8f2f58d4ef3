"""Pages of a cache's memory, and where they lie.

Memory is a list of pages of so many positions of all layers, so that growth copies nothing. Pages
are cut from larger slabs: a page by itself is often too small to lie in the operating system's huge
pages, without which reading a long cache takes two to three times as long. What is not yet written
of a slab takes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Pages"]

_SLAB = 8  # pages of a slab
_LINE = 64  # bytes to which every array is aligned


class Pages:
    """A list of pages, each a tuple of arrays of zeros whose first axis is the layer.

    Parameters
    ----------
    layers : int
    count : int
        The most pages.
    parts : sequence of tuple
        The shape of one layer of each array of a page, and its dtype.

    Attributes
    ----------
    plan : (L, count, len(parts)) int64
        The address of each layer of each array, for kernels; zero in pages that are not there yet.
    """

    def __init__(
        self, layers: int, count: int, parts: Sequence[tuple[tuple[int, ...], DTypeLike]]
    ) -> None:
        self._parts = [((layers, *shape), np.dtype(dtype)) for shape, dtype in parts]
        self._pages: list[tuple[NDArray[Any], ...]] = []
        self._slab = np.empty(0, np.uint8)  # what is left of it
        self.plan = np.zeros((layers, count, len(parts)), np.int64)

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
        return self._pages[index]

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(array.nbytes for page in self._pages for array in page)

    def grow(self) -> None:
        """Append a page."""
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in self._parts]
        starts = np.cumsum([0, *(-(-size // _LINE) * _LINE for size in sizes)])
        if len(self._slab) < starts[-1]:
            pages = min(_SLAB, self.plan.shape[1] - len(self._pages))
            room = np.zeros(pages * int(starts[-1]) + _LINE, np.uint8)
            first = -room.ctypes.data % _LINE
            self._slab = room[first : first + pages * int(starts[-1])]
        page = tuple(
            self._slab[start : start + size].view(dtype).reshape(shape)
            for (shape, dtype), start, size in zip(self._parts, starts[:-1], sizes, strict=True)
        )
        self._slab = self._slab[starts[-1] :]
        # A page counts when kernels can find it: a Ctrl-C on the way leaves none half made.
        self._locate(len(self._pages), page)
        self._pages.append(page)

    def _locate(self, index: int, page: tuple[NDArray[Any], ...]) -> None:
        for column, array in enumerate(page):
            layers = np.arange(len(self.plan)) * array.strides[0]
            self.plan[:, index, column] = array.ctypes.data + layers

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what no page uses."""
        return self.__dict__ | {"_slab": np.empty(0, np.uint8)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, whose pages lie elsewhere."""
        self.__dict__.update(state)
        for index, page in enumerate(self._pages):
            self._locate(index, page)
