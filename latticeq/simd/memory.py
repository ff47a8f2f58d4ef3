"""Words that move lanes from and to arrays, transposing 8-blocks on the way."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import signature

from latticeq.simd.lanes import (
    DIM,
    FROM_SCALAR,
    LANES,
    Builder,
    Lanes,
    Value,
    join,
    split,
    word,
)


def _pointer(context: Any, builder: Builder, kind: Any, array: Value, first: Value) -> Value:
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [first])


def align(vector: ir.VectorType) -> int:
    """Return the alignment that NumPy promises: that of one element."""
    return 8 if isinstance(vector.element, ir.DoubleType) else 4


def _load(builder: Builder, pointer: Value, vector: ir.VectorType, count: int) -> Value:
    wide = ir.VectorType(vector.element, count)
    loaded = builder.load(builder.bitcast(pointer, wide.as_pointer()))
    loaded.align = align(vector)
    return loaded


@word(lambda array, first: np.array(array.reshape(-1)[first : first + LANES])[None])
def load(_: Any, array: Any, first: Any) -> Any:
    """Load sixteen consecutive elements of a contiguous array, from flat index `first`."""
    result = Lanes(FROM_SCALAR[array.dtype], 1)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        return _load(builder, pointer, result.vector, LANES)

    return signature(result, array, types.intp), codegen


def _at(kind: Any, count: int) -> Callable[[int], Any]:
    return lambda address: np.array((kind * count).from_address(int(address)))[None]


def _load_at(result: Lanes) -> Any:
    """Return the signature and code of a load of sixteen lanes from an address."""

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        pointer = builder.inttoptr(args[0], result.vector.element.as_pointer())
        return _load(builder, pointer, result.vector, LANES)

    return signature(result, types.intp), codegen


@word(_at(ctypes.c_int32, LANES))
def load_ints_at(_: Any, address: Any) -> Any:
    """Load sixteen int32 from an address that is aligned to four bytes and kept alive."""
    return _load_at(Lanes("i32", 1))


@word(_at(ctypes.c_float, LANES))
def load_floats_at(_: Any, address: Any) -> Any:
    """Load sixteen float32 from an address, as `load_ints_at` does."""
    return _load_at(Lanes("f32", 1))


@word(lambda address: None)
def prefetch_at(_: Any, address: Any) -> Any:
    """Ask for the cache line of an address, which need not be valid, to be brought to L2."""

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        flag, kind = ir.IntType(32), ir.IntType(8).as_pointer()
        pointer = builder.inttoptr(args[0], kind)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [kind, flag, flag, flag]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [pointer, flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    return signature(types.none, types.intp), codegen


def _peek_plain(address: int, count: int) -> Any:
    raw = np.array((ctypes.c_uint8 * count).from_address(int(address)))
    return raw.view(f"<u{count}")[0].astype(np.int64)


@word(_peek_plain)
def peek_at(_: Any, address: Any, count: Any) -> Any:
    """Return a literal number of bytes, 1, 2, 4 or 8, at any address as one int64."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    kind = ir.IntType(8 * count.literal_value)

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        loaded = builder.load(builder.inttoptr(args[0], kind.as_pointer()))
        loaded.align = 1
        wide = ir.IntType(64)
        return loaded if kind == wide else builder.zext(loaded, wide)

    return signature(types.int64, types.intp, count), codegen


def _fields_plain(address: int, width: int) -> Any:
    raw = np.array((ctypes.c_uint8 * (2 * width)).from_address(int(address)), np.int32)
    lane = width * np.arange(LANES)
    first, shift = lane // 8, lane % 8
    above = np.where(shift + width > 8, np.append(raw, 0)[first + 1], 0)
    return ((raw[first] | (above << 8)) >> shift).astype(np.int32)[None]


@word(_fields_plain)
def fields_at(_: Any, address: Any, width: Any) -> Any:
    """Load sixteen fields of a literal number of bits, 1 to 4 or 8, from 2 * width bytes.

    The lowest bits of lane l are field l; what is above them is not zero: the rest of the field's
    byte or of the one after it. `lookup` does not mind where its table is repeated.
    """
    if not isinstance(width, types.IntegerLiteral):
        return None
    bits, byte = width.literal_value, ir.IntType(8)
    result = Lanes("i32", 1)
    places = []  # in each lane the byte where its field starts, the next one, and zeros
    for lane in range(LANES):
        first = bits * lane // 8
        is_split = bits * lane % 8 + bits > 8
        zero = 2 * bits
        places += [first, first + 1 if is_split else zero, zero, zero]

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        kind = ir.VectorType(byte, 2 * bits)
        loaded = builder.load(builder.inttoptr(args[0], kind.as_pointer()))
        loaded.align = 1
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 4 * LANES), places)
        spread_out = builder.shuffle_vector(loaded, ir.Constant(kind, [0] * 2 * bits), mask)
        shifts = ir.Constant(result.vector, [bits * lane % 8 for lane in range(LANES)])
        return builder.lshr(builder.bitcast(spread_out, result.vector), shifts)

    return signature(result, types.intp, width), codegen


