"""Scalar quantizers: one number at a time, under a scale a row.

`Int8` serves what must stay nearly exact, token embeddings and the output head: round to nearest in
steps of the row's largest magnitude over 127.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.errors import InputError
from latticeq.quantizers.base import as_rows

__all__ = ["Int8", "Int8Tensor", "int8_nbytes", "round_to_nearest"]


def int8_nbytes(m: int, n: int) -> int:
    """Return the bytes that a matrix M x N takes in int8, rows padded to sixteen, with scales."""
    return (m + -m % 16) * n + 2 * m


@dataclass(frozen=True, eq=False)
class Int8Tensor:
    """A tensor held as int8 rows and their scales.

    Parameters
    ----------
    shape : tuple of int
        (..., N)
    values : ndarray of int8, shape (M, N)
        From -127 to 127.
    row_scale : ndarray of float16, shape (M,)
    """

    shape: tuple[int, ...]
    values: NDArray[np.int8]
    row_scale: NDArray[np.float16]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, rows padded to sixteen."""
        return int8_nbytes(*self.values.shape)

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry."""
        return 8 * self.nbytes / float(np.prod(self.shape))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the tensor that the bytes stand for."""
        rows = self.values * self.row_scale.astype(np.float32)[:, None]
        return rows.reshape(self.shape)


@dataclass(frozen=True)
class Int8:
    """Round to nearest in int8, one scale a row.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(4, 64))
    >>> step = np.abs(x).max(axis=1, keepdims=True) / 127
    >>> bool((np.abs(x - Int8().quantize(x).dequantize()) < 0.51 * step).all())
    True
    """

    def quantize(self, x: ArrayLike) -> Int8Tensor:
        """Quantize the rows of a tensor.

        Parameters
        ----------
        x : array_like, shape (..., N)
            Real and finite; N a multiple of 4.

        Raises
        ------
        InputError
            If the shape does not divide, an entry is not finite, or a scale does not fit float16.
        """
        rows = as_rows(x, 4)
        exact = np.abs(rows).max(axis=1) / 127
        with np.errstate(over="ignore"):
            scale = exact.astype(np.float16)
        bad = ~np.isfinite(scale) | ((scale == 0) & (exact > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"row {row} has largest magnitude {127 * exact[row]:.3g}, for which float16 has no "
                "scale (8e-6 to 8e6 fit); rescale the tensor"
            )
        divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
        values = np.clip(np.rint(rows / divisor), -127, 127).astype(np.int8)
        return Int8Tensor(np.shape(x), values, scale)


def round_to_nearest(
    weights: NDArray[np.floating], bits: int = 4, group: int = 32
) -> NDArray[np.float64]:
    """Return weights rounded to nearest in signed integers, one scale a group: the plain baseline.

    Parameters
    ----------
    weights : ndarray, shape (M, N)
    bits : int
        The largest magnitude of a group becomes 2**(bits - 1) - 1.
    group : int
        Neighbours in a row that share a scale; N itself if it does not divide N.

    Returns
    -------
    ndarray of float64, shape (M, N)
        The values that the integers stand for; scales are not rounded.

    Examples
    --------
    >>> round_to_nearest(np.array([[7.0, 3.4]]), group=2).tolist()
    [[7.0, 3.0]]
    """
    n = weights.shape[1]
    rows = np.asarray(weights, np.float64).reshape(-1, group if n % group == 0 else n)
    scale = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    rounded: NDArray[np.float64] = np.rint(rows / np.where(scale > 0, scale, 1)) * scale
    return rounded.reshape(weights.shape)
