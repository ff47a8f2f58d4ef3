"""Scalar quantizers: one number at a time, under a scale a row or a group.

`Scalar` holds the baselines: int4, NF4, MXFP4 and NVFP4, rotated or not, plain or under error
feedback (which for single columns is GPTQ: Frantar et al., arXiv 2210.17323). `Int8` serves what
must stay nearly exact, token embeddings and the output head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latticeq.errors import InputError
from latticeq.quantizers.base import as_rows
from latticeq.quantizers.feedback import DAMPING, Factor, ldlq, rotated_factor
from latticeq.quantizers.grid_tensor import KINDS, GridTensor, grid_nbytes, grid_of, widened
from latticeq.quantizers.scales import E4M3, E8M0, HALF, Rule, matrix_scales
from latticeq.transforms.rotation import Rotation

__all__ = [
    "KINDS",
    "GridTensor",
    "Int8",
    "Int8Tensor",
    "Scalar",
    "grid_nbytes",
    "int8_nbytes",
    "round_to_nearest",
]

RATIOS = 1 - np.arange(32) / 64
"""Clipping ratios that a search tries, from 1 to 0.516."""

GROUPS = {"nf4": 64, "mxfp4": 32, "nvfp4": 16}
"""Neighbours that share a scale unless told otherwise; in int4 whole rows do."""


@dataclass(frozen=True)
class Scalar:
    """Round to nearest on a scalar grid of sixteen levels.

    Parameters
    ----------
    kind : "int4", "nf4", "mxfp4" or "nvfp4"
        Integers or NF4's quantiles under float16 scales; E2M1 under a power of two a block of 32,
        or under E4M3 a block of 16 and one float32.
    group : int, optional
        Neighbours in a row that share a scale; the last group of a row may be shorter. By default
        whole rows for int4, 64 for nf4; 32 and 16 are all that mxfp4 and nvfp4 know.
    rotate : "hadamard" or "none"
        Rotate rows before quantizing them: whole rows, but for mxfp4 and nvfp4 each block by
        itself, since outliers that spread over a whole row harm them (arXiv 2511.04214).
    symmetric : bool
        False: int4 from a zero point of the group (float16) upwards.
    clip : "search", "none" or a ratio above 0 and up to 1
        The share of the largest magnitude that a scale covers. A search takes of 32 ratios down to
        0.516 the one with the least squared error of its group; it is the default of int4 and nf4.
        mxfp4 takes the power of two that the MX specification says (floor), or, under a search,
        the better of that and the next. nvfp4 never clips.
    four_over_six : bool
        nvfp4: let a block's largest magnitude become 4 instead of 6 where that errs less.
    seed : int, optional
        Flip random signs before the rotation.

    Raises
    ------
    InputError
        If an argument is none of these, or does not belong to the kind.

    References
    ----------
    NF4: arXiv 2305.14314. MXFP4: OCP Microscaling Formats Specification 1.0, section 6.3. Four over
    six, with a tensor scale that leaves E4M3 room for it: arXiv 2512.02010.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(16, 4096)).astype(np.float32)
    >>> tensor = Scalar("nf4").quantize(x)
    >>> tensor.bits_per_entry, bool(np.mean((x - tensor.dequantize()) ** 2) < 0.0085)
    (4.25, True)
    """

    kind: str = "int4"
    group: int | None = None
    rotate: Literal["hadamard", "none"] = "hadamard"
    symmetric: bool = True
    clip: str | float | None = None
    four_over_six: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.rotate not in {"hadamard", "none"}:
            raise InputError(f"rotate is {self.rotate!r}; it must be 'hadamard' or 'none'")
        if self.group is not None and (type(self.group) is not int or self.group < 1):
            raise InputError(f"group is {self.group!r}; it must be a positive integer or None")
        if self.is_float and self.group not in {None, GROUPS[self.kind]}:
            raise InputError(f"group is {self.group}; {self.kind} has {GROUPS[self.kind]} only")
        if not self.symmetric and self.kind != "int4":
            raise InputError(f"symmetric is False; of {self.kind} there is no asymmetric form")
        self._check_clip()

    def _check_clip(self) -> None:
        given, words = self.clip, ("search", "none")
        if given is None or given in words[self.kind == "nvfp4" :]:
            return
        if self.is_float or isinstance(given, str) or not 0 < given <= 1:
            allowed = "'search' or 'none'" if self.kind == "mxfp4" else "'none'"
            allowed = allowed if self.is_float else "'search', 'none' or a number in (0, 1]"
            raise InputError(f"clip is {given!r}; for {self.kind} it must be {allowed}")

    @property
    def is_float(self) -> bool:
        """Whether numbers are E2M1 floats in blocks that rotate by themselves."""
        return self.kind in {"mxfp4", "nvfp4"}

    def group_size(self, n: int) -> int:
        """Return the neighbours that share a scale in rows of length n."""
        if self.is_float:
            return GROUPS[self.kind]
        return min(self.group or GROUPS.get(self.kind, n), n)

    def rotation(self, n: int) -> Rotation:
        """Return the rotation of rows of length n."""
        is_blocked = self.is_float and self.rotate == "hadamard"
        return Rotation(n, self.seed, self.rotate, GROUPS[self.kind] if is_blocked else None)

    def factors(self) -> NDArray[np.float64]:
        """Return what a scale may be over the largest magnitude of its group."""
        if self.kind == "mxfp4":
            return np.array([0.25, 0.5] if self.clip == "search" else [0.25])
        if self.kind == "nvfp4":
            return np.array([1 / 6, 1 / 4] if self.four_over_six else [1 / 6])
        ratios = RATIOS if self.clip in {None, "search"} else np.array([1.0])
        if isinstance(self.clip, float | int):
            ratios = np.array([float(self.clip)])
        return ratios / grid_of(self.kind).peak if self.symmetric else ratios

    def factor(self, hessian: NDArray[np.float64] | Factor, damping: float = DAMPING) -> Factor:
        """Return the factor of a Hessian (N, N) as `quantize` needs it; a factor is one already.

        Errors are those of `latticeq.quantizers.feedback.factor`.
        """
        return rotated_factor(hessian, self.rotation, 1, damping)

    def quantize(
        self,
        x: ArrayLike,
        hessian: NDArray[np.float64] | Factor | None = None,
        damping: float = DAMPING,
    ) -> GridTensor:
        """Quantize the rows of a tensor. Scales are chosen first, from the rotated rows.

        Parameters
        ----------
        x : array_like, shape (..., N)
            Real and finite; for mxfp4 and nvfp4 N is a multiple of 32 and of 16.
        hessian : ndarray of float64, shape (N, N), optional
            E[a aᵀ] of the activations a that the rows will multiply: turns error feedback on. Or
            its `factor`, where several matrices share it.
        damping : float
            Relative damping of the Hessian.

        Raises
        ------
        InputError
            If the shape does not divide, an entry is not finite, magnitudes are outside the range
            of the scales or the Hessian does not fit.
        LatticeqError
            If the Hessian cannot be factored.
        """
        rows = as_rows(x, GROUPS[self.kind] if self.is_float else 1)
        n = rows.shape[1]
        rotation, group = self.rotation(n), self.group_size(n)
        rotated = rotation.apply(rows)
        tensor = self._empty(np.shape(x), rotation, rotated)
        codes, grid = tensor.codes, tensor.grid
        steps = tensor.steps()
        zero = 0 * steps if tensor.zero is None else tensor.zero.astype(np.float32)
        divisor = np.where(steps > 0, steps, 1)

        def take(columns: slice, target: NDArray[np.float64]) -> NDArray[np.float32]:
            bottom = widened(zero, group, columns)
            chosen = grid.encode((target - bottom) / widened(divisor, group, columns))
            codes[:, columns] = chosen
            return grid.decode(chosen) * widened(steps, group, columns) + bottom

        if hessian is None:
            take(slice(0, n), rotated)
            return tensor
        factored = self.factor(hessian, damping)
        ldlq(rotated, factored, take)
        return replace(tensor, damping=factored.damping)

    def _empty(
        self, shape: tuple[int, ...], rotation: Rotation, rotated: NDArray[np.float64]
    ) -> GridTensor:
        """Choose the scales of rotated rows; the codes are yet to be written."""
        rule = scalar_rule(self, rotated.shape[1])
        top = _checked_peak(rotated, self.is_float) / rule.peak
        rows = rotated.astype(np.float32)
        scales = np.zeros((len(rows), -(-rows.shape[1] // rule.group)), np.uint16)
        zeros = np.zeros_like(scales)
        matrix_scales(rows, rule, top, scales, zeros)
        return GridTensor(
            shape,
            self.kind,
            rule.group,
            rotation,
            np.empty(rows.shape, np.uint8),
            scales.astype(np.uint8) if self.is_float else scales.view(np.float16),
            None if self.symmetric else zeros.view(np.float16),
            top if self.kind == "nvfp4" else None,
        )


def _checked_peak(rows: NDArray[np.float64], is_float: bool) -> np.float32:
    """Return the largest magnitude, refusing those for which scales are too coarse or too small."""
    peak = np.abs(rows).max()
    low, high = (2.0**-100, 2.0**120) if is_float else (2.0**-14, 65504.0)
    if peak > 0 and not low <= peak <= high:
        raise InputError(
            f"the largest magnitude is {peak:.3g} once rotated; the scales of this kind are made "
            f"for {low:.2g} to {high:.3g}; rescale the tensor"
        )
    return np.float32(peak)


@lru_cache(maxsize=64)
def scalar_rule(scalar: Scalar, n: int) -> Rule:
    """Return what kernels need to know to quantize rows of length n."""
    grid = grid_of(scalar.kind, scalar.symmetric)
    return Rule(
        scalar.group_size(n),
        {"mxfp4": E8M0, "nvfp4": E4M3}.get(scalar.kind, HALF),
        not scalar.symmetric,
        scalar.factors().astype(np.float32),
        grid.thresholds32,
        grid.by_code[grid.codes],
        grid.codes.astype(np.int32),
        np.float32(6 * (256 if scalar.four_over_six else 448)),
    )


def int8_nbytes(m: int, n: int) -> int:
    """Return the bytes that a matrix M x N takes in int8, rows padded to sixteen, with scales."""
    return (m + -m % 16) * n + 2 * m


@dataclass(frozen=True, eq=False)
class Int8Tensor:
    """A tensor held as int8 rows and their scales.

    Parameters
    ----------
    shape : tuple of int
        (..., N)
    values : ndarray of int8, shape (M, N)
        From -127 to 127.
    row_scale : ndarray of float16, shape (M,)
    """

    shape: tuple[int, ...]
    values: NDArray[np.int8]
    row_scale: NDArray[np.float16]

    @property
    def rotation(self) -> Rotation:
        """The rotation of the rows: none."""
        return Rotation(self.values.shape[1], kind="none")

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form, rows padded to sixteen."""
        return int8_nbytes(*self.values.shape)

    @property
    def bits_per_entry(self) -> float:
        """Effective bits an entry."""
        return 8 * self.nbytes / float(np.prod(self.shape))

    def rotated(self) -> NDArray[np.float32]:
        """Return the rows that the bytes stand for, M x N."""
        return self.values * self.row_scale.astype(np.float32)[:, None]

    def dequantize(self) -> NDArray[np.float32]:
        """Return the tensor that the bytes stand for."""
        return self.rotated().reshape(self.shape)


