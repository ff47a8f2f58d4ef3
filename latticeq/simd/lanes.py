"""The type of sixteen lanes, its operators, and the pieces that words are generated from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.extending import intrinsic, lower_builtin, register_model
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

LANES = 16
DIM = 8

LLVM = {
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
    "i32": ir.IntType(32),
    "bool": ir.IntType(1),
}
SCALAR = {"f32": types.float32, "f64": types.float64, "i32": types.int32}
FROM_SCALAR = {
    types.float32: "f32",
    types.float64: "f64",
    types.int32: "i32",
    types.uint32: "i32",
}


class Lanes(types.Type):
    """The numba type of a value of 16 lanes: its dtype and its number of coordinates."""

    def __init__(self, dtype: str, coords: int) -> None:
        self.dtype, self.coords = dtype, coords
        super().__init__(f"Lanes({dtype}, {coords})")

    @property
    def vector(self) -> ir.VectorType:
        """The LLVM vector of one coordinate."""
        return ir.VectorType(LLVM[self.dtype], LANES)

    @property
    def is_float(self) -> bool:
        """Whether the lanes are floating-point numbers."""
        return self.dtype in {"f32", "f64"}


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lanes) -> None:
        backend = kind.vector if kind.coords == 1 else ir.ArrayType(kind.vector, kind.coords)
        super().__init__(manager, kind, backend)


Value = Any  # an llvmlite value: llvmlite carries no types of its own
Builder = Any


def split(builder: Builder, kind: Lanes, value: Value) -> list[Value]:
    """Return the vectors of a value of `Lanes`, one a coordinate."""
    if kind.coords == 1:
        return [value]
    return [builder.extract_value(value, i) for i in range(kind.coords)]


def join(builder: Builder, kind: Lanes, parts: Sequence[Value]) -> Value:
    """Return the value of `Lanes` that has these vectors: undo `split`."""
    if kind.coords == 1:
        return parts[0]
    whole = ir.Constant(ir.ArrayType(kind.vector, kind.coords), ir.Undefined)
    for i, part in enumerate(parts):
        whole = builder.insert_value(whole, part, i)
    return whole


def splat(builder: Builder, vector: ir.VectorType, scalar: Value) -> Value:
    """Return the vector whose lanes all hold one number."""
    empty = ir.Constant(vector, ir.Undefined)
    zero = ir.Constant(ir.IntType(32), 0)
    first = builder.insert_element(empty, scalar, zero)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, empty, mask)


def call(builder: Builder, name: str, result: ir.Type, *operands: Value) -> Value:
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [value.type for value in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)


def widened(parts: list[Value], coords: int) -> list[Value]:
    """Repeat a single coordinate, as NumPy broadcasts ``(1, 16)`` over ``(8, 16)``."""
    return parts * coords if len(parts) == 1 else parts


def as_lanes(context: Any, builder: Builder, given: Any, value: Value, like: Lanes) -> list[Value]:
    """Turn an operand, `Lanes` or number, into the list of its vectors."""
    if isinstance(given, Lanes):
        return split(builder, given, value)
    scalar = context.cast(builder, value, given, SCALAR[like.dtype])
    return [splat(builder, like.vector, scalar)]


def is_number(kind: Any) -> bool:
    """Tell whether a numba type is that of a plain number, which operators spread over lanes."""
    return isinstance(kind, types.Number | types.IntegerLiteral)


_FLOAT = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}
_INTEGER = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.xor: "xor",
    operator.lshift: "shl",
    operator.rshift: "ashr",
}
_LOGIC = {operator.and_, operator.or_, operator.xor}
_COMPARE = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}


def _apply(builder: Builder, op: Any, kind: Lanes, left: Value, right: Value) -> Value:
    if op in _COMPARE:
        compare = builder.fcmp_ordered if kind.is_float else builder.icmp_signed
        return compare(_COMPARE[op], left, right)
    return getattr(builder, (_FLOAT if kind.is_float else _INTEGER)[op])(left, right)


def _define_operator(op: Any) -> None:
    @infer_global(op)
    class Typing(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            if len(args) != 2 or kws:
                return None
            lanes = [kind for kind in args if isinstance(kind, Lanes)]
            if not lanes or not all(isinstance(kind, Lanes) or is_number(kind) for kind in args):
                return None
            if len({kind.dtype for kind in lanes}) != 1:
                return None
            if op not in _COMPARE and op not in (_FLOAT if lanes[0].is_float else _INTEGER):
                return None
            if lanes[0].dtype == "bool" and (op not in _LOGIC or len(lanes) != 2):
                return None
            coords = max(kind.coords for kind in lanes)
            result = Lanes("bool" if op in _COMPARE else lanes[0].dtype, coords)
            return signature(result, *args)

    def lower(context: Any, builder: Builder, sig: Any, args: Sequence[Value]) -> Value:
        like = next(kind for kind in sig.args if isinstance(kind, Lanes))
        left, right = (
            widened(as_lanes(context, builder, kind, value, like), sig.return_type.coords)
            for kind, value in zip(sig.args, args, strict=True)
        )
        parts = [_apply(builder, op, like, a, b) for a, b in zip(left, right, strict=True)]
        return join(builder, sig.return_type, parts)

    for kinds in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(op, *kinds)(lower)


for _op in {**_FLOAT, **_INTEGER, **_COMPARE}:
    _define_operator(_op)


def word(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Pair a word's NumPy meaning with its LLVM code generator.

    The result is the meaning without the JIT, and otherwise an intrinsic for kernels to call, whose
    attribute ``plain`` is the meaning.
    """

    def pair(generator: Callable[..., Any]) -> Any:
        if numba.config.DISABLE_JIT:
            return plain
        made = intrinsic(generator)
        made.plain = plain
        return made

    return pair


def elementwise(result: Lanes, emit: Callable[..., Value], *kinds: Any) -> Any:
    """Return the signature and code of a word that acts on each coordinate by itself."""

    def codegen(context: Any, builder: Builder, sig: Any, args: Sequence[Value]) -> Value:
        columns = [
            widened(as_lanes(context, builder, kind, value, result), result.coords)
            for kind, value in zip(sig.args, args, strict=True)
        ]
        parts = [emit(builder, *operands) for operands in zip(*columns, strict=True)]
        return join(builder, result, parts)

    return signature(result, *kinds), codegen


def fold(kind: Lanes, emit: Callable[..., Value]) -> Any:
    """Return the signature and code of a reduction over the coordinates, first to last."""
    result = Lanes(kind.dtype, 1)

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        first, *rest = split(builder, kind, args[0])
        for part in rest:
            first = emit(builder, first, part)
        return first

    return signature(result, kind), codegen
