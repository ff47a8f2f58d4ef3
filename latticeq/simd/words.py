"""Words on lanes: reductions over coordinates, choices, rounding and conversions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import signature

from latticeq.simd.lanes import (
    DIM,
    LANES,
    Builder,
    Lanes,
    Value,
    as_lanes,
    call,
    elementwise,
    fold,
    join,
    split,
    widened,
    word,
)


def _total(x: Any) -> Any:
    total = x[:1].copy()
    for i in range(1, len(x)):
        total = total + x[i : i + 1]
    return total


@word(_total)
def total(_: Any, x: Lanes) -> Any:
    """Sum over the coordinates, added first to last."""
    return fold(x, lambda b, p, q: b.fadd(p, q) if x.is_float else b.add(p, q))


@word(lambda x: np.bitwise_xor.reduce(x, axis=0, keepdims=True))
def parity_bits(_: Any, x: Lanes) -> Any:
    """Exclusive or over the coordinates of integer lanes."""
    return fold(x, lambda b, p, q: b.xor(p, q))


@word(lambda x: np.max(x, axis=0, keepdims=True))
def largest(_: Any, x: Lanes) -> Any:
    """Maximum over the coordinates."""
    return fold(x, _maximum(x))


@word(lambda x: np.min(x, axis=0, keepdims=True))
def smallest(_: Any, x: Lanes) -> Any:
    """Minimum over the coordinates."""
    return fold(x, _minimum(x))


def _maximum(kind: Lanes) -> Callable[..., Value]:
    compare = "fcmp_ordered" if kind.is_float else "icmp_signed"
    return lambda b, p, q: b.select(getattr(b, compare)(">", p, q), p, q)


def _minimum(kind: Lanes) -> Callable[..., Value]:
    compare = "fcmp_ordered" if kind.is_float else "icmp_signed"
    return lambda b, p, q: b.select(getattr(b, compare)("<", p, q), p, q)


@word(np.maximum)
def maximum(_: Any, a: Lanes, b: Lanes) -> Any:
    """Return the elementwise larger of two."""
    return elementwise(a, _maximum(a), a, b)


@word(np.minimum)
def minimum(_: Any, a: Lanes, b: Any) -> Any:
    """Return the elementwise smaller of two; the second may be a number."""
    return elementwise(a, _minimum(a), a, b)


@word(lambda x: np.sort(x, axis=0)[-1:] + np.sort(x, axis=0)[-2:-1])
def top_two(_: Any, x: Lanes) -> Any:
    """Sum of the two largest of eight coordinates."""

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        larger, smaller = _maximum(x), _minimum(x)
        first, second, *rest = split(builder, x, args[0])
        first, second = larger(builder, first, second), smaller(builder, first, second)
        for part in rest:
            second = larger(builder, second, smaller(builder, first, part))
            first = larger(builder, first, part)
        return builder.fadd(first, second)

    return signature(Lanes(x.dtype, 1), x), codegen


@word(lambda x: np.argmax(x, axis=0, keepdims=True).astype(np.int32))
def argmax(_: Any, x: Lanes) -> Any:
    """Return the index of the largest coordinate, the first of equals."""
    result = Lanes("i32", 1)

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        best, *rest = split(builder, x, args[0])
        where = ir.Constant(result.vector, [0] * LANES)
        compare = builder.fcmp_ordered if x.is_float else builder.icmp_signed
        for i, part in enumerate(rest, start=1):
            more = compare(">", part, best)
            best = builder.select(more, part, best)
            where = builder.select(more, ir.Constant(result.vector, [i] * LANES), where)
        return where

    return signature(result, x), codegen


@word(lambda index: np.arange(DIM, dtype=np.int32)[:, None] == index)
def onehot(_: Any, index: Lanes) -> Any:
    """Return the mask of eight coordinates that is true at `index`."""
    result = Lanes("bool", DIM)

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        places = [ir.Constant(index.vector, [i] * LANES) for i in range(DIM)]
        return join(builder, result, [builder.icmp_signed("==", args[0], p) for p in places])

    return signature(result, index), codegen


def _select_plain(mask: Any, a: Any, b: Any) -> Any:
    dtype = (a if isinstance(a, np.ndarray) else b).dtype
    return np.asarray(np.where(mask, a, b)).astype(dtype)


@word(_select_plain)
def select(_: Any, mask: Lanes, a: Any, b: Any) -> Any:
    """Take `a` where the mask is true and `b` elsewhere; one of them may be a number."""
    lanes = [kind for kind in (a, b) if isinstance(kind, Lanes)]
    result = Lanes(lanes[0].dtype, max(kind.coords for kind in (mask, *lanes)))
    return elementwise(result, lambda builder, m, p, q: builder.select(m, p, q), mask, a, b)


@word(np.rint)
def rint(_: Any, x: Lanes) -> Any:
    """Round to the nearest integer, halves to even."""
    name = f"llvm.nearbyint.v{LANES}{x.dtype}"
    return elementwise(x, lambda builder, p: call(builder, name, p.type, p), x)


@word(np.abs)
def magnitude(_: Any, x: Lanes) -> Any:
    """Absolute value."""
    if x.is_float:
        name = f"llvm.fabs.v{LANES}{x.dtype}"
        return elementwise(x, lambda builder, p: call(builder, name, p.type, p), x)
    no = ir.Constant(ir.IntType(1), 0)
    name = f"llvm.abs.v{LANES}i32"
    return elementwise(x, lambda builder, p: call(builder, name, p.type, p, no), x)


@word(lambda x: np.copysign(np.ones_like(x), x))
def sign(_: Any, x: Lanes) -> Any:
    """Return 1 or -1 with the sign of each float; zero counts as its sign bit says."""
    name = f"llvm.copysign.v{LANES}{x.dtype}"
    ones = ir.Constant(x.vector, [1.0] * LANES)
    return elementwise(x, lambda builder, p: call(builder, name, p.type, ones, p), x)


@word(lambda x: x.astype(np.int32))
def to_int(_: Any, x: Lanes) -> Any:
    """Convert integral floats, or truth values, to int32."""
    result = Lanes("i32", x.coords)
    convert = "fptosi" if x.is_float else "zext"
    return elementwise(result, lambda b, p: getattr(b, convert)(p, result.vector), x)


@word(lambda x: x.astype(np.float32))
def to_float(_: Any, x: Lanes) -> Any:
    """Convert int32 lanes to float32."""
    result = Lanes("f32", x.coords)
    return elementwise(result, lambda b, p: b.sitofp(p, result.vector), x)


@word(lambda mask: bool(mask.any()))
def any_lane(_: Any, mask: Lanes) -> Any:
    """Tell whether the mask is true in any lane."""

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return signature(types.boolean, mask), codegen


@word(lambda x, index: x[index : index + 1])
def coordinate(_: Any, x: Lanes, index: Any) -> Any:
    """Return one coordinate; `index` is a literal from 0 to 7."""
    if not isinstance(index, types.IntegerLiteral):
        return None
    place = index.literal_value

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        return builder.extract_value(args[0], place)

    return signature(Lanes(x.dtype, 1), x, index), codegen


@word(lambda *parts: np.concatenate(parts))
def block(_: Any, c0: Lanes, c1: Any, c2: Any, c3: Any, c4: Any, c5: Any, c6: Any, c7: Any) -> Any:
    """Join eight single coordinates."""
    result = Lanes(c0.dtype, DIM)

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        return join(builder, result, args)

    return signature(result, c0, c1, c2, c3, c4, c5, c6, c7), codegen


@word(lambda value, like: np.full_like(like, value))
def filled(_: Any, value: Any, like: Lanes) -> Any:
    """Return lanes that all hold one number, with the dtype and coordinates of `like`."""

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        part = as_lanes(context, builder, value, args[0], like)
        return join(builder, like, widened(part, like.coords))

    return signature(like, value, like), codegen


@word(lambda like: np.arange(LANES, dtype=np.int32)[None])
def lane_index(_: Any, like: Any) -> Any:
    """Return int32 lanes that each hold their own number, 0 to 15; `like` is any lanes."""
    result = Lanes("i32", 1)

    def codegen(_: Any, __: Builder, ___: Any, ____: Any) -> Value:
        return ir.Constant(result.vector, list(range(LANES)))

    return signature(result, like), codegen


@word(lambda array, like: np.repeat(array.astype(like.dtype)[:, None], LANES, axis=1))
def spread(_: Any, array: Any, like: Lanes) -> Any:
    """Return eight coordinates from an array of eight numbers, each the same in every lane."""
    result = Lanes(like.dtype, DIM)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        data = context.make_array(array)(context, builder, args[0]).data
        parts = []
        for i in range(DIM):
            number = builder.load(builder.gep(data, [ir.Constant(ir.IntType(64), i)]))
            parts += as_lanes(context, builder, array.dtype, number, result)
        return join(builder, result, parts)

    return signature(result, array, like), codegen


@word(lambda like: np.repeat(np.arange(DIM, dtype=like.dtype)[:, None], LANES, axis=1))
def places(_: Any, like: Lanes) -> Any:
    """Return eight coordinates that each hold their own index, 0 to 7."""

    def codegen(_: Any, builder: Builder, __: Any, ___: Any) -> Value:
        parts = [ir.Constant(like.vector, [i] * LANES) for i in range(DIM)]
        return join(builder, like, parts)

    return signature(like, like), codegen
