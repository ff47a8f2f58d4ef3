"""Tokens on the device, ready for products: rotated, and rounded to float16 under a scale each.

The rotation is `latticeq.transforms.rotation.Rotation`, float for float. A rotated token divided by
its scale is at most 256 in magnitude, so rounding costs an entry at most 2^-11 of itself, or 2^-25
of the scale where it is subnormal.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from latticeq.errors import InputError
from latticeq.gpu.device import cupy, function
from latticeq.gpu.launch import launch_early
from latticeq.gpu.memory import buffer
from latticeq.transforms.hadamard import hadamard_codes, hadamard_factors
from latticeq.transforms.paley import paley_matrix
from latticeq.transforms.rotation import Rotation, random_signs

__all__ = ["STEP", "GpuRotation", "Operand", "check_tokens", "operand_buffers", "padded"]

STEP = 128
"""Columns are padded with zeros to a multiple of it."""

WIDE_ROWS = 128
"""Tokens that ``cuda/wide.cu`` takes together."""

THREADS, THREADS_OF_FACTORS = 1024, 512
"""Of a block: fewer where Paley's factor is in registers, and two blocks share a multiprocessor."""

LARGEST_UNROLLED = 64
"""The largest order of Paley's factor that is written out, instruction by instruction."""

STATIC_BYTES = 1024
"""Shared memory that the kernel takes beside what it asks for."""


def padded(columns: int) -> int:
    """Return the columns that a row takes on the device."""
    return -(-columns // STEP) * STEP


def operand_buffers(tokens: int, columns: int, is_wide: bool) -> tuple[Any, Any]:
    """Return what `Operand` has as halves and scale: memory that the next call returns again."""
    rows = -(-tokens // WIDE_ROWS) * WIDE_ROWS if is_wide else tokens
    halves = buffer("halves", (rows, padded(columns)), "float16")
    return halves, buffer("token scales", (tokens,), "float32")


@dataclass(frozen=True)
class Operand:
    """T tokens of N numbers.

    Attributes
    ----------
    halves : (T, padded(N)) float16 on the device
        T filled up to a multiple of 128 if `is_wide`.
    scale : (T,) float32 on the device
        A token is its scale times its halves. NaN for a token that holds NaN or infinity.
    is_wide : bool
        Whether columns are in the order of ``cuda/wide.cu``.
    """

    halves: Any
    scale: Any
    is_wide: bool = False

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.scale.shape[0])


def check_tokens(x: Any, columns: int) -> None:
    """Refuse what is no contiguous (T, columns) array of float32 or float16 on the device.

    Raises
    ------
    InputError
        Saying what it is.
    """
    if not isinstance(x, cupy().ndarray):
        raise InputError(f"input is {type(x).__name__}; it must be a cupy.ndarray")
    if x.ndim != 2 or x.shape[1] != columns or x.dtype.name not in {"float32", "float16"}:
        raise InputError(
            f"input is {x.dtype} of shape {x.shape}; it must be float32 or float16 of shape "
            f"(tokens, {columns})"
        )
    if not x.flags.c_contiguous:
        raise InputError("input must be C-contiguous; pass cupy.ascontiguousarray of it")


class GpuRotation:
    """A rotation of tokens on the current device.

    Parameters
    ----------
    rotation : Rotation
    """

    def __init__(self, rotation: Rotation) -> None:
        self.rotation = rotation
        size = rotation.block_size
        m, _ = hadamard_factors(size) or (1, 0)
        self._m, self._width = m, size // m
        self._scale = np.float32(1.0 / np.sqrt(size))

    @cached_property
    def _signs(self) -> Any:
        """Random signs; 0, a null pointer, where there are none."""
        seed = self.rotation.seed
        return 0 if seed is None else cupy().asarray(random_signs(self.rotation.n, seed))

    @cached_property
    def _codes(self) -> Any:
        return cupy().asarray(hadamard_codes(self._m * self._width))

    @cached_property
    def _constants(self) -> dict[str, int | str]:
        """Paley's factor as the kernel is compiled with it."""
        if self._m == 1 or self._m > LARGEST_UNROLLED:
            return {"M": 1, "THREADS": THREADS}
        minus = paley_matrix(self._m) < 0
        rows = (sum(1 << int(j) for j in np.flatnonzero(row)) for row in minus)
        texts = ", ".join(f"{row:#x}ull" for row in rows)
        return {"M": self._m, "ROWS": texts, "THREADS": THREADS_OF_FACTORS}

    def rotate(self, x: Any) -> Any:
        """Return what `Rotation.apply` makes of tokens: (T, N) -> (T, N) float32, a buffer."""
        check_tokens(x, self.rotation.n)
        out = buffer("rotated", x.shape, "float32")
        self._launch(x, out, 0, 0)
        return out

    def operand(self, x: Any, is_wide: bool = False) -> Operand:
        """Rotate tokens and round them to float16: (T, N) float32 or float16.

        `is_wide` orders columns for ``cuda/wide.cu``. What is returned lies in buffers that the
        next call reuses.
        """
        check_tokens(x, self.rotation.n)
        halves, scale = operand_buffers(len(x), self.rotation.n, is_wide)
        self._launch(x, 0, halves, scale, is_wide)
        return Operand(halves, scale, is_wide)

    def _launch(self, x: Any, rotated: Any, halves: Any, scale: Any, is_wide: bool = False) -> None:
        n, signs, factor = self.rotation.n, self._signs, self._scale
        if len(x) == 0:
            return
        if self._m > LARGEST_UNROLLED:
            x, signs, factor = self._large_factor(x), 0, np.float32(1)
        kernel = function("prepare", "prepare", **self._constants)
        size, limit = 4 * (n + n // 32 + 1), _shared_limit() - STATIC_BYTES
        scratch: Any = 0
        if size > limit:
            scratch, size = buffer("rotation", (len(x), n + n // 32 + 1), "float32"), 0
        elif size > kernel.max_dynamic_shared_size_bytes:
            kernel.max_dynamic_shared_size_bytes = limit
        launch_early(
            kernel,
            (len(x),),
            (int(self._constants["THREADS"]),),
            (x, int(x.dtype.name == "float16"), n, signs, self._width, factor, padded(n),
             int(is_wide), rotated, halves, scale, scratch),
            size,
        )  # fmt: skip

    def _large_factor(self, x: Any) -> Any:
        """Apply signs and Paley's factor of a large order: a buffer."""
        out = buffer("paley", x.shape, "float32")
        launch_early(
            function("paley", "paley"),
            (self._m, len(x)),
            (min(256, -(-self.rotation.n // self._m // 32) * 32),),
            (x, int(x.dtype.name == "float16"), x.shape[1], self._signs, self._codes, self._m,
             self._width, self._scale, out),
        )  # fmt: skip
        return out


def _shared_limit() -> int:
    """Return the bytes of shared memory that a block may have at most."""
    module = cupy()
    return int(module.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])
