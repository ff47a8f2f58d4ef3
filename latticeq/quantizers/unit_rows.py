"""What codes of unit rows share: rows rotated, divided by their scale, and coded block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.errors import InputError
from latticeq.quantizers.base import as_rows
from latticeq.quantizers.feedback import Factor, ldlq
from latticeq.transforms.rotation import Rotation

__all__ = ["UnitRows", "encode_columns", "rounded_scales", "unit_rows"]


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Rows of unit mean square.

    Parameters
    ----------
    values : ndarray, shape (M, N)
        Rotated, and divided by the scales; rows of zeros stay zeros.
    row_scale : ndarray of float16, shape (M,)
        The root mean square of each row.
    rotation : Rotation
    """

    values: NDArray[Any]
    row_scale: NDArray[np.float16]
    rotation: Rotation


def unit_rows(
    x: ArrayLike, block: int, rotation_of: Callable[[int], Rotation], may_be_single: bool
) -> UnitRows:
    """Rotate the rows of a tensor and divide them by their scales.

    Parameters
    ----------
    x : array_like, shape (..., N)
        Real and finite; N a multiple of the block.
    block : int
    rotation_of : callable
        Returns the rotation of rows of a length.
    may_be_single : bool
        Whether float32 input is worked on in float32; all else is in float64.

    Raises
    ------
    InputError
        As `as_rows`, or if a row's scale does not fit float16.
    """
    single = may_be_single and np.asarray(x).dtype == np.float32
    rows = as_rows(x, block, np.float32 if single else np.float64)
    rotation = rotation_of(rows.shape[1])
    row_scale = _row_scale(rows)
    divisor = np.where(row_scale > 0, row_scale, 1).astype(rows.dtype)[:, None]
    return UnitRows(rotation.apply(rows) / divisor, row_scale, rotation)


def encode_columns(
    values: NDArray[Any],
    factored: Factor | None,
    take: Callable[[slice, NDArray[Any]], NDArray[Any]],
) -> None:
    """Code rows: all columns at once, or with a Hessian's factor block by block under feedback.

    Parameters
    ----------
    values : ndarray, shape (M, N)
    factored : Factor, optional
    take : callable
        Given a slice of whole blocks and their targets, in float32 under feedback, keeps their code
        and returns the values that it stands for.
    """
    if factored is None:
        take(slice(0, values.shape[1]), values)
    else:
        ldlq(values, factored, lambda columns, target: take(columns, target.astype(np.float32)))


def _row_scale(rows: NDArray[np.floating]) -> NDArray[np.float16]:
    """Return each row's root mean square in float16."""
    return rounded_scales(
        np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64) / rows.shape[1])
    )


def rounded_scales(exact: NDArray[np.float64]) -> NDArray[np.float16]:
    """Round each row's root mean square, (M,), to float16.

    Raises
    ------
    InputError
        If float16 cannot hold one.
    """
    with np.errstate(over="ignore"):
        scale: NDArray[np.float16] = exact.astype(np.float16)
    bad = ~np.isfinite(scale) | ((scale == 0) & (exact > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"row {row} has root mean square {exact[row]:.3g}, which float16 row scales cannot "
            "hold (6e-8 to 65504); rescale the tensor"
        )
    return scale
