"""Words that combine lanes, or coordinates, with each other: butterflies and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature

from latticeq.simd.lanes import (
    DIM,
    LANES,
    SCALAR,
    Builder,
    Lanes,
    Value,
    call,
    elementwise,
    join,
    split,
    word,
)
from latticeq.simd.packed import features


def _butterfly_plain(x: Any, distance: int) -> Any:
    place = np.arange(len(x))
    other = x[place ^ distance]
    return np.where((place & distance)[:, None] == 0, x + other, other - x)


@word(_butterfly_plain)
def butterfly(_: Any, x: Lanes, distance: Any) -> Any:
    """Turn coordinates a and b, `distance` (a literal 1, 2 or 4) apart, into a + b and a - b."""
    if not isinstance(distance, types.IntegerLiteral) or x.coords != DIM or not x.is_float:
        return None
    step = distance.literal_value

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        parts = split(builder, x, args[0])
        for i in range(DIM):
            if i & step == 0:
                a, b = parts[i], parts[i | step]
                parts[i], parts[i | step] = builder.fadd(a, b), builder.fsub(a, b)
        return join(builder, x, parts)

    return signature(x, x, distance), codegen


@word(lambda x, distance: _butterfly_plain(x.T, distance).T)
def butterfly_lanes(_: Any, x: Lanes, distance: Any) -> Any:
    """Turn lanes a and b, `distance` (a literal 1, 2, 4 or 8) apart, into a + b and a - b."""
    if not isinstance(distance, types.IntegerLiteral) or not x.is_float:
        return None
    step = distance.literal_value
    index = ir.VectorType(ir.IntType(32), LANES)
    other = ir.Constant(index, [lane ^ step for lane in range(LANES)])
    signs = ir.Constant(x.vector, [-1.0 if lane & step else 1.0 for lane in range(LANES)])
    # The product is exact, so that fusing it with the sum saves an instruction and rounds alike.
    fused = f"llvm.fma.v{LANES}{x.dtype}" if "fma" in features() else None

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        parts = []
        for part in split(builder, x, args[0]):
            swapped = builder.shuffle_vector(part, part, other)
            if fused:
                parts.append(call(builder, fused, x.vector, part, signs, swapped))
            else:
                parts.append(builder.fadd(swapped, builder.fmul(part, signs)))
        return join(builder, x, parts)

    return signature(x, x, distance), codegen


@word(lambda x: np.tile(x.reshape(-1, 4, 4).sum(axis=1, dtype=np.int32), (1, 4)))
def sum_fours(_: Any, x: Lanes) -> Any:
    """Return in each int32 lane the sum of it and of those 4, 8 and 12 lanes on, in a circle."""
    if x.dtype != "i32":
        return None
    index = ir.VectorType(ir.IntType(32), LANES)

    def sum_one(builder: Builder, value: Value) -> Value:
        for step in (8, 4):
            other = ir.Constant(index, [lane ^ step for lane in range(LANES)])
            value = builder.add(value, builder.shuffle_vector(value, value, other))
        return value

    return elementwise(x, sum_one, x)


def _over_lanes(name: str, x: Lanes) -> Any:
    """Return the signature and code of a reduction of int32 lanes to one number."""
    if x != Lanes("i32", 1):
        return None

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        return call(builder, f"llvm.vector.reduce.{name}.v{LANES}i32", ir.IntType(32), args[0])

    return signature(SCALAR["i32"], x), codegen


@word(lambda x: x.max())
def largest_lane(_: Any, x: Lanes) -> Any:
    """Return the largest of sixteen int32 lanes as a number."""
    return _over_lanes("smax", x)


@word(lambda x: x.sum(dtype=np.int32))
def total_lanes(_: Any, x: Lanes) -> Any:
    """Return the sum of sixteen int32 lanes as a number."""
    return _over_lanes("add", x)