@word(
    lambda address: np.unpackbits(
        np.array((ctypes.c_uint8 * 2).from_address(int(address))), bitorder="little"
    ).astype(bool)[None]
)
def mask_at(_: Any, address: Any) -> Any:
    """Load sixteen bits from two bytes: lanes of bool, the lowest bit first."""
    result = Lanes("bool", 1)

    def codegen(_: Any, builder: Builder, __: Any, args: Sequence[Value]) -> Value:
        loaded = builder.load(builder.inttoptr(args[0], ir.IntType(LANES).as_pointer()))
        loaded.align = 1
        return builder.bitcast(loaded, result.vector)

    return signature(result, types.intp), codegen


def _fits(array: Any, x: Lanes, coords: int) -> bool:
    """Tell whether lanes may be stored in an array: otherwise the kernel does not compile."""
    return FROM_SCALAR.get(array.dtype) == x.dtype and x.coords == coords


def _store_plain(array: Any, first: int, x: Any) -> None:
    array.reshape(-1)[first : first + LANES] = x[0]


@word(_store_plain)
def store(_: Any, array: Any, first: Any, x: Lanes) -> Any:
    """Store sixteen consecutive elements of a contiguous array, from flat index `first`."""
    if not _fits(array, x, 1):
        return None

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        target = builder.bitcast(pointer, x.vector.as_pointer())
        builder.store(args[2], target).align = align(x.vector)
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, x), codegen


def _store_bytes_plain(array: Any, first: int, x: Any) -> None:
    array.reshape(-1)[first : first + LANES] = x[0].astype(array.dtype)


@word(_store_bytes_plain)
def store_bytes(_: Any, array: Any, first: Any, x: Lanes) -> Any:
    """Store sixteen int32 lanes as consecutive bytes; values must fit."""
    if x != Lanes("i32", 1) or array.dtype.bitwidth != 8:
        return None

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        row = builder.trunc(args[2], ir.VectorType(ir.IntType(8), LANES))
        builder.store(row, builder.bitcast(pointer, row.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, x), codegen


@word(
    lambda array, first: np.array(
        array.reshape(-1)[first : first + DIM * LANES].reshape(LANES, DIM).T
    )
)
def load_blocks(_: Any, array: Any, first: Any) -> Any:
    """Load sixteen consecutive 8-blocks, transposed: lane l of coordinate i is block l's i-th."""
    result = Lanes(FROM_SCALAR[array.dtype], DIM)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        rows = []
        for i in range(DIM):
            step = ir.Constant(args[1].type, LANES * i)
            rows.append(_load(builder, builder.gep(pointer, [step]), result.vector, LANES))
        return join(builder, result, _untangle(builder, rows))

    return signature(result, array, types.intp), codegen


@word(
    lambda array, first: np.array(
        array.reshape(-1)[first : first + DIM * LANES].reshape(LANES, DIM).T, np.int32
    )
)
def load_byte_blocks(_: Any, array: Any, first: Any) -> Any:
    """Load sixteen 8-blocks of uint8 as int32 lanes, transposed as `load_blocks` does."""
    result = Lanes("i32", DIM)
    byte = ir.IntType(8)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        wide = ir.VectorType(byte, DIM * LANES)
        loaded = builder.load(builder.bitcast(pointer, wide.as_pointer()))
        loaded.align = 1
        parts = []
        for i in range(DIM):
            lanes = ir.Constant(
                ir.VectorType(ir.IntType(32), LANES), list(range(i, DIM * LANES, DIM))
            )
            parts.append(builder.zext(builder.shuffle_vector(loaded, loaded, lanes), result.vector))
        return join(builder, result, parts)

    return signature(result, array, types.intp), codegen


def _store_byte_blocks_plain(array: Any, first: int, x: Any) -> None:
    array.reshape(-1)[first : first + DIM * LANES] = x.T.reshape(-1).astype(array.dtype)


@word(_store_byte_blocks_plain)
def store_byte_blocks(_: Any, array: Any, first: Any, x: Lanes) -> Any:
    """Store int32 lanes as sixteen 8-blocks of bytes; values must fit."""
    byte = ir.IntType(8)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        rows = [
            builder.trunc(row, ir.VectorType(byte, LANES))
            for row in _tangle(builder, split(builder, x, args[2]))
        ]
        for i, row in enumerate(rows):
            target = builder.gep(pointer, [ir.Constant(args[1].type, LANES * i)])
            builder.store(row, builder.bitcast(target, row.type.as_pointer())).align = 1
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, x), codegen