@dataclass(frozen=True)
class Int8:
    """Round to nearest in int8, one scale a row.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(4, 64))
    >>> step = np.abs(x).max(axis=1, keepdims=True) / 127
    >>> bool((np.abs(x - Int8().quantize(x).dequantize()) < 0.51 * step).all())
    True
    """

    def quantize(self, x: ArrayLike) -> Int8Tensor:
        """Quantize the rows of a tensor.

        Parameters
        ----------
        x : array_like, shape (..., N)
            Real and finite; N a multiple of 4.

        Raises
        ------
        InputError
            If the shape does not divide, an entry is not finite, or a scale does not fit float16.
        """
        rows = as_rows(x, 4)
        exact = np.abs(rows).max(axis=1) / 127
        with np.errstate(over="ignore"):
            scale = exact.astype(np.float16)
        bad = ~np.isfinite(scale) | ((scale == 0) & (exact > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"row {row} has largest magnitude {127 * exact[row]:.3g}, for which float16 has no "
                "scale (8e-6 to 8e6 fit); rescale the tensor"
            )
        divisor = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
        values = np.clip(np.rint(rows / divisor), -127, 127).astype(np.int8)
        return Int8Tensor(np.shape(x), values, scale)


def round_to_nearest(
    weights: NDArray[np.floating], bits: int = 4, group: int = 32
) -> NDArray[np.float64]:
    """Return weights rounded to nearest in signed integers, one scale a group: the plain baseline.

    Parameters
    ----------
    weights : ndarray, shape (M, N)
    bits : int
        The largest magnitude of a group becomes 2**(bits - 1) - 1.
    group : int
        Neighbours in a row that share a scale; N itself if it does not divide N.

    Returns
    -------
    ndarray of float64, shape (M, N)
        The values that the integers stand for; scales are not rounded.

    Examples
    --------
    >>> round_to_nearest(np.array([[7.0, 3.4]]), group=2).tolist()
    [[7.0, 3.0]]
    """
    n = weights.shape[1]
    rows = np.asarray(weights, np.float64).reshape(-1, group if n % group == 0 else n)
    scale = np.abs(rows).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    rounded: NDArray[np.float64] = np.rint(rows / np.where(scale > 0, scale, 1)) * scale
    return rounded.reshape(weights.shape)
