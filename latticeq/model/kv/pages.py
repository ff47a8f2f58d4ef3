"""Pages of a cache's memory, and where they lie.

Memory is a list of pages of so many positions of all layers, so that growth copies nothing, and
memory not yet needed is not even asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pages"]

Page = tuple[NDArray[Any], ...]


class Pages:
    """A list of pages, each a tuple of arrays whose first axis is the layer.

    Parameters
    ----------
    layers : int
    count : int
        The most pages.
    arrays : int
        Of a page.

    Attributes
    ----------
    plan : (L, count, arrays) int64
        The address of each layer of each array, for kernels.
    """

    def __init__(self, layers: int, count: int, arrays: int) -> None:
        self._pages: list[Page] = []
        self.plan = np.zeros((layers, count, arrays), np.int64)

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: int) -> Page:
        return self._pages[index]

    @property
    def nbytes(self) -> int:
        """Bytes of all pages."""
        return sum(array.nbytes for page in self._pages for array in page)

    def add(self, page: Page) -> None:
        """Append a page."""
        self._pages.append(page)
        self._locate(len(self._pages) - 1)

    def _locate(self, index: int) -> None:
        for column, array in enumerate(self._pages[index]):
            layers = np.arange(len(self.plan)) * array.strides[0]
            self.plan[:, index, column] = array.ctypes.data + layers

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, whose pages lie elsewhere."""
        self.__dict__.update(state)
        for index in range(len(self._pages)):
            self._locate(index)