def _untangle(builder: Builder, rows: list[Value]) -> list[Value]:
    """De-interleave 128 values: three rounds that part the even from the odd places.

    Each round takes one bit off the coordinate's index, so value 8 l + i ends in vector i, lane l.
    """
    index = ir.VectorType(ir.IntType(32), LANES)
    evens = ir.Constant(index, list(range(0, 2 * LANES, 2)))
    odds = ir.Constant(index, list(range(1, 2 * LANES, 2)))
    groups = [rows]
    for _ in range(3):
        groups = [
            [builder.shuffle_vector(g[j], g[j + 1], mask) for j in range(0, len(g), 2)]
            for g in groups
            for mask in (evens, odds)
        ]
    # Bits came off lowest first, so group number b2 b1 b0 read backwards is the coordinate.
    return [groups[int(f"{i:03b}"[::-1], 2)][0] for i in range(DIM)]


def _store_blocks_plain(array: Any, first: int, x: Any) -> None:
    array.reshape(-1)[first : first + DIM * LANES] = x.T.reshape(-1)


@word(_store_blocks_plain)
def store_blocks(_: Any, array: Any, first: Any, x: Lanes) -> Any:
    """Store sixteen 8-blocks, the inverse of `load_blocks`."""
    if not _fits(array, x, DIM):
        return None

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        for i, row in enumerate(_tangle(builder, split(builder, x, args[2]))):
            step = ir.Constant(args[1].type, LANES * i)
            target = builder.bitcast(builder.gep(pointer, [step]), x.vector.as_pointer())
            builder.store(row, target).align = align(x.vector)
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, x), codegen


def _tangle(builder: Builder, parts: list[Value]) -> list[Value]:
    """Interleave eight vectors: the three rounds of `_untangle` undone."""
    index = ir.VectorType(ir.IntType(32), LANES)
    half = LANES // 2
    low = ir.Constant(index, [k // 2 + (k % 2) * LANES for k in range(LANES)])
    high = ir.Constant(index, [half + k // 2 + (k % 2) * LANES for k in range(LANES)])
    groups = [[parts[int(f"{i:03b}"[::-1], 2)]] for i in range(DIM)]
    for _ in range(3):
        groups = [
            [
                builder.shuffle_vector(even, odd, mask)
                for even, odd in zip(groups[j], groups[j + 1], strict=True)
                for mask in (low, high)
            ]
            for j in range(0, len(groups), 2)
        ]
    return groups[0]


def _load_strided_plain(array: Any, first: int, stride: int) -> Any:
    flat = array.reshape(-1)
    return np.stack([flat[first + i * stride :][:LANES] for i in range(DIM)])


@word(_load_strided_plain)
def load_strided(_: Any, array: Any, first: Any, stride: Any) -> Any:
    """Load eight coordinates of sixteen lanes each, `stride` elements apart."""
    result = Lanes(FROM_SCALAR[array.dtype], DIM)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        parts = []
        for _i in range(DIM):
            parts.append(_load(builder, pointer, result.vector, LANES))
            pointer = builder.gep(pointer, [args[2]])
        return join(builder, result, parts)

    return signature(result, array, types.intp, types.intp), codegen


def _store_strided_plain(array: Any, first: int, stride: int, x: Any) -> None:
    for i, row in enumerate(x):
        array.reshape(-1)[first + i * stride : first + i * stride + LANES] = row


@word(_store_strided_plain)
def store_strided(_: Any, array: Any, first: Any, stride: Any, x: Lanes) -> Any:
    """Store each coordinate's sixteen lanes, one coordinate `stride` elements after the other."""
    if not _fits(array, x, x.coords):
        return None

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        for part in split(builder, x, args[3]):
            target = builder.bitcast(pointer, x.vector.as_pointer())
            builder.store(part, target).align = align(x.vector)
            pointer = builder.gep(pointer, [args[2]])
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, types.intp, x), codegen


def _store_threes_plain(array: Any, first: int, a: Any, b: Any, c: Any) -> None:
    array.reshape(-1)[first : first + 3 * LANES] = np.concatenate([a, b, c]).T.reshape(-1)


@word(_store_threes_plain)
def store_threes(_: Any, array: Any, first: Any, a: Lanes, b: Any, c: Any) -> Any:
    """Store sixteen triples, the lanes of three single coordinates side by side."""
    if not _fits(array, a, 1) or a != b or a != c:
        return None
    index = ir.IntType(32)

    def codegen(context: Any, builder: Builder, _: Any, args: Sequence[Value]) -> Value:
        pointer = _pointer(context, builder, array, args[0], args[1])
        parts = args[2:]
        both = ir.Constant(ir.VectorType(index, 2 * LANES), list(range(2 * LANES)))
        ab = builder.shuffle_vector(parts[0], parts[1], both)
        c_c = builder.shuffle_vector(parts[2], parts[2], both)
        order = [LANES * (i % 3) + i // 3 for i in range(3 * LANES)]
        mask = ir.Constant(ir.VectorType(index, 3 * LANES), order)
        row = builder.shuffle_vector(ab, c_c, mask)
        builder.store(row, builder.bitcast(pointer, row.type.as_pointer())).align = align(a.vector)
        return context.get_dummy_value()

    return signature(types.none, array, types.intp, a, b, c), codegen
