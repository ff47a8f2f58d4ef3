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
from latticeq.transforms.rotation import Rotation, random_signs

__all__ = ["STEP", "GpuRotation", "Operand", "check_tokens", "padded"]

STEP = 128
"""Columns are padded with zeros to a multiple of it."""

THREADS = (32, 32)

STATIC_BYTES = 1024
"""Shared memory that the kernel takes beside what it asks for."""


def padded(columns: int) -> int:
    """Return the columns that a row takes on the device."""
    return -(-columns // STEP) * STEP


@dataclass(frozen=True)
class Operand:
    """T tokens of N numbers.

    Attributes
    ----------
    halves : (T, padded(N)) float16 on the device
    scale : (T,) float32 on the device
        A token is its scale times its halves. NaN for a token that holds NaN or infinity.
    """

    halves: Any
    scale: Any

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.halves.shape[0])


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
    def _arrays(self) -> tuple[Any, Any]:
        """Signs and Paley's factor; 0, a null pointer, where there is none."""
        module, rotation = cupy(), self.rotation
        signs = (
            0 if rotation.seed is None else module.asarray(random_signs(rotation.n, rotation.seed))
        )
        codes = module.asarray(hadamard_codes(rotation.block_size)) if self._m > 1 else 0
        return signs, codes

    def rotate(self, x: Any) -> Any:
        """Return what `Rotation.apply` makes of tokens: (T, N) -> (T, N) float32, a buffer."""
        check_tokens(x, self.rotation.n)
        out = buffer("rotated", x.shape, "float32")
        self._launch(x, out, 0, 0)
        return out

    def operand(self, x: Any) -> Operand:
        """Rotate tokens and round them to float16: (T, N) float32 or float16.

        What is returned lies in buffers that the next call writes over.
        """
        check_tokens(x, self.rotation.n)
        halves = buffer("halves", (len(x), padded(self.rotation.n)), "float16")
        scale = buffer("token scales", (len(x),), "float32")
        self._launch(x, 0, halves, scale)
        return Operand(halves, scale)

    def _launch(self, x: Any, rotated: Any, halves: Any, scale: Any) -> None:
        n = self.rotation.n
        if len(x) == 0:
            return
        kernel = function("prepare", "prepare")
        size = 4 * n * (2 if self._m > 1 else 1)
        scratch: Any = 0
        if size > _shared_limit() - STATIC_BYTES:
            scratch, size = buffer("rotation", (len(x), 2 * n), "float32"), 0
        elif size > kernel.max_dynamic_shared_size_bytes:
            kernel.max_dynamic_shared_size_bytes = _shared_limit() - STATIC_BYTES
        launch_early(
            kernel,
            (len(x),),
            THREADS,
            (x, int(x.dtype.name == "float16"), n, *self._arrays, self._m, self._width, self._scale,
             padded(n), rotated, halves, scale, scratch),
            size,
        )  # fmt: skip


def _shared_limit() -> int:
    """Return the bytes of shared memory that a block may have at most."""
    module = cupy()
    return int(module.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])
