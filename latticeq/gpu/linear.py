"""Linear layers on the device: packed matrices that multiply tokens from device memory.

    y = scale ⊙ (Ŵ x̂) + bias

x̂ is the input, rotated and rounded to float16 under a scale a token, or what a code makes of it
(regime w+kv+a). Ŵ is the packed matrix: points times scales of blocks, in float16 under a scale a
row. Products are exact and sums are in float32. Beside exact arithmetic with the same packed bytes
an entry is off by at most

    2^-9 Σ_k |w_k x_k| + 2^-24 max|x| Σ_k |w_k|:

2^-11 each for rounding an input, a scale of a block and the value of a weight, and the rest for
sums; the second term is for inputs so small beside the largest that their float16 is subnormal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.gpu.device import check_device, cupy, function
from latticeq.gpu.many import multiply_many, takes_wide
from latticeq.gpu.rows import GpuRowCodec
from latticeq.gpu.small import MOST_TOKENS, multiply_few
from latticeq.gpu.tokens import GpuRotation, Operand, check_tokens
from latticeq.gpu.weights import WORD_Q, Weights, lay_floats, lay_int8, lay_nest
from latticeq.linear.packed import make_tiled_linear
from latticeq.quantizers.rows import RowCodec
from latticeq.storage.bits import ROWS
from latticeq.storage.formats.base import Packed
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.formats.nest import PackedNest
from latticeq.storage.formats.pvq import PackedPVQ

__all__ = ["GpuLinear", "make_gpu_linear", "tiled_rows"]

TILE_ENTRIES = 2**24
"""Of a matrix that is decoded while it is uploaded: so many at a time."""


class GpuLinear:
    """A packed matrix M x N on a device.

    Parameters
    ----------
    packed : Packed
    weights : Weights
        The same on the current device.
    bias : (M,) float32, optional
    codec : RowCodec, optional
        Of rotated inputs; they are rounded to float16 alone by default.
    dtype : str

    Attributes
    ----------
    in_features, out_features : int
        N and M.
    nbytes : int
        Bytes of the packed matrix, as the file has it.
    run_nbytes : int
        Bytes of device memory.
    dtype : str
        How it is stored, and what became of that on the device if it is another.
    """

    def __init__(
        self,
        packed: Packed,
        weights: Weights,
        bias: NDArray[np.float32] | None,
        codec: RowCodec | None,
        dtype: str,
    ) -> None:
        self.out_features, self.in_features = packed.shape
        self.nbytes = packed.nbytes
        self.run_nbytes = weights.nbytes
        self.dtype = dtype
        self.weights = weights
        if bias is not None and bias.shape != (self.out_features,):
            raise InputError(
                f"bias has shape {bias.shape}; a matrix {packed.shape} needs {packed.shape[:1]}"
            )
        self.bias: Any = 0 if bias is None else cupy().asarray(bias, "float32")
        self._source = packed.rotation, codec
        self.rotation = GpuRotation(packed.rotation)
        self.codec = None if codec is None else GpuRowCodec(codec)
        if codec is not None and codec.n != self.in_features:
            raise InputError(
                f"inputs of {self.in_features} numbers cannot be coded in rows of {codec.n}"
            )

    def __call__(self, x: Any, out: Any = None) -> Any:
        """Multiply: (T, N) float32 or float16 -> (T, M) float32, a new array or `out`.

        Parameters
        ----------
        x : cupy.ndarray
            Contiguous, on the linear's device, which is the current one.
        out : cupy.ndarray, optional
            Contiguous; all that is written without it lies in buffers that are kept.

        Raises
        ------
        InputError
            If x is another.
        """
        return self.apply_group([self], x, None if out is None else [out])[0]

    @staticmethod
    def apply_group(
        linears: Sequence[GpuLinear], x: Any, outs: Sequence[Any] | None = None
    ) -> list[Any]:
        """Multiply one input by several matrices, making it ready once where they agree."""
        operand, source = None, None
        results = []
        for number, linear in enumerate(linears):
            check_tokens(x, linear.in_features)
            if operand is None or linear._source != source:
                operand, source = linear.operand(x), linear._source
            results.append(linear.multiply(operand, None if outs is None else outs[number]))
        return results

    def operand(self, x: Any) -> Operand:
        """Return tokens (T, N) as `multiply` takes them, in buffers that the next call reuses."""
        is_wide = len(x) > MOST_TOKENS and takes_wide()
        if self.codec is None:
            return self.rotation.operand(x, is_wide)
        return self.codec.operand(self.rotation.rotate(x), is_wide)

    def multiply(self, operand: Operand, out: Any = None) -> Any:
        """Multiply tokens that are ready: -> (T, M) float32, a new array or `out`."""
        tokens = operand.tokens
        if out is None:
            out = cupy().empty((tokens, self.out_features), "float32")
        elif out.shape != (tokens, self.out_features) or out.dtype.name != "float32":
            raise InputError(
                f"out is {out.dtype} of shape {out.shape}; it must be float32 of shape "
                f"({tokens}, {self.out_features})"
            )
        if tokens > MOST_TOKENS:
            multiply_many(self.weights, operand, self.bias, out)
        elif tokens > 0:
            multiply_few(self.weights, operand, self.bias, out)
        return out


def make_gpu_linear(
    packed: Packed,
    bias: NDArray[np.float32] | None = None,
    device: int = 0,
    codec: RowCodec | None = None,
) -> GpuLinear:
    """Upload a packed matrix M x N and return the linear that multiplies by it.

    Codewords with q up to 16 and int8 rows keep their bits in device memory. What else there is,
    pyramid codes, scalar grids and codewords of larger q, is decoded to float16 while it is
    uploaded, which the linear's `dtype` says.

    Parameters
    ----------
    packed : Packed
    bias : (M,) float32, optional
    device : int
    codec : RowCodec, optional
        For inputs, in the regime "w+kv+a".

    Raises
    ------
    InputError
        If there is no such device, or bias or codec do not fit.
    MissingDependencyError
        If there is no GPU to run on.
    """
    with cupy().cuda.Device(check_device(device)):
        if isinstance(packed, PackedInt8):
            return GpuLinear(packed, lay_int8(packed), bias, codec, "int8")
        if isinstance(packed, PackedNest) and packed.q <= WORD_Q:
            return GpuLinear(packed, lay_nest(packed), bias, codec, "nestquant")
        parts = _pvq_rows(packed) if isinstance(packed, PackedPVQ) else tiled_rows(packed)
        dtype = f"{packed.format} as float16"
        return GpuLinear(packed, lay_floats(packed.shape, parts), bias, codec, dtype)


def tiled_rows(packed: Packed) -> Iterator[tuple[int, Any]]:
    """Yield rows as the CPU decodes them."""
    for group, tile in make_tiled_linear(packed, runtime="float32").float_tiles():
        yield ROWS * group, tile.T


def _pvq_rows(packed: PackedPVQ) -> Iterator[tuple[int, Any]]:
    """Yield rows of a pyramid code, decoded on the device."""
    module, code, (m, n) = cupy(), packed.code, packed.shape
    gain_bits, blocks = int(packed.entry["gain_bits"]), n // code.n
    kernel = function("pvq", "decode_groups", LIMBS=code.limbs, N=code.n)
    table = module.asarray(code.table)
    index = module.asarray(packed.arrays["index"])
    gains = module.asarray(packed.arrays["gain_index"]) if gain_bits else 0
    scale = np.zeros(len(index) * ROWS, np.float32)
    scale[:m] = packed.row_scale
    fixed = (module.asarray(packed.levels), module.asarray(scale), blocks)
    size = module.asarray(code.size_limbs)
    step = max(1, TILE_ENTRIES // (ROWS * n))
    for first in range(0, len(index), step):
        groups = min(step, len(index) - first)
        rows = module.empty((ROWS * groups, n), "float32")
        kernel(
            (-(-ROWS * groups * blocks // 128),),
            (128,),
            (index, code.index_bits, size, table, table.shape[1], table.shape[1] - 2 - code.pulses,
             gains, gain_bits, *fixed, first, groups, rows),
        )  # fmt: skip
        yield ROWS * first, rows
