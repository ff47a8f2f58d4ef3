"""Matrices that share an input: one where they can be stacked, else one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.gpu.kernels import add_norm, swiglu
from latticeq.gpu.linear import GpuLinear
from latticeq.gpu.ready import GATE, NORM, Before, Ready
from latticeq.linear.base import Linear
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.base import Packed
from latticeq.storage.formats.nest import PackedNest

__all__ = ["Product", "done", "stacked", "stacked_bias"]


class Product:
    """Linears of one input, whose outputs lie side by side.

    Parameters
    ----------
    linears : mapping of str to linear
        Each M_i x N.
    """

    def __init__(self, linears: Mapping[str, Any]) -> None:
        self.linears: dict[str, Linear] = dict(linears)
        self._all = list(linears.values())
        first = self._all[0]
        is_one = len(self._all) == 1 and isinstance(first, GpuLinear)
        self._ready: Ready | None = None
        if is_one:
            rotation = first.rotation.rotation
            codec: Any = None if first.codec is None else first.codec.codec
            self._ready = Ready(rotation, codec) if Ready.fits(rotation, codec) else None

    def __call__(self, before: Before, scratch: Any, out: Any) -> None:
        """Do the step before, and multiply.

        Parameters
        ----------
        before : Before
            Of T tokens.
        scratch : (T, N) float32
            May be used for what the step makes; not for a plain one.
        out : (T, sum of M_i) float32, output
        """
        if self._ready is None:
            self._multiply(done(before, scratch), out)
            return
        self._all[0].multiply(self._ready.operand(before), out)

    def _multiply(self, x: Any, out: Any) -> None:
        if len(self._all) == 1:
            self._all[0](x, out)
            return
        first = 0
        for linear in self._all:
            part = out[:, first : first + linear.out_features]
            if len(x) == 1:  # a row's part lies together
                linear(x, part)
            else:
                part[...] = linear(x)
            first += linear.out_features


def done(before: Before, scratch: Any) -> Any:
    """Do a step by itself: return what goes into the product, `scratch` unless it is plain."""
    if before.source == NORM:
        add_norm(before.x, before.added, before.weight, before.epsilon, scratch, before.stream)
        return scratch
    if before.source == GATE:
        swiglu(before.x, scratch)
        return scratch
    return before.x


def stacked(matrices: Sequence[Packed]) -> Packed | None:
    """Return packed matrices one below the other as one, None where that is no packed matrix.

    They must be of one nested code and rotation, and all but the last of whole groups of rows. The
    bytes are those of the parts, one after the other: a copy that lives until it is on the device.
    """
    first = matrices[0]
    if len(matrices) == 1:
        return first
    if not all(isinstance(matrix, PackedNest) and _fits(matrix, first) for matrix in matrices):
        return None
    if any(matrix.shape[0] % ROWS for matrix in matrices[:-1]):
        return None
    names = [name for name in first.arrays if name != "betas"]
    arrays = {name: np.concatenate([m.arrays[name] for m in matrices]) for name in names}
    rows = sum(matrix.shape[0] for matrix in matrices)
    entry = dict(first.entry) | {"shape": [rows, first.shape[1]]}
    return type(first)(entry, arrays | {"betas": first.arrays["betas"]})


def _fits(matrix: Packed, first: Packed) -> bool:
    """Tell whether two matrices differ in nothing but rows and their number."""
    described = [{**m.entry, "shape": m.shape[1]} for m in (matrix, first)]
    betas = [m.arrays.get("betas") for m in (matrix, first)]
    return (
        type(matrix) is type(first)
        and described[0] == described[1]
        and np.array_equal(np.asarray(betas[0]), np.asarray(betas[1]))
    )


def stacked_bias(
    biases: Sequence[NDArray[np.float32] | None], sizes: Sequence[int]
) -> NDArray[np.float32] | None:
    """Return biases one after the other, zeros where one is missing; None if all are."""
    if all(bias is None for bias in biases):
        return None
    parts = [
        np.zeros(size, np.float32) if bias is None else bias
        for bias, size in zip(biases, sizes, strict=True)
    ]
    return np.concatenate(parts)
