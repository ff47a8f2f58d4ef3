"""Words on packed lanes: a 32-bit lane seen as four bytes, and tables looked up by lane.

Byte arithmetic wraps modulo 256. The dot product of bytes is the one word that no plain IR turns
into the right instruction, so it is chosen from the features of the CPU that Numba compiles for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.types.containers import UniTuple
from numba.core.typing.templates import signature

from latticeq.simd.lanes import (
    LANES,
    Builder,
    Lanes,
    Value,
    call,
    elementwise,
    join,
    split,
    word,
)

_I32 = ir.IntType(32)
_BYTES = ir.VectorType(ir.IntType(8), 4 * LANES)
_INT = Lanes("i32", 1)


@cache
def features() -> frozenset[str]:
    """Return the features of the CPU that kernels are compiled for."""
    named = numba.config.CPU_FEATURES
    if numba.config.CPU_NAME == "generic":
        named = named or ""
    if named is not None:
        return frozenset(word[1:] for word in named.split(",") if word.startswith("+"))
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


def has_byte_tables() -> bool:
    """Tell whether `permute_bytes` is one instruction here."""
    return {"avx512vbmi", "avx512bw"} <= features()


def path() -> str:
    """Name the way bytes are multiplied here, best first: what `latticeq env` reports.

    One of ``avx512vnni``, ``avx2``, ``neon-dotprod``, ``generic``, or ``python`` without the JIT.
    """
    if numba.config.DISABLE_JIT:
        return "python"
    if {"avx512vnni", "avx512bw"} <= features():
        return "avx512vnni"
    if "avx2" in features():
        return "avx2"
    return "neon-dotprod" if "dotprod" in features() else "generic"


def _bytes(x: Any) -> Any:
    return np.ascontiguousarray(x).view(np.uint8)


def _bytewise(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an operation on uint8 arrays into one on int32 lanes."""
    return lambda *lanes: plain(*map(_bytes, lanes)).astype(np.uint8).view(np.int32)


def _on_bytes(emit: Callable[..., Value], *kinds: Any) -> Any:
    def through(builder: Builder, *operands: Value) -> Value:
        seen = [builder.bitcast(value, _BYTES) for value in operands]
        return builder.bitcast(emit(builder, *seen), _INT.vector)

    return elementwise(_INT, through, *kinds)


@word(_bytewise(lambda a, b: a + b))
def add_bytes(_: Any, a: Lanes, b: Lanes) -> Any:
    """Add bytes modulo 256."""
    return _on_bytes(lambda builder, p, q: builder.add(p, q), a, b)


@word(_bytewise(lambda a, b: a - b))
def sub_bytes(_: Any, a: Lanes, b: Lanes) -> Any:
    """Subtract bytes modulo 256."""
    return _on_bytes(lambda builder, p, q: builder.sub(p, q), a, b)


@word(_bytewise(np.maximum))
def max_bytes(_: Any, a: Lanes, b: Lanes) -> Any:
    """Return the larger of unsigned bytes."""
    return _on_bytes(_choose(">"), a, b)


@word(_bytewise(np.minimum))
def min_bytes(_: Any, a: Lanes, b: Lanes) -> Any:
    """Return the smaller of unsigned bytes."""
    return _on_bytes(_choose("<"), a, b)


def _choose(relation: str) -> Callable[..., Value]:
    return lambda b, p, q: b.select(b.icmp_unsigned(relation, p, q), p, q)


@word(_bytewise(lambda a, b: np.where(a == b, 255, 0)))
def equal_bytes(_: Any, a: Lanes, b: Lanes) -> Any:
    """Return bytes of ones where two bytes are equal, of zeros elsewhere."""
    return _on_bytes(lambda bd, p, q: bd.sext(bd.icmp_unsigned("==", p, q), _BYTES), a, b)


@word(_bytewise(lambda a: np.where(a > 127, 255, 0)))
def sign_bytes(_: Any, a: Lanes) -> Any:
    """Return bytes of ones where a signed byte is negative, of zeros elsewhere."""
    zero = ir.Constant(_BYTES, [0] * 4 * LANES)
    return _on_bytes(lambda bd, p: bd.sext(bd.icmp_signed("<", p, zero), _BYTES), a)


