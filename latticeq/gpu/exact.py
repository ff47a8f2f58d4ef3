"""Runtime "float32" on a device: weights decoded exactly, and nothing rounded on the way.

The matrices lie decoded in device memory, four bytes a weight, and are multiplied in float32: what
the packed bytes say, as the CPU's runtime of that name does it. For measurements: where inputs,
keys or values are coded, rounding an operand to float16 tips numbers that lie between codewords.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.gpu.device import cupy, function
from latticeq.gpu.linear import tiled_rows
from latticeq.gpu.memory import buffer
from latticeq.gpu.rows import GpuRowCodec
from latticeq.gpu.tables import FloatTable, upload
from latticeq.gpu.tokens import GpuRotation
from latticeq.gpu.weights import CELLS
from latticeq.quantizers.rows import RowCodec
from latticeq.storage.bits import bit_width
from latticeq.storage.formats.base import Packed
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.formats.nest import PackedNest

__all__ = ["ExactLinear", "decoded"]

THREADS = 256


class ExactLinear(FloatTable):
    """A packed matrix M x N that is decoded when it is loaded, and a table of embeddings.

    Parameters
    ----------
    packed : Packed
    bias : (M,) float32, optional
    codec : RowCodec, optional
        Of rotated inputs.
    """

    def __init__(
        self,
        packed: Packed,
        bias: NDArray[np.float32] | None = None,
        codec: RowCodec | None = None,
    ) -> None:
        super().__init__(decoded(packed), bias)
        self.nbytes, self.dtype = packed.nbytes, f"{packed.format} as float32"
        self._rotation = GpuRotation(packed.rotation)
        self._codec = None if codec is None else GpuRowCodec(codec)

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        if self._rotation.rotation.kind != "none":
            x = self._rotation.rotate(x)
        if self._codec is not None:
            coded = buffer("coded rows", (len(x), self._codec.codec.row_nbytes), "uint8")
            codes = self._codec.encode(x, coded)
            x = self._codec.decode(codes, buffer("decoded rows", x.shape, "float32"))
        return super().__call__(x, out)


def decoded(packed: Packed) -> Any:
    """Return the values of a packed matrix, in its rotated basis: (M, N) float32 on the device."""
    if isinstance(packed, PackedInt8):
        return _decoded_int8(packed)
    if isinstance(packed, PackedNest) and packed.format != "d8":
        return _decoded_nest(packed)
    out = cupy().empty(packed.shape, "float32")
    for first, rows in tiled_rows(packed):
        last = min(first + len(rows), len(out))
        out[first:last] = cupy().asarray(rows[: last - first], "float32")
    return out


def _decoded_int8(packed: PackedInt8) -> Any:
    m, n = packed.shape
    out, ids = cupy().empty((m, n), "float32"), cupy().arange(m, dtype="int32")
    scale = upload(packed.row_scale.astype(np.float32))
    given = (ids, upload(packed.arrays["int8"]), scale, np.int32(n), out)
    function("forward", "embed_int8")((m,), (THREADS,), given)
    return out


def _decoded_nest(packed: PackedNest) -> Any:
    (m, n), k = packed.shape, len(packed.betas)
    out = cupy().empty((m, n), "float32")
    digits, index = packed.digit_bytes(), packed.arrays["scale_index"]
    units = packed.betas * np.float32(packed.code.unit)
    sizes = (
        np.int32(digits.shape[3]),
        np.int32(bit_width(k)),
        np.int32(n // 8),
        np.int32(packed.q),
    )
    scales = upload(units), upload(packed.row_scale.astype(np.float32)), np.int32(m)
    stored = upload(digits), upload(index)  # kept until the kernel is done with them
    kernel = function("stored", "decode_stored", CELL=CELLS[packed.format])
    kernel((-(-m * n // 8 // THREADS),), (THREADS,), (*stored, *sizes, *scales, out))
    return out
