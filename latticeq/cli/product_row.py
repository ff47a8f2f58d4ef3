"""A line of ``latticeq bench kernels``, on the CPU or on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ProductRow"]


@dataclass(frozen=True)
class ProductRow:
    """One format, shape and number of tokens.

    Parameters
    ----------
    format : str
    rows, columns, tokens : int
        M, N and T of the product (T, N) by (M, N).
    nbytes : int
        Of the matrix, as it lies in memory.
    seconds : float
        The median.
    lowest, highest : float
        The fastest and the slowest product, in seconds.
    repeats : int
    gb_s, gop_s : float
        Bytes of the matrix read, and multiplications and additions done, in 10^9 a second.
    bandwidth_fraction : float
        Of what a read reaches on the CPU, of what a copy does on a GPU, read and written.
    speedup : float
        Over the float product of the machine's own library: NumPy's, cuBLAS's.
    """

    format: str
    rows: int
    columns: int
    tokens: int
    nbytes: int
    seconds: float
    lowest: float
    highest: float
    repeats: int
    gb_s: float
    gop_s: float
    bandwidth_fraction: float
    speedup: float
