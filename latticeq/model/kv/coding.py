r"""How keys and values are coded: which codes, and in which basis.

Attention needs nothing of keys but their products with queries, and nothing of values but their
weighted means. So both may be coded in a basis that suits the code, and nothing but the code's own
error changes:

    q·k  = (R A q)·(R A⁻¹ (k − c))  + q·c          A = diag(key_scale), c = key_offset
    Σ p v = B Rᵀ Σ p (R B⁻¹ (v − d)) + d            B = diag(value_scale), d = value_offset

with R orthonormal. The term q·c is the same for all positions, and softmax does not see it; d comes
back exactly, as the weights p sum to one.

The rotation R is a Hadamard transform over the head (`latticeq.transforms.rotation`): it spreads a
few large channels over all. Keys are coded after rotary positions. Offsets take out what all
positions share, so that the code spends its bits on what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.quantizers.rows import RowCodec

__all__ = ["KVCoding"]

_ARRAYS = ("key_offset", "value_offset", "key_scale", "value_scale")


@dataclass(frozen=True, eq=False)
class KVCoding:
    """How a cache codes keys and values.

    Parameters
    ----------
    keys, values : RowCodec
        Codes of one head of one token: rows of K numbers.
    rotate_keys, rotate_values : bool
        Rotate over the head first.
    key_offset, value_offset : (L, G, K) float32, optional
        Subtracted before coding, from keys after rotary positions.
    key_scale, value_scale : (L, G, K) float32, optional
        Positive; what is coded is divided by it.

    Raises
    ------
    InputError
        If the codecs are for rows of two lengths, or an array does not fit the others.
    """

    keys: RowCodec
    values: RowCodec
    rotate_keys: bool = True
    rotate_values: bool = True
    key_offset: NDArray[np.float32] | None = None
    value_offset: NDArray[np.float32] | None = None
    key_scale: NDArray[np.float32] | None = None
    value_scale: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.keys.n != self.values.n:
            raise InputError(
                f"keys are coded in rows of {self.keys.n} and values in rows of {self.values.n}; "
                "both must be the model's head_dim"
            )
        given = self._given()
        if len({array.shape for array in given.values()}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
            raise InputError(f"{shapes}: all must be (layers, kv heads, head_dim) of one model")
        for name, array in given.items():
            if array.ndim != 3 or array.shape[2] != self.keys.n:
                raise InputError(
                    f"{name} has shape {array.shape}; it must be (layers, kv heads, {self.keys.n})"
                )
            if not np.isfinite(array).all() or (name.endswith("scale") and array.min() <= 0):
                kind = "positive and finite" if name.endswith("scale") else "finite"
                raise InputError(f"{name} must be {kind} everywhere; it is not")

    def _given(self) -> dict[str, NDArray[np.float32]]:
        found = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        """Make sure that this suits a cache of a shape.

        Parameters
        ----------
        shape : tuple of int
            (L, G, K).

        Raises
        ------
        InputError
            If it does not.
        """
        if self.keys.n != shape[2]:
            raise InputError(
                f"keys and values are coded in rows of {self.keys.n}; the model's head_dim is "
                f"{shape[2]}"
            )
        for name, array in self._given().items():
            if array.shape != shape:
                raise InputError(
                    f"{name} has shape {array.shape}; a cache of {shape[0]} layers and {shape[1]} "
                    f"kv heads needs {shape}"
                )

    def of_layer(self, layer: int) -> KVCoding:
        """Return the coding of one layer, for a cache of that layer alone."""
        return self.of_layers(layer, layer + 1)

    def of_layers(self, first: int, last: int) -> KVCoding:
        """Return the coding of layers from `first` to before `last`, for a cache of these alone."""
        mine: dict[str, Any] = {name: array[first:last] for name, array in self._given().items()}
        return replace(self, **mine)
