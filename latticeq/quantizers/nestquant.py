r"""NestQuant: rows normalised, rotated and coded block by block with nested E8 lattices.

For a matrix M x N: each row is rotated by an orthonormal Hadamard matrix, divided by its scale r/√N
with r = ‖row‖₂ (kept as float16), and its 8-blocks are coded with a union of k Voronoi codes. With
a Hessian the blocks are coded last to first under error feedback (`latticeq.quantizers.feedback`).

Bits an entry: log₂ q (rounded up to whole bits a digit), log₂ k / 8, and 16/N for the row's scale.

Source: Savkin, Porat, Ordentlich, Polyanskiy, *NestQuant*, arXiv 2502.09720, sections 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.codes.voronoi import VoronoiCode, decode_doubled
from latticeq.errors import InputError
from latticeq.quantizers.base import as_rows
from latticeq.quantizers.betas import published_betas, tuned_betas
from latticeq.quantizers.feedback import DAMPING, factor, ldlq
from latticeq.transforms.rotation import Rotation

__all__ = ["NestQuant", "NestTensor", "nest_nbytes"]

MAX_K = 16
"""The most scales: a vector register holds sixteen."""


def nest_nbytes(m: int, n: int, q: int, k: int) -> int:
    """Return the bytes that a matrix M x N takes when it is packed, everything counted.

    Rows are padded to sixteen; a digit takes whole bits; scales and the k betas are included.
    """
    blocks = (m + -m % 16) * (n // 8)
    return blocks * (q - 1).bit_length() + blocks * (k - 1).bit_length() // 8 + 2 * m + 4 * k


@dataclass(frozen=True, eq=False)
class NestTensor:
    """A tensor held as Voronoi digits, scale indices and row scales.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor that was quantized, (..., N).
    code : VoronoiCode
    rotation : Rotation
        Of size N.
    digits : ndarray of uint8, shape (M, N / 8, 8)
        M is the number of rows, the product of all axes but the last.
    scale_index : ndarray of uint8, shape (M, N / 8)
    row_scale : ndarray of float16, shape (M,)
    damping : float or None
        The damping of the Hessian that was used; None without feedback.
    """

    shape: tuple[int, ...]
    code: VoronoiCode
    rotation: Rotation
    digits: NDArray[np.uint8]
    scale_index: NDArray[np.uint8]
    row_scale: NDArray[np.float16]
    damping: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: rows padded to sixteen, scales and the code's β included."""
        rows, blocks = self.scale_index.shape
        return nest_nbytes(rows, 8 * blocks, self.code.q, len(self.code.betas))

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry, all side information counted."""
        return 8 * self.nbytes / float(np.prod(self.shape))

    def rotated(self) -> NDArray[np.float32]:
        """Return the decoded rows in the rotated basis, M x N.

        An entry is v · (s · β/2), every product rounded to float32: v the doubled coordinate of the
        lattice point, s the row's scale. Kernels that decode from packed bytes give the same bits.
        """
        halves = np.asarray(self.code.betas, np.float32) * np.float32(0.5)
        scale = self.row_scale.astype(np.float32)[:, None] * halves[self.scale_index]
        doubled = decode_doubled(self.digits.reshape(-1, 8), self.code.q)
        rows = doubled.reshape(self.digits.shape).astype(np.float32) * scale[..., None]
        return rows.reshape(len(self.digits), -1)

    def dequantize(self) -> NDArray[np.float32]:
        """Return the tensor in the original basis."""
        return self.rotation.apply_transpose(self.rotated()).reshape(self.shape)


@dataclass(frozen=True)
class NestQuant:
    """The NestQuant quantizer.

    Parameters
    ----------
    q : int
        Nesting ratio, 2 to 63: log₂ q bits an entry.
    k : int
        Scales in the union, 1 to 16: log₂ k bits a block.
    shaping : "voronoi"
        The cell that codewords fill.
    betas : "tuned", "published" or k increasing numbers
        The scales. "published" are the authors' for weights, defined for k = 4.
    selection : "opt" or "first"
        Keep the scale of least error, or the smallest that does not overload.
    rotate : "hadamard" or "none"
    seed : int, optional
        Of random signs before the Hadamard matrix; none by default.

    Raises
    ------
    InputError
        If an argument is out of range or no tuned set exists for q and k.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(64, 256))
    >>> quantized = NestQuant(q=16, k=4).quantize(x)
    >>> bool(np.mean((x - quantized.dequantize()) ** 2) < 0.0045)
    True
    """

    q: int = 16
    k: int = 4
    shaping: str = "voronoi"
    betas: str | tuple[float, ...] = "tuned"
    selection: str = "opt"
    rotate: str = "hadamard"
    seed: int | None = None
    code: VoronoiCode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shaping != "voronoi":
            raise InputError(f"shaping is {self.shaping!r}; it must be 'voronoi'")
        if type(self.k) is not int or not 1 <= self.k <= MAX_K:
            raise InputError(
                f"k is {self.k!r}; the number of scales must be an integer from 1 to {MAX_K}"
            )
        if self.rotate not in {"hadamard", "none"}:
            raise InputError(f"rotate is {self.rotate!r}; it must be 'hadamard' or 'none'")
        object.__setattr__(self, "code", VoronoiCode(self.q, self._scales(), self.selection))

    def _scales(self) -> tuple[float, ...]:
        if isinstance(self.betas, str):
            if self.betas == "tuned":
                return tuned_betas(self.q, self.k)
            if self.betas == "published" and self.k == 4:
                return published_betas("weights", self.q)
            raise InputError(
                f"betas is {self.betas!r} with k = {self.k}; it must be 'tuned', 'published' (k = "
                "4 only) or k numbers"
            )
        given = tuple(float(np.float32(beta)) for beta in self.betas)
        if len(given) != self.k:
            raise InputError(f"{len(given)} betas were given for k = {self.k}")
        return given

    def rotation(self, n: int) -> Rotation:
        """Return the rotation of rows of length n."""
        return Rotation(n, self.seed, self.rotate)  # type: ignore[arg-type]

    def quantize(
        self,
        x: ArrayLike,
        hessian: NDArray[np.float64] | None = None,
        damping: float = DAMPING,
    ) -> NestTensor:
        """Quantize the rows of a tensor.

        Parameters
        ----------
        x : array_like, shape (..., N)
            Real and finite; N a multiple of 8.
        hessian : ndarray of float64, shape (N, N), optional
            E[a aᵀ] of the activations a that the rows will multiply: turns error feedback on.
        damping : float
            Relative damping of the Hessian.

        Returns
        -------
        NestTensor

        Raises
        ------
        InputError
            If the shape does not divide, an entry is not finite, a row's scale does not fit float16
            or the Hessian does not fit.
        LatticeqError
            If the Hessian cannot be factored.
        """
        rows = as_rows(x, 8)
        n = rows.shape[1]
        rotation = self.rotation(n)
        row_scale = _row_scale(rows)
        divisor = np.where(row_scale > 0, row_scale, 1).astype(np.float64)[:, None]
        unit = rotation.apply(rows) / divisor
        digits = np.empty((len(rows), n // 8, 8), np.uint8)
        scale_index = np.empty((len(rows), n // 8), np.uint8)

        def take(columns: slice, target: NDArray[np.float64]) -> NDArray[Any]:
            blocks = slice(columns.start // 8, columns.stop // 8)
            shaped = target.reshape(len(target), -1, 8).astype(np.float32)
            digits[:, blocks], scale_index[:, blocks], values = self.code.encode_decoded(shaped)
            return values.reshape(target.shape)

        used = None
        if hessian is None:
            take(slice(0, n), unit)
        else:
            factored = factor(rotation.apply_both_sides(hessian), 8, damping)
            ldlq(unit, factored, take)
            used = factored.damping
        shape = np.shape(x)
        return NestTensor(shape, self.code, rotation, digits, scale_index, row_scale, used)


def _row_scale(rows: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return each row's root mean square in float16, refusing what it cannot hold."""
    exact = np.sqrt(np.mean(rows * rows, axis=1))
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
