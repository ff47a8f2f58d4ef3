r"""NestQuant: rows normalised, rotated and coded block by block with nested codes.

For a matrix M x N: each row is rotated by an orthonormal Hadamard matrix, divided by its scale r/√N
with r = ‖row‖₂ (kept as float16), and its 8-blocks are coded with a union of k nested codes of one
cell. With a Hessian the blocks are coded last to first under error feedback
(`latticeq.quantizers.feedback`).

Bits an entry: log₂ q, rounded up to whole bits a digit or with packing "radix" to whole bits for
sixteen digits; log₂ k / 8, but in cell "d8" nothing, as its words have room for the scale index;
and 16/N for the row's scale.

Source: Savkin, Porat, Ordentlich, Polyanskiy, *NestQuant*, arXiv 2502.09720, sections 3 to 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.codes.nested import CELLS, NestedCode
from latticeq.errors import InputError
from latticeq.quantizers.base import CodedTensor
from latticeq.quantizers.betas import published_betas, tuned_betas
from latticeq.quantizers.feedback import DAMPING, Factor, rotated_factor
from latticeq.quantizers.unit_rows import encode_columns, unit_rows
from latticeq.transforms.rotation import Rotation

__all__ = ["NestQuant", "NestTensor", "is_radix_q", "nest_nbytes"]

MAX_K = 16
"""The most scales: a vector register holds sixteen."""


MAX_RADIX_Q = 15
"""The largest q of packing "radix": sixteen digits must fit 64 bits."""

MAX_D8_K = 8
"""The most scales of cell "d8": its words have three bits for the index."""


def is_radix_q(q: int) -> bool:
    """Tell whether mixed radix is defined for q, and takes less than whole bits a digit.

    Examples
    --------
    >>> [q for q in range(2, 64) if is_radix_q(q)]
    [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]
    """
    return 2 <= q <= MAX_RADIX_Q and q & (q - 1) != 0


def nest_nbytes(
    m: int, n: int, q: int, k: int, cell: str = "voronoi", packing: str = "digits"
) -> int:
    """Return the bytes that a matrix M x N takes when it is packed, everything counted.

    Rows are padded to sixteen; row scales and the k betas are included. A digit takes whole bits;
    in mixed radix the sixteen digits of two blocks do, or the eight of an odd last one. The words
    of cell "d8" hold the scale indices.

    Examples
    --------
    >>> nest_nbytes(16, 16, 14, 4, packing="radix") - nest_nbytes(16, 16, 14, 4)
    -6
    """
    groups, blocks = -(-m // 16), n // 8
    if packing == "radix":
        bits = (blocks // 2) * (q**16 - 1).bit_length() + (blocks % 2) * (q**8 - 1).bit_length()
    else:
        bits = 8 * blocks * (q - 1).bit_length()
    if cell != "d8":
        bits += blocks * (k - 1).bit_length()
    return 2 * groups * bits + 2 * m + 4 * k


@dataclass(frozen=True, eq=False)
class NestTensor(CodedTensor):
    """A tensor held as digits of a nested code, scale indices and row scales.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor that was quantized, (..., N).
    code : NestedCode
    rotation : Rotation
        Of size N.
    digits : ndarray of uint8, shape (M, N / 8, 8)
        M is the number of rows, the product of all axes but the last.
    scale_index : ndarray of uint8, shape (M, N / 8)
    row_scale : ndarray of float16, shape (M,)
    damping : float or None
        The damping of the Hessian that was used; None without feedback.
    packing : "digits" or "radix"
        How digits are stored on disk.
    """

    shape: tuple[int, ...]
    code: NestedCode
    rotation: Rotation
    digits: NDArray[np.uint8]
    scale_index: NDArray[np.uint8]
    row_scale: NDArray[np.float16]
    damping: float | None = None
    packing: str = "digits"

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form: rows padded to sixteen, scales and the code's β included."""
        rows, blocks = self.scale_index.shape
        code = self.code
        return nest_nbytes(rows, 8 * blocks, code.q, len(code.betas), code.cell, self.packing)

    def rotated(self) -> NDArray[np.float32]:
        """Return the decoded rows in the rotated basis, M x N.

        An entry is v · (s · βu), every product rounded to float32: v a coordinate of the lattice
        point counted in the code's unit u, s the row's scale. Kernels that decode from packed bytes
        give the same bits.
        """
        units = np.asarray(self.code.betas, np.float32) * np.float32(self.code.unit)
        scale = self.row_scale.astype(np.float32)[:, None] * units[self.scale_index]
        points = self.code.points(self.digits.reshape(-1, 8))
        rows = points.reshape(self.digits.shape).astype(np.float32) * scale[..., None]
        return rows.reshape(len(self.digits), -1)