@word(
    lambda a, byte: (_bytes(a).reshape(-1, 4)[:, byte].astype(np.int32) * 0x01010101).reshape(
        a.shape
    )
)
def repeat_byte(_: Any, a: Lanes, byte: Any) -> Any:
    """Return lanes whose four bytes all equal one byte of `a`, named by a literal from 0 to 3."""
    if not isinstance(byte, types.IntegerLiteral):
        return None
    chosen = byte.literal_value
    return _moved_bytes(lambda lane, _: 4 * lane + chosen, a, byte)


@word(
    lambda a, byte: np.repeat(
        np.ascontiguousarray(_bytes(a).reshape(-1, 4)[:, byte]).view(np.int32), 4
    ).reshape(a.shape)
)
def gather_byte(_: Any, a: Lanes, byte: Any) -> Any:
    """Return in each lane one byte, a literal from 0 to 3, of each of the four lanes of its group.

    Groups are lanes 0 to 3, 4 to 7 and so on; the four lanes of a group become equal.
    """
    if not isinstance(byte, types.IntegerLiteral):
        return None
    chosen = byte.literal_value
    return _moved_bytes(lambda lane, i: 4 * (lane // 4 * 4 + i) + chosen, a, byte)


@word(lambda a: _bytes(a).reshape(-1, 4, 4).swapaxes(1, 2).copy().view(np.int32).reshape(a.shape))
def transpose_bytes(_: Any, a: Lanes) -> Any:
    """Transpose the four by four bytes of each four lanes, grouped as in `gather_byte`."""
    return _moved_bytes(lambda lane, i: 4 * (lane // 4 * 4 + i) + lane % 4, a)


def _moved_bytes(source: Callable[[int, int], int], a: Lanes, *literals: Any) -> Any:
    """Return the signature and code of a word that moves bytes: `source` of each lane's each."""
    places = [source(lane, i) for lane in range(LANES) for i in range(4)]

    def move(builder: Builder, part: Value, *_: Value) -> Value:
        seen = builder.bitcast(part, _BYTES)
        mask = ir.Constant(ir.VectorType(_I32, 4 * LANES), places)
        return builder.bitcast(builder.shuffle_vector(seen, seen, mask), _INT.vector)

    return elementwise(a, move, a, *literals)


@word(lambda table, index: _bytes(table)[0][_bytes(index) & 63].view(np.int32))
def permute_bytes(_: Any, table: Lanes, index: Lanes) -> Any:
    """Return for each byte of `index` the byte (mod 64) of `table` that it names.

    One instruction where `has_byte_tables`; elsewhere a loop, and arithmetic is the better way.
    """
    if has_byte_tables():
        name = "llvm.x86.avx512.permvar.qi.512"
        return _on_bytes(lambda builder, p, q: call(builder, name, _BYTES, p, q), table, index)

    def one_by_one(builder: Builder, entries: Value, places: Value) -> Value:
        found = ir.Constant(_BYTES, ir.Undefined)
        for at in range(4 * LANES):
            place = ir.Constant(_I32, at)
            index = builder.and_(builder.extract_element(places, place), ir.IntType(8)(63))
            entry = builder.extract_element(entries, builder.zext(index, _I32))
            found = builder.insert_element(found, entry, place)
        return found

    return _on_bytes(one_by_one, table, index)


@word(lambda x: np.bitwise_count(x.view(np.uint32)).astype(np.int32))
def count_ones(_: Any, x: Lanes) -> Any:
    """Return the number of one bits of each lane."""
    name = f"llvm.ctpop.v{LANES}i32"
    return elementwise(x, lambda builder, p: call(builder, name, p.type, p), x)


@word(lambda a, bits: ((a.view(np.uint32) << bits) | (a.view(np.uint32) >> (32 - bits))).view("i4"))
def rotate(_: Any, a: Lanes, bits: Any) -> Any:
    """Rotate each 32-bit lane left by a literal number of bits."""
    if not isinstance(bits, types.IntegerLiteral):
        return None
    name = f"llvm.fshl.v{LANES}i32"

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        count = ir.Constant(_INT.vector, [bits.literal_value] * LANES)
        return call(builder, name, args[0].type, args[0], args[0], count)

    return signature(_INT, a, bits), codegen


@word(lambda a, bits: (a.view(np.uint32) >> np.asarray(bits, np.uint32)).view(np.int32))
def shift_right(_: Any, a: Lanes, bits: Any) -> Any:
    """Shift each lane right, filling with zeros; `bits` is a number or lanes of them."""
    return elementwise(_INT, lambda builder, p, q: builder.lshr(p, q), a, bits)


def _dot_plain(total: Any, unsigned: Any, signed: Any) -> Any:
    u = _bytes(unsigned).astype(np.int32).reshape(*unsigned.shape, 4)
    s = _bytes(signed).view(np.int8).astype(np.int32).reshape(*signed.shape, 4)
    return total + (u * s).sum(axis=-1, dtype=np.int32)


@word(_dot_plain)
def dot_bytes(_: Any, total: Lanes, unsigned: Lanes, signed: Any) -> Any:
    """Add to each lane the dot product of four unsigned bytes and four signed ones.

    The total may have eight coordinates: an operand of one is spread over them. Exact while the
    unsigned bytes are at most 127: one instruction of AVX2 adds two products in 16 bits, and NEON
    takes both operands as signed.
    """
    return elementwise(total, _DOT.get(path(), _dot_generic), total, unsigned, signed)


@word(_dot_plain)
def dot_wide_bytes(_: Any, total: Lanes, unsigned: Lanes, signed: Any) -> Any:
    """Do what `dot_bytes` does for unsigned bytes up to 255, at twice its cost where it must."""
    return elementwise(total, _exact_dot(), total, unsigned, signed)


def _exact_dot() -> Callable[..., Value]:
    """Return the code of one `dot_wide_bytes`."""
    narrow = _DOT.get(path(), _dot_generic)

    def split_high_bit(builder: Builder, start: Value, u: Value, s: Value) -> Value:
        low, high = (ir.Constant(_INT.vector, [bits] * LANES) for bits in (0x7F7F7F7F, 0x01010101))
        seven = ir.Constant(_INT.vector, [7] * LANES)
        top = builder.and_(builder.lshr(u, seven), high)
        zero = ir.Constant(_INT.vector, [0] * LANES)
        counted = builder.shl(narrow(builder, zero, top, s), seven)
        return builder.add(narrow(builder, start, builder.and_(u, low), s), counted)

    return narrow if path() in {"avx512vnni", "generic"} else split_high_bit


def _dot_thrice_plain(a: Any, b: Any, c: Any, u: Any, v: Any, w: Any, x: Any) -> Any:
    return tuple(_dot_plain(t, m, x) for t, m in ((a, u), (b, v), (c, w)))


@word(_dot_thrice_plain)
def dot_wide_bytes_thrice(
    _: Any, a: Lanes, b: Lanes, c: Lanes, u: Lanes, v: Lanes, w: Lanes, x: Lanes
) -> Any:
    """Do `dot_wide_bytes` for three totals and unsigned operands with the same signed ones.

    In this order a coordinate of `x` is in a register for three instructions, not for the whole
    step: 24 totals and their operands then fit 32 registers.
    """
    emit = _exact_dot()
    result = UniTuple(a, 3)

    def codegen(context: Any, builder: Builder, sig: Any, args: Sequence[Value]) -> Value:
        totals = [split(builder, a, value) for value in args[:3]]
        for i, signed in enumerate(split(builder, x, args[6])):
            for total, unsigned in zip(totals, args[3:6], strict=True):
                total[i] = emit(builder, total[i], unsigned, signed)
        return context.make_tuple(builder, result, [join(builder, a, parts) for parts in totals])

    return signature(result, a, b, c, u, v, w, x), codegen


def _dot_avx512vnni(builder: Builder, total: Value, u: Value, s: Value) -> Value:
    name = "llvm.x86.avx512.vpdpbusd.512"
    # LLVM 22 types the operands as what they are; earlier releases as 32-bit lanes.
    kind = _BYTES if llvm.llvm_version_info[0] >= 22 else _INT.vector
    return call(
        builder, name, _INT.vector, total, builder.bitcast(u, kind), builder.bitcast(s, kind)
    )


def _parts(builder: Builder, value: Value, count: int) -> list[Value]:
    """Cut sixteen lanes into `count` shorter vectors."""
    size = LANES // count
    index = ir.VectorType(_I32, size)
    cuts = [ir.Constant(index, list(range(i * size, (i + 1) * size))) for i in range(count)]
    return [builder.shuffle_vector(value, value, cut) for cut in cuts]


def _joined(builder: Builder, parts: list[Value]) -> Value:
    while len(parts) > 1:
        size = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(_I32, size), list(range(size)))
        parts = [
            builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _dot_avx2(builder: Builder, total: Value, u: Value, s: Value) -> Value:
    byte, short, word32 = (ir.VectorType(ir.IntType(256 // n), n) for n in (32, 16, 8))
    ones = ir.Constant(short, [1] * 16)
    sums = []
    for left, right in zip(_parts(builder, u, 2), _parts(builder, s, 2), strict=True):
        operands = builder.bitcast(left, byte), builder.bitcast(right, byte)
        pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", short, *operands)
        sums.append(call(builder, "llvm.x86.avx2.pmadd.wd", word32, pairs, ones))
    return builder.add(total, _joined(builder, sums))


def _dot_neon(builder: Builder, total: Value, u: Value, s: Value) -> Value:
    byte = ir.VectorType(ir.IntType(8), 16)
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    sums = [
        call(builder, name, part.type, part, builder.bitcast(a, byte), builder.bitcast(b, byte))
        for part, a, b in zip(*(_parts(builder, v, 4) for v in (total, u, s)), strict=True)
    ]
    return _joined(builder, sums)


def _dot_generic(builder: Builder, total: Value, u: Value, s: Value) -> Value:
    for byte in range(4):
        up = ir.Constant(_INT.vector, [24 - 8 * byte] * LANES)
        down = ir.Constant(_INT.vector, [24] * LANES)
        a = builder.lshr(builder.shl(u, up), down)
        b = builder.ashr(builder.shl(s, up), down)
        total = builder.add(total, builder.mul(a, b))
    return total


_DOT = {"avx512vnni": _dot_avx512vnni, "avx2": _dot_avx2, "neon-dotprod": _dot_neon}


@word(lambda table, index: np.take(table, index[0] & (LANES - 1), axis=1))
def lookup(_: Any, table: Lanes, index: Lanes) -> Any:
    """Return in each lane the entry of a table of sixteen that `index` (mod 16) names."""

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        entries, places = args
        if "avx512f" in features() and table.dtype == "f32":
            name = "llvm.x86.avx512.permvar.sf.512"
            return call(builder, name, table.vector, entries, places)
        found = ir.Constant(table.vector, ir.Undefined)
        for lane in range(LANES):
            place = ir.Constant(_I32, lane)
            chosen = builder.and_(builder.extract_element(places, place), ir.Constant(_I32, 15))
            entry = builder.extract_element(entries, chosen)
            found = builder.insert_element(found, entry, place)
        return found

    return signature(table, table, index), codegen


@word(lambda a, b, c: (a.astype(np.float64) * b + c).astype(np.float32))
def fused_multiply_add(_: Any, a: Lanes, b: Lanes, c: Lanes) -> Any:
    """Return a·b + c, rounded once (the NumPy meaning may differ in the last place)."""
    name = f"llvm.fma.v{LANES}f32"
    return elementwise(a, lambda bd, p, q, r: call(bd, name, p.type, p, q, r), a, b, c)


@word(lambda value, like: np.full((1, LANES), value, np.int32))
def broadcast(_: Any, value: Any, like: Any) -> Any:
    """Return lanes that all hold one 32-bit integer; `like` is any lanes of int32."""
    return elementwise(_INT, lambda builder, p, q: p, value, like)
