"""The rotation in front of a quantizer: a value that names it, and the maps that apply it.

``R = H D``: D flips signs (or nothing), H is the Hadamard transform. R is orthonormal, so a linear
layer may keep ``W R^T`` and rotate its input: ``(W R^T)(R x) = W x``, and the Hessian of its input
becomes ``R H R^T``. H is block-diagonal where a block size is chosen, so that entries which share a
scale mix among themselves only, and where there is no Hadamard matrix of size n: then with the
largest block that divides n. `Rotation.describe` says which.

Signs come from splitmix64, written out here because files on disk depend on them: entry i is minus
when the top bit of its i-th output for the seed is set.

References
----------
G. L. Steele, D. Lea, C. H. Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.transforms.hadamard import (
    hadamard,
    hadamard_factors,
    hadamard_inverse,
    hadamard_matrix,
    largest_block,
)

__all__ = ["Rotation", "random_signs"]

Float = TypeVar("Float", np.float32, np.float64)


@cache
def random_signs(n: int, seed: int) -> NDArray[np.float32]:
    """Return n signs, the same for a seed on every machine and in every version; read-only.

    Examples
    --------
    >>> random_signs(8, seed=0).astype(int).tolist()
    [-1, 1, 1, -1, 1, 1, 1, -1]
    """
    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    signs = np.where((state ^ (state >> np.uint64(31))) >> np.uint64(63), -1, 1).astype(np.float32)
    signs.flags.writeable = False
    return signs


@dataclass(frozen=True)
class Rotation:
    """An orthonormal map R of n coordinates, comparable and hashable by what defines it.

    Parameters
    ----------
    n : int
        Number of coordinates.
    seed : int, optional
        Flip random signs first; None, the default, flips none.
    kind : {"hadamard", "none"}
        "none" is the identity.
    block : int, optional
        Size of the diagonal blocks of H; the largest that there is by default. That size, given in
        so many words, is kept as None: it is the same rotation.

    Raises
    ------
    InputError
        If an argument is out of range.

    Examples
    --------
    >>> rotation = Rotation(576, seed=1)
    >>> x = np.arange(576.0)
    >>> np.allclose(rotation.apply_transpose(rotation.apply(x)), x)
    True
    >>> Rotation(92).describe()
    'block-diagonal Hadamard: 23 blocks of 4 (there is no Hadamard matrix of size 92 here)'
    >>> Rotation(576, block=32).describe()
    'block-diagonal Hadamard: 18 blocks of 32'
    >>> Rotation(576, block=576) == Rotation(576)
    True
    """

    n: int
    seed: int | None = None
    kind: Literal["hadamard", "none"] = "hadamard"
    block: int | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"a rotation of {self.n} coordinates: n must be at least 1")
        if self.kind not in ("hadamard", "none"):
            raise InputError(f"rotation {self.kind!r} is unknown: use 'hadamard' or 'none'")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise InputError(f"rotation seed {self.seed}: it must be between 0 and 2^64 - 1")
        if self.seed is not None and self.kind == "none":
            raise InputError("rotation 'none' takes no seed: leave it out or use 'hadamard'")
        if self.block is not None:
            self._check_block(self.block)
            if self.block == largest_block(self.n):
                object.__setattr__(self, "block", None)

    def _check_block(self, block: int) -> None:
        if self.kind == "none":
            raise InputError("rotation 'none' takes no block: leave it out or use 'hadamard'")
        if block < 1 or self.n % block or largest_block(block) != block:
            sizes = [b for b in range(1, self.n + 1) if self.n % b == 0 and largest_block(b) == b]
            raise InputError(
                f"rotation block {block}: for {self.n} coordinates it must be one of {sizes}"
            )

    @property
    def block_size(self) -> int:
        """Size of the blocks that are mixed: n for a full rotation, 1 for none."""
        return 1 if self.kind == "none" else self.block or largest_block(self.n)

    @property
    def blocks(self) -> int:
        """Number of blocks: 1 for a full rotation."""
        return self.n // self.block_size

    @property
    def is_plain(self) -> bool:
        """Whether this is one Hadamard matrix and nothing else: `hadamard` itself."""
        return self.kind == "hadamard" and self.blocks == 1 and self.seed is None

    def describe(self) -> str:
        """Say in one line what is applied, and when it is less than a full rotation."""
        if self.kind == "none":
            return "no rotation"
        if self.blocks == 1:
            m, k = hadamard_factors(self.n) or (1, 0)
            text = f"Hadamard {self.n}" + (f" = {m} x {2**k}" if m > 1 else "")
        else:
            text = f"block-diagonal Hadamard: {self.blocks} blocks of {self.block_size}"
            if self.block is None:
                text += f" (there is no Hadamard matrix of size {self.n} here)"
        return text if self.seed is None else f"{text}, random signs of seed {self.seed}"

    def apply(self, x: NDArray[Float]) -> NDArray[Float]:
        """Return R x for each vector along the last axis; x itself if kind is "none".

        Parameters
        ----------
        x : ndarray of float32 or float64, shape (..., n)

        Raises
        ------
        InputError
            If the last axis is not n long, or the type is another.
        """
        self._check(x)
        if self.kind == "none":
            return x
        if self.seed is not None:
            x = x * self._signs(x)
        return hadamard(self._in_blocks(x)).reshape(x.shape)

    def apply_transpose(self, x: NDArray[Float]) -> NDArray[Float]:
        """Return R^T x, which undoes `apply`; arguments and errors are those of `apply`."""
        self._check(x)
        if self.kind == "none":
            return x
        result = hadamard_inverse(self._in_blocks(x)).reshape(x.shape)
        if self.seed is not None:
            result *= self._signs(x)
        return result

    def apply_both_sides(self, h: NDArray[Float]) -> NDArray[Float]:
        """Return ``R h R^T``: the Hessian of rotated inputs from the Hessian of the inputs.

        Parameters
        ----------
        h : ndarray of float32 or float64, shape (n, n)

        Raises
        ------
        InputError
            If h is not n x n.
        """
        if h.shape != (self.n, self.n):
            raise InputError(f"a matrix {h.shape}: this rotation needs ({self.n}, {self.n})")
        return np.ascontiguousarray(self.apply(self.apply(h).T).T)

    def matrix(self) -> NDArray[np.float64]:
        """Return R as a dense (n, n) matrix, for tests and for learning."""
        if self.kind == "none":
            return np.eye(self.n)
        signs = np.ones(self.n) if self.seed is None else random_signs(self.n, self.seed)
        return np.asarray(np.kron(np.eye(self.blocks), hadamard_matrix(self.block_size)) * signs)

    def _check(self, x: NDArray[Float]) -> None:
        if x.ndim == 0 or x.shape[-1] != self.n:
            raise InputError(f"an array {x.shape}: this rotation needs {self.n} in the last axis")

    def _signs(self, x: NDArray[Float]) -> NDArray[Float]:
        return random_signs(self.n, self.seed or 0).astype(x.dtype, copy=False)

    def _in_blocks(self, x: NDArray[Float]) -> NDArray[Float]:
        return x if self.blocks == 1 else x.reshape(*x.shape[:-1], self.blocks, self.block_size)
