r"""Nested codes: a fine lattice cut to a cell, and unions of k such codes at different scales.

A codeword is a point of a fine lattice modulo a coarse one, written as eight digits; the *cell*
says which member of the coset the digits mean:

    cell        fine / coarse lattice          representatives                 bits/entry

    voronoi     E8 / qE8                       in the Voronoi cell of qE8      log₂ q
    nestquantm  E8 / qE8                       where a cheaper decoder puts    log₂ q
                                               them
    cubic       E8 / qZ⁸, q even               in a box                        log₂ q
    d8          Hamming lattice / qD8, q even  in the Voronoi cell of qD8      log₂ q − 3/8

A union keeps k scales β₀ < β₁ < … and names the one used by log₂ k bits a block. Points that carry
no digits are *overloaded*; every encoder then searches the cell for a codeword near the block.

Source: Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4; the cells other than the
Voronoi cell are described in the modules that make them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes import cubic, d8, nestquantm, voronoi
from latticeq.errors import InputError
from latticeq.lattices.dn import float_rows

__all__ = ["CELLS", "MAX_Q", "NestedCode"]

MAX_Q = 63
"""The largest nesting ratio: points, in the cell's units, must fit int8."""

FARTHEST = 2.0**20
"""The largest magnitude over the smallest scale: lattice points, doubled, stay exact in float32."""

_MODULES = {"voronoi": voronoi, "nestquantm": nestquantm, "cubic": cubic, "d8": d8}

CELLS = tuple(_MODULES)
"""The names of the cells."""


