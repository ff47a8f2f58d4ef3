"""Products by many tokens: weights are decoded to float16 and the tensor cores do the rest.

On devices of compute capability 9.0 one kernel does both (``cuda/wide.cu``). Elsewhere tiles of
rows are decoded into a buffer, by which cuBLAS multiplies all tokens. Sums are in float32 either
way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from latticeq.gpu.device import cupy, function, hopper_function
from latticeq.gpu.launch import allow_shared, is_hopper, launch_early
from latticeq.gpu.memory import buffer
from latticeq.gpu.tokens import STEP, Operand
from latticeq.gpu.weights import Weights
from latticeq.storage.bits import ROWS

__all__ = ["decoded_rows", "multiply_float16", "multiply_many", "takes_wide"]

TILE_BYTES = 2**27
"""Of decoded weights at a time: smaller ones would stay in the cache, and keep cuBLAS too short."""

WIDE_ROWS, WIDE_COLUMNS = 128, 256
"""Rows of the matrix, and tokens, of a block of ``cuda/wide.cu``."""

WIDE_SHARED = 5 * WIDE_COLUMNS * 128 + 1024
"""Bytes of its shared memory: five parts of its tokens, and what aligns the first."""

LEAST_BLOCKS = 120
"""About one for each multiprocessor of an H100: where there are fewer, two share the columns."""

FLOAT16, FLOAT32 = 2, 0
"""CUDA_R_16F and CUDA_R_32F."""

_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def decoded_rows(weights: Weights, first: int, count: int) -> Any:
    """Decode groups of sixteen rows: (16 count, padded(N)) float16, in units of row scales.

    A buffer, which the next call writes over.
    """
    columns = STEP * weights.steps
    out = buffer("decoded", (ROWS * count, columns), "float16")
    decode = function("decode", "decode", **weights.constants)
    decode(
        (-(-count * weights.steps // 4),),
        (128,),
        (*weights.arrays, weights.tiles, weights.steps, first, count, out),
    )
    return out


@cache
def _takes_wide(device: int) -> bool:
    return is_hopper()


def takes_wide() -> bool:
    """Tell whether `multiply_many` takes tokens in the order of ``cuda/wide.cu``."""
    return _takes_wide(int(cupy().cuda.runtime.getDevice()))


@cache
def _wide_kernel(constants: tuple[tuple[str, int], ...], split: int, device: int) -> Any:
    kernel = hopper_function("wide", "multiply", SPLIT=split, **dict(constants))
    allow_shared(kernel, WIDE_SHARED)
    return kernel


def multiply_many(weights: Weights, operand: Operand, bias: Any, out: Any) -> None:
    """Multiply any number of tokens: writes out, (T, M) float32 and contiguous.

    Parameters
    ----------
    weights : Weights
    operand : Operand
    bias : (M,) float32, or 0
    out : (T, M) float32
    """
    if operand.is_wide:
        _multiply_wide(weights, operand, bias, out)
    else:
        _multiply_decoded(weights, operand, bias, out)


def _multiply_wide(weights: Weights, operand: Operand, bias: Any, out: Any) -> None:
    device = int(cupy().cuda.runtime.getDevice())
    across = -(-operand.tokens // WIDE_COLUMNS)
    blocks = -(-weights.shape[0] // WIDE_ROWS)
    split = 1 if across * blocks >= LEAST_BLOCKS else 2
    launch_early(
        _wide_kernel(tuple(weights.constants.items()), split, device),
        (across, blocks, split),
        (256,),
        (*weights.arrays, weights.row_scale, bias, operand.halves, operand.scale, out,
         operand.tokens, weights.shape[0], weights.tiles, weights.steps),
        WIDE_SHARED,
    )  # fmt: skip


def _multiply_decoded(weights: Weights, operand: Operand, bias: Any, out: Any) -> None:
    tokens, columns, rows = operand.tokens, STEP * weights.steps, weights.shape[0]
    step = max(1, TILE_BYTES // (2 * ROWS * columns))
    for first in range(0, weights.tiles, step):
        count = min(step, weights.tiles - first)
        part = decoded_rows(weights, first, count)
        here = min(ROWS * count, rows - ROWS * first)
        _multiply(part, operand.halves, here, tokens, columns, out, ROWS * first)
    finish = function("decode", "finish", **weights.constants)
    finish((-(-rows // 256), tokens), (256,), (out, weights.row_scale, operand.scale, bias, rows))


def multiply_float16(matrix: Any, x: Any, out: Any) -> None:
    """Multiply by a float16 matrix (M, N), which cuBLAS does: x (T, N) float16 into out (T, M).

    `out` is of float16 or float32; sums are in float32.
    """
    _multiply(matrix, x, len(matrix), len(x), matrix.shape[1], out, 0)


def _multiply(
    matrix: Any, tokens: Any, rows: int, count: int, columns: int, out: Any, first: int
) -> None:
    """Write products of `count` tokens by some rows into columns of `out` from `first` on."""
    from cupy.cuda import cublas

    cublas.gemmEx(
        cupy().cuda.device.get_cublas_handle(),
        cublas.CUBLAS_OP_T,
        cublas.CUBLAS_OP_N,
        rows,
        count,
        columns,
        _ONE.ctypes.data,
        matrix.data.ptr,
        FLOAT16,
        columns,
        tokens.data.ptr,
        FLOAT16,
        columns,
        _ZERO.ctypes.data,
        out.data.ptr + out.itemsize * first,
        FLOAT16 if out.itemsize == 2 else FLOAT32,
        out.shape[1],
        cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )
