r"""The least distortion that any quantizer can have on Gaussian entries, at R bits an entry.

One operand quantized, weights alone: D(R) = 2^{−2R}, Shannon's distortion-rate function of N(0, 1).

Both operands of A Bᵀ quantized: the mean squared error of an entry over N, its variance, is at
least

    Γ(R) = f(R)                           for R ≥ R*
         = 1 − (1 − f(R*)) · R / R*       below it,        f(R) = 2·2^{−2R} − 2^{−4R}

with R* where the chord from (0, 1) touches f: f(R*) − R* df/dR(R*) = 1. f(R) is what two
independent errors of 2^{−2R} amount to; below R* it is better to drop some coordinates and spend
their bits on the others.

Source: Ordentlich and Polyanskiy, *Optimal quantization for matrix multiplication*, arXiv
2410.13780, theorem 1.
"""

from __future__ import annotations

from latticeq.errors import InputError

__all__ = ["CRITICAL_RATE", "distortion_limit", "product_limit"]

CRITICAL_RATE = 0.9063235369515509
"""R*, in bits an entry."""


def distortion_limit(rate: float) -> float:
    """Return 2^(−2R): the least mean squared error of N(0, 1) entries at R bits each.

    Raises
    ------
    InputError
        If the rate is negative or not a number.

    Examples
    --------
    >>> [round(distortion_limit(rate), 6) for rate in (0, 1, 4.25)]
    [1.0, 0.25, 0.002762]
    """
    if not rate >= 0:
        raise InputError(f"the rate is {rate}; it must be at least 0 bits an entry")
    return float(2.0 ** (-2 * rate))


def product_limit(rate: float) -> float:
    """Return Γ(R): the least normalised error of A Bᵀ with both operands at R bits an entry.

    Parameters
    ----------
    rate : float
        Bits an entry of each operand.

    Returns
    -------
    float
        Mean squared error of an entry of A Bᵀ over N: A and B of N(0, 1) entries, rows of N.

    Raises
    ------
    InputError
        If the rate is negative or not a number.

    References
    ----------
    Ordentlich and Polyanskiy, arXiv 2410.13780, theorem 1.

    Examples
    --------
    >>> [round(product_limit(rate), 6) for rate in (3.25, 4.0574, 4.25)]
    [0.021975, 0.007202, 0.005517]
    >>> round(product_limit(CRITICAL_RATE), 7), product_limit(0)
    (0.4883003, 1.0)
    """
    one_sided = distortion_limit(rate)
    if rate >= CRITICAL_RATE:
        return _two_errors(one_sided)
    touching = _two_errors(distortion_limit(CRITICAL_RATE))
    return 1 - (1 - touching) * rate / CRITICAL_RATE


def _two_errors(d: float) -> float:
    """Return f as a function of d = 2^(−2R), the error of either operand."""
    return 2 * d - d * d