@dataclass(frozen=True)
class NestedCode:
    """The union of k nested codes β·(fine lattice / q·coarse lattice), k = len(betas).

    Parameters
    ----------
    q : int
        Nesting ratio, 2 to 63; even where the table above says so.
    betas : tuple of float
        Scales, positive and increasing; 1 to 256 of them.
    cell : "voronoi", "nestquantm", "cubic" or "d8"
    selection : "opt" or "first"
        Keep the scale with the least decoded squared error (Opt-β), or the smallest one that does
        not overload (First-β; the largest one, drawn inside, if all do).

    Raises
    ------
    InputError
        If an argument is out of its range.

    References
    ----------
    Savkin et al., *NestQuant*, arXiv 2502.09720, sections 3 and 4.

    Examples
    --------
    Every digit string is a codeword, and codewords encode to themselves:

    >>> import numpy as np
    >>> code = NestedCode(q=16, betas=(0.25,))
    >>> digits = np.random.default_rng(0).integers(0, 16, (1000, 8), dtype=np.uint8)
    >>> scale_index = np.zeros(1000, np.uint8)
    >>> again, _ = code.encode(code.decode(digits, scale_index))
    >>> bool((again == digits).all())
    True
    """

    q: int
    betas: tuple[float, ...]
    cell: str = "voronoi"
    selection: str = "opt"

    def __post_init__(self) -> None:
        if type(self.q) is not int or not 2 <= self.q <= MAX_Q:
            raise InputError(
                f"q is {self.q!r}; the nesting ratio must be an integer from 2 to {MAX_Q}"
            )
        if self.cell not in CELLS:
            raise InputError(f"cell is {self.cell!r}; it must be one of {', '.join(CELLS)}")
        if self.cell in {"cubic", "d8"} and self.q % 2:
            raise InputError(f"q is {self.q}; the cell {self.cell!r} needs an even nesting ratio")
        scales = np.asarray(self.betas, np.float64)
        rising = scales.ndim == 1 and 1 <= scales.size <= 256 and bool((np.diff(scales) > 0).all())
        if not (rising and np.isfinite(scales).all() and scales[0] > 0):
            raise InputError(
                f"betas are {self.betas}; they must be 1 to 256 positive, increasing scales"
            )
        if self.selection not in {"opt", "first"}:
            raise InputError(f"selection is {self.selection!r}; it must be 'opt' or 'first'")

    @property
    def rate(self) -> float:
        """Bits an entry: log₂ of the number of codewords, and an eighth of log₂ k."""
        bits = np.log2(self.q) + np.log2(len(self.betas)) / 8
        return float(bits - 3 / 8 if self.cell == "d8" else bits)

    @property
    def unit(self) -> float:
        """What `points` counts in: a value is a point times unit·β."""
        unit: float = _MODULES[self.cell].UNIT
        return unit

    @property
    def limit(self) -> float:
        """The largest magnitude that `encode` takes."""
        return FARTHEST * self.betas[0]

    def range_error(self) -> InputError:
        """Return the error that says why blocks have no codewords."""
        return InputError(
            f"x holds NaN, infinity or a magnitude beyond {self.limit:.3g}, 2**20 times the least "
            "scale: check or rescale x"
        )

    def encode(self, x: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the digits and the scale index of the codeword chosen for each block.

        Parameters
        ----------
        x : array_like, shape (..., 8)
            float32 or float64; magnitudes over the smallest scale up to 2**20.

        Returns
        -------
        digits : ndarray of uint8, shape (..., 8)
        scale_index : ndarray of uint8, shape (...)

        Raises
        ------
        InputError
            If the last axis is not 8 or a value is not finite or too large for the scales.
        """
        digits, scale_index, _ = self.encode_decoded(x)
        return digits, scale_index

    def encode_decoded(self, x: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[Any]]:
        """Return what `encode` returns, and the values that it decodes to, in the dtype of `x`.

        Blocks are rounded to float32 first.
        """
        rows, shape = float_rows(x, 8)
        limit = self.limit
        if rows.size and not (rows.max() <= limit and rows.min() >= -limit):
            raise self.range_error()
        n = len(rows)
        padded = rows
        if rows.dtype != np.float32 or n % 16:
            padded = np.zeros((n + -n % 16, 8), np.float32)
            padded[:n] = rows
        betas = np.asarray(self.betas, np.float32)
        digits = np.empty(padded.shape, np.uint8)
        index = np.empty(len(padded), np.int32)
        values = np.empty_like(padded)
        encode_blocks = _MODULES[self.cell].encode_blocks
        is_first = self.selection == "first"
        encode_blocks(padded, betas, 1 / betas, self.q, is_first, digits, index, values)
        digits = digits[:n].reshape(shape)
        scale_index = index[:n].astype(np.uint8).reshape(shape[:-1])
        if rows.dtype == np.float64:
            return digits, scale_index, self.decode(digits, scale_index, np.float64)
        return digits, scale_index, values[:n].reshape(shape)

    def decode(self, digits: Any, scale_index: Any, dtype: Any = np.float32) -> NDArray[Any]:
        """Return the values that digits and scale indices stand for.

        Parameters
        ----------
        digits : array_like of integers, shape (..., 8)
            In 0..q-1; the first digit of cell "d8" in 0..2q-1.
        scale_index : array_like of integers in 0..k-1, shape (...)
        dtype : float32 or float64

        Raises
        ------
        InputError
            If a digit or an index is out of its range, digits belong to no codeword, or the shapes
            do not belong together.
        """
        digits = np.asarray(digits)
        scale_index = np.asarray(scale_index)
        if digits.ndim == 0 or digits.shape != (*scale_index.shape, 8):
            raise InputError(
                f"digits have shape {digits.shape} and scale indices {scale_index.shape}; "
                "they must be (..., 8) and (...)"
            )
        _check_range("scale index", scale_index, len(self.betas))
        points = self.points(digits.reshape(-1, 8))
        units = np.asarray(self.betas, dtype) * np.dtype(dtype).type(self.unit)
        values: NDArray[Any] = points * units[scale_index.reshape(-1)][:, None]
        return values.reshape(digits.shape)

    def points(self, digits: Any) -> NDArray[np.int8]:
        """Return the lattice points of digits, counted in `unit`.

        Parameters
        ----------
        digits : array_like of integers, shape (n, 8)

        Returns
        -------
        ndarray of int8, shape (n, 8)

        Raises
        ------
        InputError
            If a digit is out of its range or digits belong to no codeword.
        """
        digits = np.asarray(digits)
        if self.cell == "d8":
            self._check_d8(digits)
        else:
            _check_range("digit", digits, self.q)
        padded = np.zeros((len(digits) + -len(digits) % 16, 8), np.uint8)
        padded[: len(digits)] = digits
        points = np.empty(padded.shape, np.int8)
        _MODULES[self.cell].decode_blocks(padded, self.q, points)
        return points[: len(digits)]

    def _check_d8(self, digits: NDArray[Any]) -> None:
        _check_range("digit", digits[..., 1:], self.q)
        _check_range("digit", digits[..., 0], 2 * self.q)
        if not d8.is_codeword(digits).all():
            raise InputError(
                "the digits' lowest bits are no word of the Hamming code; digits of cell 'd8' must "
                "come from its encoder"
            )


def _check_range(what: str, values: NDArray[Any], limit: int) -> None:
    if values.dtype.kind not in "ui":
        raise InputError(f"{what}s have dtype {values.dtype}; they must be integers")
    if values.size and not (values.min() >= 0 and values.max() < limit):
        raise InputError(
            f"{what}s run from {values.min()} to {values.max()}; they must be in 0..{limit - 1}"
        )
