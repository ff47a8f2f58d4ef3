"""A tensor held as four-bit codes of a scalar grid under a scale a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.grids import E2M1, INT4, NF4, UINT4, Grid, decode_e4m3, decode_e8m0
from latticeq.quantizers.base import CodedTensor
from latticeq.transforms.rotation import Rotation

__all__ = ["KINDS", "GridTensor", "grid_nbytes", "grid_of", "widened"]

KINDS = ("int4", "nf4", "mxfp4", "nvfp4")
"""The kinds of scalar quantization, by the names of their formats."""


def grid_of(kind: str, symmetric: bool = True) -> Grid:
    """Return the grid of a kind in `KINDS`."""
    if kind == "int4":
        return INT4 if symmetric else UINT4
    return NF4 if kind == "nf4" else E2M1


def grid_nbytes(m: int, n: int, kind: str, group: int, symmetric: bool = True) -> int:
    """Return the bytes that a matrix M x N takes: codes, scales and zero points.

    Codes take half a byte, rows padded to sixteen and columns to eight.

    Examples
    --------
    >>> grid_nbytes(16, 64, "nvfp4", 16) == 16 * (64 // 2 + 64 // 16) + 4
    True
    """
    scale = 1 if kind in {"mxfp4", "nvfp4"} else 2 if symmetric else 4
    codes = (m + -m % 16) * (n + -n % 8) // 2
    return codes + scale * m * -(-n // group) + (4 if kind == "nvfp4" else 0)


def widened(per_group: NDArray[np.float32], group: int, columns: slice) -> NDArray[np.float32]:
    """Return for some columns the entries of their groups, from (M, G) to (M, columns)."""
    return per_group[:, np.arange(columns.start, columns.stop) // group]


@dataclass(frozen=True, eq=False)
class GridTensor(CodedTensor):
    """A tensor held as codes, scales and, for asymmetric int4, zero points.

    An entry of the rotated rows is level · step + zero, each operation rounded to float32.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor that was quantized, (..., N).
    kind : str
        One of `KINDS`.
    group : int
        Neighbours in a row that share a scale; the last group of a row may be shorter.
    rotation : Rotation
        Of size N.
    codes : ndarray of uint8, shape (M, N)
        From 0 to 15.
    scales : ndarray, shape (M, ceil(N / group))
        float16 for int4 and nf4; uint8 for mxfp4 (E8M0) and nvfp4 (E4M3).
    zero : ndarray of float16, shape (M, ceil(N / group)), or None
        Of asymmetric int4.
    tensor_scale : float32 or None
        Of nvfp4.
    damping : float or None
        The damping of the Hessian that was used; None without feedback.
    """

    shape: tuple[int, ...]
    kind: str
    group: int
    rotation: Rotation
    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    zero: NDArray[np.float16] | None = None
    tensor_scale: np.float32 | None = None
    damping: float | None = None

    @property
    def symmetric(self) -> bool:
        """Whether there are no zero points."""
        return self.zero is None

    @property
    def grid(self) -> Grid:
        """The grid of the codes."""
        return grid_of(self.kind, self.symmetric)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, scales included."""
        m, n = self.codes.shape
        return grid_nbytes(m, n, self.kind, self.group, self.symmetric)

    def steps(self) -> NDArray[np.float32]:
        """Return the scales as numbers, shape (M, ceil(N / group))."""
        if self.kind == "mxfp4":
            return decode_e8m0(self.scales)
        if self.tensor_scale is not None:
            return decode_e4m3(self.scales) * self.tensor_scale
        return self.scales.astype(np.float32)

    def rotated(self) -> NDArray[np.float32]:
        """Return the decoded rows in the rotated basis, M x N."""
        every = slice(0, self.codes.shape[1])
        rows = self.grid.decode(self.codes) * widened(self.steps(), self.group, every)
        if self.zero is not None:
            rows += widened(self.zero.astype(np.float32), self.group, every)
        return rows
