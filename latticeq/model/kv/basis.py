"""The bases that keys, values and queries are turned to before and after coding.

`latticeq.model.kv.coding` says what they are. A basis of one layer is an array (2, G, K): what
is added, and what is multiplied. A turn is the rotation as a dense matrix, (K, K): a head is so
short that 64 products a number cost no more than a fast transform's steps do, and any rotation is
one loop. One row takes the same steps alone and among others, so that codes do not depend on how
many tokens came at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.jit import kernel, prange
from latticeq.model.kv.coding import KVCoding
from latticeq.transforms.rotation import Rotation

__all__ = ["Bases", "from_basis", "from_basis_row", "to_basis", "to_basis_row"]


class Bases:
    """What a coding does to the keys, queries, values and outputs of every layer.

    Parameters
    ----------
    coding : KVCoding
    shape : tuple of int
        (L, G, K).

    Attributes
    ----------
    keys, queries, values : (L, 2, G, K) float32
        For `to_basis`.
    outputs : (L, 2, G, K) float32
        For `from_basis`.
    key_turn, value_turn : (K, K) float32
        Rotations, transposed: the turn of keys and queries, and that of values.
    back : (K, K) float32
        The turn of outputs.
    """

    def __init__(self, coding: KVCoding, shape: tuple[int, int, int]) -> None:
        def filled(array: NDArray[np.float32] | None, default: float) -> NDArray[np.float32]:
            return np.full(shape, default, np.float32) if array is None else array

        def joined(add: Any, times: Any) -> NDArray[np.float32]:
            return np.ascontiguousarray(np.stack([add, times], axis=1), np.float32)

        key_offset, value_offset = filled(coding.key_offset, 0), filled(coding.value_offset, 0)
        key_scale, value_scale = filled(coding.key_scale, 1), filled(coding.value_scale, 1)
        self.keys = joined(-key_offset, 1 / key_scale)
        self.queries = joined(np.zeros(shape), key_scale)
        self.values = joined(-value_offset, 1 / value_scale)
        self.outputs = joined(value_offset, value_scale)
        self.key_turn = _turn(shape[2], coding.rotate_keys)
        self.value_turn = _turn(shape[2], coding.rotate_values)
        self.back = np.ascontiguousarray(self.value_turn.T)


def _turn(width: int, is_on: bool) -> NDArray[np.float32]:
    rotation = Rotation(width, kind="hadamard" if is_on else "none")
    return np.ascontiguousarray(rotation.matrix().T, np.float32)


@kernel
def to_basis_row(x, basis, g, turn, out):  # type: ignore[no-untyped-def]
    """Set out = R ((x + add) * times) for one head: x, out (K,), basis (2, G, K)."""
    out[:] = 0
    for i in range(x.size):
        moved = (x[i] + basis[0, g, i]) * basis[1, g, i]
        row = turn[i]
        for j in range(out.size):
            out[j] += moved * row[j]


@kernel
def from_basis_row(x, basis, g, back, out):  # type: ignore[no-untyped-def]
    """Set out = (R^T x) * times + add for one head."""
    out[:] = 0
    for i in range(x.size):
        row = back[i]
        for j in range(out.size):
            out[j] += x[i] * row[j]
    for j in range(out.size):
        out[j] = out[j] * basis[1, g, j] + basis[0, g, j]


@kernel(parallel=True)
def to_basis(x, basis, turn):  # type: ignore[no-untyped-def]
    """Return rows in the basis in which they are coded.

    Parameters
    ----------
    x : (T, H, K) float32
        Keys or values with H = G, or queries; heads that share a kv head are neighbours.
    basis : (2, G, K) float32
    turn : (K, K) float32

    Returns
    -------
    (T, H, K) float32
    """
    out = np.empty_like(x)
    shared = x.shape[1] // basis.shape[1]
    for t in prange(x.shape[0]):
        for h in range(x.shape[1]):
            to_basis_row(x[t, h], basis, h // shared, turn, out[t, h])
    return out


@kernel(parallel=True)
def from_basis(x, basis, back):  # type: ignore[no-untyped-def]
    """Return attention's outputs in the model's basis: (T, H, K) -> (T, H, K), see `to_basis`."""
    out = np.empty_like(x)
    shared = x.shape[1] // basis.shape[1]
    for t in prange(x.shape[0]):
        for h in range(x.shape[1]):
            from_basis_row(x[t, h], basis, h // shared, back, out[t, h])
    return out
