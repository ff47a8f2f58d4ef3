"""Linears whose input is coded too: rotated, coded token by token, and multiplied as decoded.

    y = Ŵ x̂,      x̂ = decode(encode(R x))

with R the rotation that the weights are stored in. What is multiplied is what the bytes of the code
say, so that four bits an activation cost what they cost.

Where both sides are nested codes, the product is one of integers, with one multiply-add a block of
eight (`latticeq.linear.coded_kernels`); elsewhere decoded floats meet decoded tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.linear.coded_kernels import panels
from latticeq.linear.nest import NestLinear
from latticeq.linear.tiled import TiledLinear
from latticeq.quantizers.rows import NestRowCodec, RowCodec
from latticeq.transforms.rotation import Rotation

__all__ = ["CodedLinear", "DecodedLinear", "coded_rows"]


def coded_rows(x: NDArray[np.float32], rotation: Rotation, codec: RowCodec) -> NDArray[np.float32]:
    """Return what a code makes of inputs, in the rotated basis: (T, N) -> (T, N) float32."""
    return codec.decode(codec.encode(rotation.apply(np.ascontiguousarray(x))))


class CodedLinear:
    """A packed linear behind a code for its input.

    Parameters
    ----------
    inner : TiledLinear
        M x N.
    codec : RowCodec
        Of rows of N numbers.

    Raises
    ------
    InputError
        If the codec is for rows of another length.
    """

    def __init__(self, inner: TiledLinear, codec: RowCodec) -> None:
        if codec.n != inner.in_features:
            raise InputError(
                f"inputs of {inner.in_features} numbers cannot be coded in rows of {codec.n}"
            )
        self.inner = inner
        self.codec = codec
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.nbytes, self.run_nbytes = inner.nbytes, inner.run_nbytes
        self.dtype = inner.dtype

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32 -> (T, M) float32."""
        return self.apply_group([self], x)[0]

    @staticmethod
    def apply_group(
        linears: Sequence[CodedLinear], x: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """Multiply one input by several matrices, coding it once where they agree."""
        first = linears[0]
        if any(
            linear.inner.rotation != first.inner.rotation or linear.codec != first.codec
            for linear in linears
        ):
            return [linear(x) for linear in linears]
        codec = first.codec
        coded = codec.encode(first.inner.rotation.apply(np.ascontiguousarray(x)))
        if isinstance(codec, NestRowCodec) and any(linear.is_integer for linear in linears):
            points = codec.decode_points(coded)
        if not all(linear.is_integer for linear in linears):
            decoded = codec.decode(coded)
        return [
            linear._multiply_points(*points)
            if linear.is_integer
            else linear.inner.multiply_rotated(decoded)
            for linear in linears
        ]

    @property
    def is_integer(self) -> bool:
        """Whether codewords are multiplied by codewords, as integers."""
        return (
            isinstance(self.codec, NestRowCodec)
            and isinstance(self.inner, NestLinear)
            and self.inner.runtime != "float32"
        )

    def _multiply_points(
        self, points: NDArray[np.int8], scales: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Multiply coded tokens, points (T, N) under block scales (T, N / 8): (T, M) float32."""
        assert isinstance(self.inner, NestLinear)
        return self.inner.multiply_panels(*panels(points, scales, self.inner.raised), None)[
            : len(points)
        ]


class DecodedLinear:
    """A packed linear for inputs that are coded already: what `coded_rows` returned.

    Calibration looks at what a code makes of an input before the linears take it, and spares them
    to code it once more.

    Parameters
    ----------
    inner : TiledLinear
        M x N.
    """

    def __init__(self, inner: TiledLinear) -> None:
        self.inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.nbytes, self.run_nbytes = inner.nbytes, inner.run_nbytes
        self.dtype = inner.dtype

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Multiply: (T, N) float32, rotated and decoded -> (T, M) float32."""
        return self.inner.multiply_rotated(x)