@dataclass(frozen=True)
class NestQuant:
    """The NestQuant quantizer.

    Parameters
    ----------
    q : int
        Nesting ratio, 2 to 63: log₂ q bits an entry.
    k : int
        Scales in the union, 1 to 16 (8 for "d8"): log₂ k bits a block.
    shaping : "voronoi", "nestquantm", "cubic" or "d8"
        The cell that codewords fill; see `latticeq.codes.nested`.
    betas : "tuned", "published" or k increasing numbers
        The scales. "published" are the authors' for weights, defined for k = 4 and E8/qE8.
    selection : "opt" or "first"
        Keep the scale of least error, or the smallest that does not overload.
    rotate : "hadamard" or "none"
    seed : int, optional
        Of random signs before the Hadamard matrix; none by default.
    simplified : "nestquantm", optional
        The decoder of E8/qE8 that is cheaper and fills a worse cell: another way to say
        ``shaping="nestquantm"``.
    packing : "digits" or "radix"
        How digits are stored: in whole bits each, or sixteen as one integer where q is at most 15
        and no power of two (in memory they take whole bits again).

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
    simplified: str | None = None
    packing: str = "digits"
    code: NestedCode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shaping not in CELLS:
            raise InputError(f"shaping is {self.shaping!r}; it must be one of {', '.join(CELLS)}")
        if self.simplified not in {None, "nestquantm"}:
            raise InputError(f"simplified is {self.simplified!r}; it must be None or 'nestquantm'")
        if self.simplified and self.shaping not in {"voronoi", "nestquantm"}:
            raise InputError(
                f"shaping is {self.shaping!r} with simplified = 'nestquantm', a decoder of E8/qE8: "
                "leave one of them out"
            )
        most = MAX_D8_K if self.cell == "d8" else MAX_K
        if type(self.k) is not int or not 1 <= self.k <= most:
            raise InputError(
                f"k is {self.k!r}; the number of scales must be an integer from 1 to {most}"
            )
        if self.rotate not in {"hadamard", "none"}:
            raise InputError(f"rotate is {self.rotate!r}; it must be 'hadamard' or 'none'")
        scales = self._scales()
        object.__setattr__(self, "code", NestedCode(self.q, scales, self.cell, self.selection))
        self._check_packing()

    def _check_packing(self) -> None:
        if self.packing not in {"digits", "radix"}:
            raise InputError(f"packing is {self.packing!r}; it must be 'digits' or 'radix'")
        if self.packing == "radix" and (self.cell == "d8" or not is_radix_q(self.q)):
            raise InputError(
                f"packing is 'radix' with q = {self.q} and cell {self.cell!r}; it needs a q from 3 "
                f"to {MAX_RADIX_Q} that is no power of two, and another cell than 'd8'"
            )

    @property
    def cell(self) -> str:
        """The cell of the codes: `shaping`, or "nestquantm" if `simplified` says so."""
        return self.simplified or self.shaping

    def _scales(self) -> tuple[float, ...]:
        if isinstance(self.betas, str):
            if self.betas == "tuned":
                return tuned_betas(self.q, self.k, self.cell)
            is_e8 = self.cell in {"voronoi", "nestquantm"}
            if self.betas == "published" and self.k == 4 and is_e8:
                return published_betas("weights", self.q)
            raise InputError(
                f"betas is {self.betas!r} with k = {self.k} and cell {self.cell!r}; it must be "
                "'tuned', 'published' (k = 4 and E8/qE8 only) or k numbers"
            )
        given = tuple(float(np.float32(beta)) for beta in self.betas)
        if len(given) != self.k:
            raise InputError(f"{len(given)} betas were given for k = {self.k}")
        return given

    def rotation(self, n: int) -> Rotation:
        """Return the rotation of rows of length n."""
        return Rotation(n, self.seed, self.rotate)  # type: ignore[arg-type]

    def factor(self, hessian: NDArray[np.float64] | Factor, damping: float = DAMPING) -> Factor:
        """Return the factor of a Hessian (N, N) as `quantize` needs it; a factor is one already.

        It depends on the rotation only, so quantizers of different scales can share it. Errors are
        those of `latticeq.quantizers.feedback.factor`.
        """
        return rotated_factor(hessian, self.rotation, 8, damping)

    def quantize(
        self,
        x: ArrayLike,
        hessian: NDArray[np.float64] | Factor | None = None,
        damping: float = DAMPING,
    ) -> NestTensor:
        """Quantize the rows of a tensor.

        Parameters
        ----------
        x : array_like, shape (..., N)
            Real and finite; N a multiple of 8.
        hessian : ndarray of float64, shape (N, N), optional
            E[a aᵀ] of the activations a that the rows will multiply: turns error feedback on. Or
            its `factor`, where several matrices share it.
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
        unit = unit_rows(x, 8, self.rotation, hessian is None)
        factored = None if hessian is None else self.factor(hessian, damping)
        m, n = unit.values.shape
        digits = np.empty((m, n // 8, 8), np.uint8)
        scale_index = np.empty((m, n // 8), np.uint8)

        def take(columns: slice, target: NDArray[Any]) -> NDArray[Any]:
            blocks = slice(columns.start // 8, columns.stop // 8)
            encoded = self.code.encode_decoded(target.reshape(m, -1, 8))
            digits[:, blocks], scale_index[:, blocks], values = encoded
            return values.reshape(target.shape)

        encode_columns(unit.values, factored, take)
        used = None if factored is None else factored.damping
        return NestTensor(
            np.shape(x),
            self.code,
            unit.rotation,
            digits,
            scale_index,
            unit.row_scale,
            used,
            self.packing,
        )
