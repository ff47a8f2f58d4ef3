"""What a linear layer is to the model: a function of activations that knows its size.

Float, packed and int8 linears all follow `Linear`; the model is written against it alone, so that a
quantized model and its float reference run through the same forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Linear", "Table", "apply_shared"]


@runtime_checkable
class Linear(Protocol):
    """A matrix M x N, stored in any way, that multiplies activations.

    Attributes
    ----------
    in_features, out_features : int
        N and M.
    nbytes : int
        Bytes that hold the matrix: codes, scales and indices, all of them. The bias is not counted:
        it is no part of what is quantized.
    run_nbytes : int
        Bytes that one product of a token reads: others, where the matrix is laid out anew.
    dtype : str
        How the matrix is stored, for people: ``"float32"``, ``"bfloat16"``, ``"nestquant"``.
    """

    @property
    def in_features(self) -> int: ...  # noqa: D102 - documented above

    @property
    def out_features(self) -> int: ...  # noqa: D102

    @property
    def nbytes(self) -> int: ...  # noqa: D102

    @property
    def run_nbytes(self) -> int: ...  # noqa: D102

    @property
    def dtype(self) -> str: ...  # noqa: D102

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32, a new array."""
        ...


@runtime_checkable
class Table(Linear, Protocol):
    """A linear whose rows can also be looked up: token embeddings, that may serve as the head."""

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows `ids` as a new array: (T,) int64 -> (T, N) float32."""
        ...


def apply_shared(linears: Sequence[Linear], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Apply several linears to one input, so that they can share what they do to it.

    A class of linears that has work to share (a rotation of the input, one parallel region for
    several matrices) defines a static method ``apply_group(linears, x) -> list of arrays``. It is
    called when all `linears` are of that class; otherwise each linear is applied alone.

    Parameters
    ----------
    linears : sequence of Linear
        Such as q, k and v, or gate and up.
    x : (T, N) float32

    Returns
    -------
    list of (T, M) float32
        One for each linear, as if it had been applied alone.
    """
    kind = type(linears[0])
    group = getattr(kind, "apply_group", None)
    if group is not None and all(type(linear) is kind for linear in linears):
        outputs: list[NDArray[np.float32]] = group(linears, x)
        return outputs
    return [linear(x) for linear in linears]
