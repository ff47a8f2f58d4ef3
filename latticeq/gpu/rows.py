"""Row codecs on the device: the bytes of `latticeq.quantizers.rows.NestRowCodec`, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.errors import InputError
from latticeq.gpu.device import cupy, function
from latticeq.gpu.tokens import Operand, operand_buffers, padded
from latticeq.gpu.weights import CELLS
from latticeq.quantizers.rows import NestRowCodec, RowCodec

__all__ = ["GpuRowCodec"]

BLOCKS = 128
"""Blocks of eight that a block of threads takes."""


class GpuRowCodec:
    """A nested code for rows of n numbers, on the current device.

    Digits, scale indices and norms are the CPU's bit for bit. A norm is a sum in float64, added in
    another order: it differs only where the sums, about 1e-13 apart, round to different float16.

    Parameters
    ----------
    codec : NestRowCodec

    Raises
    ------
    InputError
        If the codec is of another kind.
    """

    def __init__(self, codec: RowCodec) -> None:
        if not isinstance(codec, NestRowCodec):
            raise InputError(
                f"rows coded by {type(codec).__name__} have no kernels on the GPU; nested codes "
                "have: run this model on the CPU"
            )
        self.codec = codec
        code = codec.code
        module = cupy()
        betas = np.asarray(code.betas, np.float32)
        self._kernels = {
            name: function("rows", name, CELL=CELLS[code.cell])
            for name in ("encode_rows", "decode_rows")
        }
        self._arguments = (
            module.asarray(betas),
            module.asarray(1 / betas),
            len(betas),
            code.q,
            int(code.selection == "first"),
            codec.digit_bits,
            codec.index_bits,
            np.float32(code.unit),
            codec.row_nbytes,
        )

    def encode(self, x: Any, out: Any = None) -> Any:
        """Code rows: (R, n) float32 -> (R, row_nbytes) uint8, a new array or `out`.

        Both are contiguous arrays on the device.
        """
        n = self.codec.n
        if out is None:
            out = cupy().empty((len(x), self.codec.row_nbytes), "uint8")
        self._encode(x, n, out, 0, 0)
        return out

    def operand(self, x: Any, is_wide: bool = False) -> Operand:
        """Return what rows (R, n) float32 are once they were coded, ready for products.

        The float16 of a token are its points times scales, over the largest scale, rounded: off by
        at most 2^-11 of themselves. What is returned lies in buffers that the next call reuses.
        """
        width = padded(self.codec.n)
        halves, scale = operand_buffers(len(x), self.codec.n, is_wide)
        self._encode(x, width, 0, halves, scale, is_wide)
        return Operand(halves, scale, is_wide)

    def decode(self, coded: Any, out: Any = None) -> Any:
        """Return what bytes stand for: (R, row_nbytes) uint8 -> (R, n), a new array or `out`.

        `out` may be of float32, which is exact and the default, or of float16.
        """
        n = self.codec.n
        if out is None:
            out = cupy().empty((len(coded), n), "float32")
        if len(coded) == 0:
            return out
        *arguments, row_nbytes = self._arguments
        targets = (out, 0) if out.dtype.name == "float32" else (0, out)
        self._kernels["decode_rows"](
            (len(coded), -(-n // (8 * BLOCKS))),
            (BLOCKS,),
            (coded, row_nbytes, n, *arguments, *targets),
        )
        return out

    def _encode(
        self, x: Any, width: int, coded: Any, halves: Any, scale: Any, is_wide: bool = False
    ) -> None:
        n = self.codec.n
        if x.ndim != 2 or x.shape[1] != n or x.dtype.name != "float32":
            raise InputError(f"rows are {x.dtype} {x.shape}; this codec takes float32 (R, {n})")
        if len(x) == 0:
            return
        self._kernels["encode_rows"](
            (len(x), -(-width // (8 * BLOCKS))),
            (BLOCKS,),
            (x, n, *self._arguments, coded, width, int(is_wide), halves, scale),
        )
