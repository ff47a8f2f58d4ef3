"""One token's product with several matrices of one kind: what a decode step does most of the time.

A linear is looked at once, when the product is made; after that one token costs one call of a
kernel, which rotates it, rounds it to int8 and multiplies it by all matrices in one parallel
region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latticeq.storage.bits import ROWS
from latticeq.transforms.hadamard import hadamard_codes
from latticeq.transforms.rotation import Rotation

__all__ = ["TokenLinear", "TokenProduct", "multiply_token"]


class TokenLinear(Protocol):
    """A packed linear with a kernel for one token.

    Attributes
    ----------
    product : TokenProduct, optional
        The last product that this linear was the first of; `multiply_token` keeps it here.
    """

    product: TokenProduct | None

    @property
    def out_features(self) -> int: ...  # noqa: D102 - M, as of every linear

    @property
    def rotation(self) -> Rotation: ...  # noqa: D102 - of the input

    @property
    def groups(self) -> int:
        """Groups of sixteen rows, the last one filled up."""
        ...

    @property
    def token_kind(self) -> tuple[Any, ...] | None:
        """What matrices that share a call must agree in; None if there is no kernel for them."""
        ...

    def token_kernel(self) -> tuple[Callable[..., None], int, NDArray[np.int32] | None]:
        """Return the kernel, and its arguments `q` and `tables`."""
        ...

    def token_plan(self) -> list[int]:
        """Return this matrix's row of the kernel's plan, but for the last number."""
        ...

    def finished(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return products with the bias added."""
        ...


class TokenProduct:
    """The product of one token with matrices M_i x N.

    Parameters
    ----------
    linears : sequence of TokenLinear
        Of one `token_kind`. Biases are not added. They are kept: the plan has their addresses.

    Attributes
    ----------
    size : int
        Numbers that come out, every matrix filled up to whole groups of sixteen rows.
    """

    def __init__(self, linears: Sequence[TokenLinear]) -> None:
        self.linears = list(linears)
        first = self.linears[0]
        ends = np.cumsum([linear.groups for linear in linears])
        rows = [[*f.token_plan(), int(end)] for f, end in zip(linears, ends, strict=True)]
        self.size = int(ROWS * ends[-1])
        self._starts = [int(ROWS * (e - f.groups)) for e, f in zip(ends, linears, strict=True)]
        self._rotation = None if first.rotation.is_plain else first.rotation
        codes = hadamard_codes(first.rotation.n) if self._rotation is None else None
        self._kernel, q, tables = first.token_kernel()
        self._fixed = (np.array(rows, np.int64), q, tables)
        self._codes = codes

    def __call__(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Multiply: x (N,) float32, contiguous, into y (size,) float32."""
        if self._rotation is not None:
            x = self._rotation.apply(x)
        self._kernel(*self._fixed, x, self._codes, y)

    def parts(self, y: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the views of y that belong to the matrices: (M_i,) each."""
        return [
            y[start : start + linear.out_features]
            for start, linear in zip(self._starts, self.linears, strict=True)
        ]

    @staticmethod
    def fits(linears: Sequence[Any]) -> bool:
        """Tell whether linears share a kernel for one token."""
        kinds = {getattr(linear, "token_kind", None) for linear in linears}
        return len(kinds) == 1 and None not in kinds


def multiply_token(
    linears: Sequence[TokenLinear], x: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Multiply one token by matrices of one `token_kind`: x (1, N) -> (1, M_i) float32 each.

    Biases are added. The product is made anew only where the last one was of other matrices.
    """
    first = linears[0]
    if first.product is None or first.product.linears != list(linears):
        first.product = TokenProduct(linears)
    y = np.empty(first.product.size, np.float32)
    first.product(np.ascontiguousarray(x[0]), y)
    parts = first.product.parts(y)
    return [linear.finished(part[None]) for linear, part in zip(linears, parts, strict=True)]
