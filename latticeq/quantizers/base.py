"""What every quantizer takes and gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.transforms.rotation import Rotation

__all__ = ["CodedTensor", "QuantizedTensor", "Quantizer", "as_rows"]


@runtime_checkable
class QuantizedTensor(Protocol):
    """A tensor held as digits and scales; its rows, all axes but the last, may be rotated."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that was quantized."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: digits, scales, indices and padding, all of them."""
        ...

    @property
    def bits_per_entry(self) -> float:
        """Effective bits: eight times `nbytes` over the number of entries."""
        ...

    @property
    def rotation(self) -> Rotation:
        """The rotation of the rows: products of two tensors need the same one."""
        ...

    def rotated(self) -> NDArray[np.float32]:
        """Return the rows that the digits stand for, (M, N) in the rotated basis."""
        ...

    def dequantize(self) -> NDArray[np.float32]:
        """Return the tensor that the digits stand for, in the original basis."""
        ...


@runtime_checkable
class Quantizer(Protocol):
    """A recipe that turns tensors into quantized tensors."""

    def quantize(self, x: Any, hessian: Any = None, damping: float = ...) -> QuantizedTensor:
        """Quantize the rows of a tensor, minding a Hessian if one is given."""
        ...


class CodedTensor(ABC):
    """What quantized tensors share whose rows are coded in a rotated basis.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor that was quantized, (..., N).
    rotation : Rotation
        Of size N.
    """

    shape: tuple[int, ...]
    rotation: Rotation

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the packed form, everything counted."""

    @abstractmethod
    def rotated(self) -> NDArray[np.float32]:
        """Return the rows that the codes stand for, (M, N) in the rotated basis."""

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry, all side information counted."""
        return 8 * self.nbytes / float(np.prod(self.shape))

    def dequantize(self) -> NDArray[np.float32]:
        """Return the tensor in the original basis."""
        return self.rotation.apply_transpose(self.rotated()).reshape(self.shape)


def as_rows(x: Any, multiple: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a tensor as rows of floats, refusing what cannot be quantized.

    Parameters
    ----------
    x : array_like, shape (..., N)
        Real numbers.
    multiple : int
        N must be a multiple of it: the length of the code's blocks.
    dtype : float32 or float64
        Of the result, which is `x` itself where nothing changes.

    Raises
    ------
    InputError
        If there is no axis, N does not divide, the dtype is not real, or an entry is NaN or
        infinite; the message names the first such entry.
    """
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"the tensor has dtype {array.dtype}; it must hold real numbers")
    if array.ndim == 0 or array.size == 0 or array.shape[-1] % multiple:
        raise InputError(
            f"the tensor has shape {array.shape}; its last axis must be a positive multiple of "
            f"{multiple}, the length of a block"
        )
    rows = array.reshape(-1, array.shape[-1]).astype(dtype, copy=False)
    finite = np.isfinite(rows)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(
            f"entry ({row}, {column}) is {rows[row, column]}, one of {np.sum(~finite)} that are "
            "not finite; mend or drop them before quantizing"
        )
    return rows
