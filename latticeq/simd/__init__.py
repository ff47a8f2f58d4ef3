"""A small vector vocabulary: sixteen lanes at a time, one LLVM vector a coordinate.

A *lane* holds one 8-block (or one row), so a kernel written in these words treats sixteen blocks at
once and reads as its mathematics. A value is a `Lanes`: 16 lanes of one dtype, with 1 coordinate
(`<16 x T>`) or 8 (`[8 x <16 x T>]`). Operators work elementwise and spread one coordinate over
eight, as NumPy broadcasts ``(1, 16)`` over ``(8, 16)``.

Every word has two meanings that the tests hold equal: NumPy on arrays of shape ``(coords, 16)``,
which is what runs under ``NUMBA_DISABLE_JIT=1`` and what to read first, and LLVM instructions. There
is no fast-math and no fused multiply-add unless a word says so: floats agree bit for bit.
"""

from latticeq.simd.memory import (
    load,
    load_blocks,
    load_byte_blocks,
    store,
    store_blocks,
    store_byte_blocks,
)
from latticeq.simd.packed import (
    add_bytes,
    broadcast,
    count_ones,
    dot_bytes,
    equal_bytes,
    fused_multiply_add,
    lookup,
    max_bytes,
    min_bytes,
    path,
    repeat_byte,
    rotate,
    shift_right,
    sign_bytes,
    sub_bytes,
)
from latticeq.simd.words import (
    any_lane,
    argmax,
    block,
    coordinate,
    filled,
    largest,
    magnitude,
    maximum,
    minimum,
    onehot,
    parity_bits,
    places,
    rint,
    select,
    smallest,
    spread,
    to_float,
    to_int,
    top_two,
    total,
)

__all__ = [
    "add_bytes",
    "any_lane",
    "argmax",
    "block",
    "broadcast",
    "coordinate",
    "count_ones",
    "dot_bytes",
    "equal_bytes",
    "filled",
    "fused_multiply_add",
    "largest",
    "load",
    "load_blocks",
    "load_byte_blocks",
    "lookup",
    "magnitude",
    "max_bytes",
    "maximum",
    "min_bytes",
    "minimum",
    "onehot",
    "parity_bits",
    "path",
    "places",
    "repeat_byte",
    "rint",
    "rotate",
    "select",
    "shift_right",
    "sign_bytes",
    "smallest",
    "spread",
    "store",
    "store_blocks",
    "store_byte_blocks",
    "sub_bytes",
    "to_float",
    "to_int",
    "top_two",
    "total",
]
