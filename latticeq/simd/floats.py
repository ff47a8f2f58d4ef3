"""Words on the formats of floats: their bits, double precision, and numbers kept in float16.

A cache keeps float32 or float16; the latter are arrays of uint16, since kernels never reckon with
them: they become float32 as they are loaded. The words on numbers take the dtype from an array, so
that one kernel serves both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.types.containers import UniTuple
from numba.core.typing.templates import signature

from latticeq.simd.lanes import (
    DIM,
    LANES,
    LLVM,
    SCALAR,
    Builder,
    Lanes,
    Value,
    as_lanes,
    elementwise,
    join,
    splat,
    word,
)
from latticeq.simd.memory import align
from latticeq.simd.packed import features

_SHORT = ir.VectorType(ir.IntType(16), LANES)
_HALF = ir.VectorType(ir.HalfType(), LANES)
_FLOAT, _INT = Lanes("f32", 1), Lanes("i32", 1)


@word(lambda x: x.view(np.int32))
def float_bits(_: Any, x: Lanes) -> Any:
    """Return the bits of float32 lanes as int32."""
    result = Lanes("i32", x.coords)
    return elementwise(result, lambda b, p: b.bitcast(p, result.vector), x)


@word(lambda x: x.view(np.float32))
def bits_float(_: Any, x: Lanes) -> Any:
    """Return the float32 lanes whose bits these are: undo `float_bits`."""
    result = Lanes("f32", x.coords)
    return elementwise(result, lambda b, p: b.bitcast(p, result.vector), x)


@word(lambda x: x.astype(np.float64))
def to_double(_: Any, x: Lanes) -> Any:
    """Convert float32 lanes to float64."""
    result = Lanes("f64", x.coords)
    return elementwise(result, lambda b, p: b.fpext(p, result.vector), x)


def _halving(combine: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
    """Return the NumPy meaning of a word that joins the lanes of one coordinate in pairs."""

    def joined(x: Any) -> Any:
        parts = x[0]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = combine(parts[:half], parts[half:])
        return parts[0]

    return joined


def _halve(x: Lanes, emit: Callable[..., Value]) -> Any:
    """Return the signature and code of such a word."""

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        value, half = args[0], LANES // 2
        while half:
            index = ir.VectorType(ir.IntType(32), half)
            low, high = (
                builder.shuffle_vector(value, value, ir.Constant(index, list(range(at, at + half))))
                for at in (0, half)
            )
            value = emit(builder, low, high)
            half //= 2
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return signature(SCALAR[x.dtype], x), codegen


@word(_halving(np.add))
def sum_lanes(_: Any, x: Lanes) -> Any:
    """Add the float lanes of one coordinate: l and l + 8, then l and l + 4, and so on."""
    return _halve(x, lambda builder, p, q: builder.fadd(p, q))


@word(_halving(np.maximum))
def max_lanes(_: Any, x: Lanes) -> Any:
    """Return the largest of the float lanes of one coordinate."""
    return _halve(x, lambda b, p, q: b.select(b.fcmp_ordered(">", p, q), p, q))


def _has_halves() -> bool:
    """Tell whether LLVM converts float16 by instructions; else it calls a function of a library."""
    return bool({"f16c", "avx512f", "neon", "fullfp16"} & features())


def _all(number: int) -> Value:
    return ir.Constant(_INT.vector, [number] * LANES)


def _widen(builder: Builder, bits: Value) -> Value:
    """Turn sixteen float16, as 16-bit integers, to float32."""
    if _has_halves():
        return builder.fpext(builder.bitcast(bits, _HALF), _FLOAT.vector)
    wide = builder.zext(bits, _INT.vector)
    body = builder.shl(builder.and_(wide, _all(0x7FFF)), _all(13))
    # The exponent is 2**112 too low there, which a product mends, subnormal numbers included.
    rebased = builder.fmul(
        builder.bitcast(body, _FLOAT.vector), ir.Constant(_FLOAT.vector, [2.0**112] * LANES)
    )
    endless = builder.or_(body, _all(0x7F800000))
    is_finite = builder.icmp_signed("<", body, _all(0x7C00 << 13))
    value = builder.select(is_finite, builder.bitcast(rebased, _INT.vector), endless)
    sign = builder.shl(builder.and_(wide, _all(0x8000)), _all(16))
    return builder.bitcast(builder.or_(value, sign), _FLOAT.vector)


def _narrow(builder: Builder, value: Value) -> Value:
    """Round sixteen float32 to the nearest float16, ties to even, as 16-bit integers."""
    if _has_halves():
        return builder.bitcast(builder.fptrunc(value, _HALF), _SHORT)
    bits = builder.bitcast(value, _INT.vector)
    body = builder.and_(bits, _all(0x7FFFFFFF))
    # Normal numbers: move the exponent, and carry what the bits cut off amount to.
    odd = builder.and_(builder.lshr(body, _all(13)), _all(1))
    moved = builder.add(body, _all(0xFFF - (112 << 23)))
    normal = builder.lshr(builder.add(moved, odd), _all(13))
    # Subnormal ones: a half, whose last bit is theirs, is added, and the sum rounds by itself.
    half = ir.Constant(_FLOAT.vector, [0.5] * LANES)
    shifted = builder.fadd(builder.bitcast(body, _FLOAT.vector), half)
    tiny = builder.sub(builder.bitcast(shifted, _INT.vector), _all(126 << 23))
    is_tiny = builder.icmp_signed("<", body, _all(113 << 23))
    is_large = builder.icmp_signed(">=", body, _all(143 << 23))
    is_nan = builder.icmp_signed(">", body, _all(255 << 23))
    largest = builder.select(is_nan, _all(0x7E00), _all(0x7C00))
    chosen = builder.select(is_large, largest, builder.select(is_tiny, tiny, normal))
    sign = builder.and_(builder.lshr(bits, _all(16)), _all(0x8000))
    return builder.trunc(builder.or_(chosen, sign), _SHORT)


def _is_kept(array: Any) -> bool:
    return getattr(array, "dtype", None) in {types.float32, types.uint16}


def _seen_at(address: int, array: Any, count: int) -> Any:
    """Return a writable view of the numbers at an address, whose dtype is that of an array."""
    size = count * array.dtype.itemsize
    raw = np.frombuffer((ctypes.c_uint8 * size).from_address(int(address)), np.uint8)
    return raw.view(np.float16 if array.dtype == np.uint16 else array.dtype)


@word(lambda address, array: _seen_at(address, array, LANES).astype(np.float32)[None])
def load_numbers_at(_: Any, address: Any, array: Any) -> Any:
    """Load sixteen numbers as float32: float32 ones, or float16 ones if the array is of uint16.

    The array tells the dtype and nothing else; the address is aligned to one number.
    """
    if not _is_kept(array):
        return None
    is_half = array.dtype == types.uint16
    vector = _SHORT if is_half else _FLOAT.vector

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        loaded = builder.load(builder.inttoptr(args[0], vector.as_pointer()))
        loaded.align = 2 if is_half else align(vector)
        return _widen(builder, loaded) if is_half else loaded

    return signature(_FLOAT, types.intp, array), codegen


def _store_numbers_plain(address: int, x: Any, array: Any) -> None:
    with np.errstate(over="ignore"):
        _seen_at(address, array, LANES)[:] = x[0]


@word(_store_numbers_plain)
def store_numbers_at(_: Any, address: Any, x: Lanes, array: Any) -> Any:
    """Store sixteen float32 as numbers of the dtype that `load_numbers_at` reads."""
    if not _is_kept(array) or x != _FLOAT:
        return None
    is_half = array.dtype == types.uint16

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        value = _narrow(builder, args[1]) if is_half else args[1]
        target = builder.inttoptr(args[0], value.type.as_pointer())
        builder.store(value, target).align = 2 if is_half else align(value.type)
        return context.get_dummy_value()

    return signature(types.none, types.intp, x, array), codegen


def _put_plain(address: int, x: Any, array: Any) -> None:
    with np.errstate(over="ignore"):
        _seen_at(address, array, 1)[0] = x


@word(_put_plain)
def put_number_at(_: Any, address: Any, x: Any, array: Any) -> Any:
    """Store one float32 as a number of the dtype that `load_numbers_at` reads."""
    if not _is_kept(array) or x != types.float32:
        return None
    is_half = array.dtype == types.uint16

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        value = args[1]
        if is_half:
            many = _narrow(builder, splat(builder, _FLOAT.vector, value))
            value = builder.extract_element(many, ir.Constant(ir.IntType(32), 0))
        target = builder.inttoptr(args[0], value.type.as_pointer())
        builder.store(value, target).align = 2 if is_half else 4
        return context.get_dummy_value()

    return signature(types.none, types.intp, x, array), codegen


def _rows_plain(value: Any, count: Any) -> Any:
    rows = len(count) if isinstance(count, tuple) else count
    return np.full((rows, LANES), value, np.float32)


@word(_rows_plain)
def filled_rows(_: Any, value: Any, count: Any) -> Any:
    """Return float32 lanes of a number of coordinates, 1 to 8, that all hold one number.

    The number is a literal, or given as any tuple of so many entries, so that who calls a kernel
    chooses it.
    """
    if isinstance(count, types.IntegerLiteral):
        rows = count.literal_value
    elif isinstance(count, UniTuple):
        rows = len(count)
    else:
        return None
    if not 1 <= rows <= DIM:
        return None
    result = Lanes("f32", rows)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        part = as_lanes(context, builder, value, args[0], result)
        return join(builder, result, part * result.coords)

    return signature(result, value, count), codegen


def _spread_at_plain(address: int, stride: int, like: Any) -> Any:
    one = np.empty(0, like.dtype)
    numbers = [_seen_at(address + i * stride, one, 1)[0] for i in range(len(like))]
    return np.repeat(np.asarray(numbers)[:, None], LANES, axis=1)


@word(_spread_at_plain)
def spread_at(_: Any, address: Any, stride: Any, like: Lanes) -> Any:
    """Return as many coordinates as `like` has, each a number that all its lanes hold.

    The numbers, float32 or int32 as those of `like`, lie at an address, `stride` bytes apart.
    """
    if like.dtype not in {"f32", "i32"}:
        return None

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        address, parts = args[0], []
        for _ in range(like.coords):
            loaded = builder.load(builder.inttoptr(address, LLVM[like.dtype].as_pointer()))
            loaded.align = 4
            parts.append(splat(builder, like.vector, loaded))
            address = builder.add(address, args[1])
        return join(builder, like, parts)

    return signature(like, types.intp, types.intp, like), codegen


def _load_rows_plain(array: Any, first: int, stride: int, like: Any) -> Any:
    flat = array.reshape(-1)
    rows = [flat[first + i * stride : first + i * stride + LANES] for i in range(len(like))]
    return np.array(rows)


@word(_load_rows_plain)
def load_rows(_: Any, array: Any, first: Any, stride: Any, like: Lanes) -> Any:
    """Load as many coordinates as `like` has: what `store_strided` has stored."""
    if LLVM.get(like.dtype) is None or SCALAR[like.dtype] != array.dtype:
        return None

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        data = context.make_array(array)(context, builder, args[0]).data
        pointer, parts = builder.gep(data, [args[1]]), []
        for _ in range(like.coords):
            loaded = builder.load(builder.bitcast(pointer, like.vector.as_pointer()))
            loaded.align = align(like.vector)
            parts.append(loaded)
            pointer = builder.gep(pointer, [args[2]])
        return join(builder, like, parts)

    return signature(like, array, types.intp, types.intp, like), codegen
