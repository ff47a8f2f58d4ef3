"""Kernels that use every word, each storing all its results: `test_words` runs them both ways.

A program is an ordinary kernel body. Every one takes ``ints`` (160 int32), ``floats`` (384 float32
or float64), ``raw`` (256 uint8) and two outputs, ``f`` and ``i``, and stores sixteen numbers at a
time, one group after the other.
"""

from typing import Any

import numpy as np

from latticeq.simd import (
    add_bytes,
    any_lane,
    argmax,
    bits_float,
    block,
    broadcast,
    butterfly,
    butterfly_lanes,
    coordinate,
    count_ones,
    dot_bytes,
    dot_wide_bytes,
    dot_wide_bytes_thrice,
    equal_bytes,
    fields_at,
    filled,
    filled_rows,
    float_bits,
    fused_multiply_add,
    gather_byte,
    lane_index,
    largest,
    largest_lane,
    load,
    load_blocks,
    load_byte_blocks,
    load_floats_at,
    load_ints_at,
    load_numbers_at,
    load_rows,
    load_strided,
    lookup,
    magnitude,
    mask_at,
    max_bytes,
    max_lanes,
    maximum,
    min_bytes,
    minimum,
    onehot,
    parity_bits,
    peek_at,
    permute_bytes,
    places,
    prefetch_at,
    put_number_at,
    repeat_byte,
    rint,
    rotate,
    select,
    shift_right,
    sign,
    sign_bytes,
    smallest,
    spread,
    spread_at,
    store,
    store_blocks,
    store_byte_blocks,
    store_bytes,
    store_numbers_at,
    store_strided,
    store_threes,
    sub_bytes,
    sum_fours,
    sum_lanes,
    to_double,
    to_float,
    to_int,
    top_two,
    total,
    total_lanes,
    transpose_bytes,
)


def float_arithmetic(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    x, y, z = load_blocks(floats, 0), load_blocks(floats, 128), load(floats, 256)
    store_blocks(f, 0, x + y)
    store_blocks(f, 128, x - z)
    store_blocks(f, 256, z * y)
    store_blocks(f, 384, x / (magnitude(y) + 1))
    store_blocks(f, 512, 2 * x - 0.5)
    store_blocks(f, 640, rint(y))
    store_blocks(f, 768, magnitude(x) + sign(y))
    store_blocks(f, 896, maximum(x, y))
    store_blocks(f, 1024, minimum(x, y))
    store_blocks(f, 1152, minimum(x, 1))
    store_strided(f, 1280, 16, x * x)
    store_blocks(f, 1408, 3 - y)


def float_choices(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    x, y, z = load_blocks(floats, 0), load_blocks(floats, 128), load(floats, 256)
    store(f, 0, total(x))
    store(f, 16, largest(x))
    store(f, 32, smallest(x))
    store(f, 48, top_two(x))
    store(f, 64, coordinate(x, 5))
    store(f, 80, select(z < 0, z, 1))
    store_blocks(f, 128, select(x < y, x, y))
    store_blocks(f, 256, select(z >= 1, x, -1))
    store_blocks(f, 384, select((x <= y) & (x > z), x, y))
    store_blocks(f, 512, select((x == y) | (x != z), filled(0.25, x), y))
    store_blocks(f, 640, select((x > 0) ^ (y > 0), x, y))
    store_blocks(f, 768, places(x) + x)
    store_blocks(f, 896, spread(floats[:8], x) + y)
    store_blocks(f, 1024, filled(np.inf, x))
    c0, c7 = coordinate(x, 0), coordinate(x, 7)
    store_blocks(f, 1152, block(c7, c0, z, c0, c7, z, z, c0))
    store_blocks(f, 1280, select(onehot(argmax(x)), y, x))
    store(i, 0, argmax(x))
    if any_lane(z > 1e14):
        store(i, 16, lane_index(z))
    store(i, 32, to_int(z < 0) * 3 + to_int(filled(-7.0, z)))
    store(i, 48, lane_index(z))


def integer_arithmetic(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    a, b, n = load(ints, 0), load(ints, 16), load_blocks(ints, 32)
    store(i, 0, a + b)
    store(i, 16, a - b)
    store(i, 32, a * b)
    store(i, 48, a & b)
    store(i, 64, a | b)
    store(i, 80, a ^ b)
    store(i, 96, a << 5)
    store(i, 112, a >> 7)
    store(i, 128, shift_right(a, 11))
    store(i, 144, shift_right(a, lane_index(a) * 2))
    store(i, 160, rotate(a, 16))
    store(i, 176, rotate(a, 9))
    store(i, 192, count_ones(a))
    store(i, 208, parity_bits(n))
    store(i, 224, largest(n))
    store(i, 240, smallest(n))
    store(i, 256, total(n))
    store(i, 272, argmax(n))
    store(i, 288, select(a < b, a, -5))
    store(i, 304, select(a == a + 0, b, a) + to_int(a >= b))
    store(i, 320, broadcast(ints[3], a))
    store(i, 336, maximum(a, b) ^ minimum(a, b))
    store_blocks(i, 384, n + a)
    store_blocks(i, 512, magnitude(n >> 1) + places(n))
    store_blocks(i, 640, to_int(n > 0))


def bytes_in_lanes(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    a, b = load(ints, 0), load(ints, 16)
    store(i, 0, add_bytes(a, b))
    store(i, 16, sub_bytes(a, b))
    store(i, 32, max_bytes(a, b))
    store(i, 48, min_bytes(a, b))
    store(i, 64, equal_bytes(a, b))
    store(i, 80, equal_bytes(a, a & 0x00FFFF00))
    store(i, 96, sign_bytes(a))
    store(i, 112, repeat_byte(a, 0))
    store(i, 128, repeat_byte(a, 1))
    store(i, 144, repeat_byte(a, 2))
    store(i, 160, repeat_byte(a, 3))
    store(i, 176, permute_bytes(a, b))
    store(i, 192, lookup(a, b))
    store(i, 208, dot_bytes(a, a & 0x7F7F7F7F, b))
    store(i, 224, dot_bytes(b, filled(0x7F7F7F7F, a), filled(-0x7F7F7F80, a)))
    store(i, 240, dot_wide_bytes(a, a, b))
    store(i, 256, dot_wide_bytes(b, filled(-1, a), filled(-0x7F7F7F80, a)))
    store(i, 272, dot_wide_bytes(b, filled(-1, a), filled(0x7F7F7F7F, a)))
    store(i, 288, gather_byte(a, 0))
    store(i, 304, gather_byte(a, 1))
    store(i, 320, gather_byte(a, 2))
    store(i, 336, gather_byte(a, 3))
    store(i, 352, transpose_bytes(a))
    many = load_blocks(ints, 32)
    store_blocks(i, 384, dot_bytes(many, a & 0x7F7F7F7F, many))
    store_blocks(i, 512, dot_wide_bytes(many, a, many))
    store_blocks(i, 640, dot_wide_bytes(many, many, b))
    first, second, third = dot_wide_bytes_thrice(many, many + 1, many + 2, a, b, a ^ b, many)
    store_blocks(i, 768, first + second * 5 + third * 3)


def memory(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    bytes_ = load_byte_blocks(raw, 7)
    store_blocks(i, 0, bytes_)
    store_strided(i, 128, 16, bytes_)
    store_byte_blocks(raw, 128, bytes_)
    store_bytes(raw, 3, load(ints, 0) & 255)
    store_bytes(raw.view(np.int8), 21, load(ints, 16) >> 24)
    store(i, 256, load(ints, 3))
    store(f, 0, load(floats, 5))
    store_blocks(f, 16, load_blocks(floats, 9))


def crossing(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    x, z, a, b = load_strided(floats, 3, 24), load(floats, 256), load(ints, 0), load(ints, 16)
    store_blocks(f, 0, x)
    store_blocks(f, 128, butterfly(x, 1))
    store_blocks(f, 256, butterfly(x, 2))
    store_blocks(f, 384, butterfly(x, 4))
    store_blocks(f, 512, butterfly_lanes(x, 1))
    store_blocks(f, 640, butterfly_lanes(x, 2))
    store_blocks(f, 768, butterfly_lanes(x, 4))
    store_blocks(f, 896, butterfly_lanes(x, 8))
    store(f, 1024, butterfly_lanes(z, 8))
    store_threes(f, 1040, z, z + 1, z * 2)
    store_threes(i, 0, a, b, a ^ b)
    store_blocks(i, 128, load_strided(ints, 1, 20))
    i[48] = largest_lane(a)
    i[49] = total_lanes(a)
    store(i, 64, sum_fours(b))


def single_precision(ints: Any, floats: Any, raw: Any, f: Any, i: Any) -> None:
    store_blocks(f, 128, to_float(load_blocks(ints, 32)))
    x, y, index = load(floats, 0), load(floats, 16), load(ints, 0)
    store(f, 0, lookup(x, index))
    store(f, 16, fused_multiply_add(rint(x), rint(y), rint(load(floats, 32))))
    store(i, 0, float_bits(x))
    store(i, 16, to_int(to_double(rint(x)) * 3.0))
    store(f, 32, bits_float(float_bits(x) ^ 1))
    f[48] = sum_lanes(rint(x))
    f[49] = max_lanes(y)
    store_strided(f, 64, 16, filled_rows(floats[3], 3))
    store_strided(f, 256, 16, load_rows(floats, 5, 19, filled_rows(0, 4)))


def addresses(at_ints: int, at_floats: int, at_raw: int, halves: Any, f: Any, i: Any) -> None:
    store(i, 0, load_ints_at(at_ints + 8))
    store(f, 0, load_floats_at(at_floats + 4))
    prefetch_at(at_raw)
    i[16] = peek_at(at_raw + 1, 1)
    store(f, 16, load_numbers_at(halves.ctypes.data + 6, halves))
    store(f, 32, load_numbers_at(at_floats + 8, f))
    store_numbers_at(halves.ctypes.data + 64, load_floats_at(at_floats), halves)
    store_numbers_at(at_raw + 96, load_floats_at(at_floats), f)
    put_number_at(at_raw + 160, f[20], f)
    put_number_at(halves.ctypes.data + 96, f[21] + f[36], halves)
    store_strided(f, 128, 16, spread_at(at_floats, 12, filled_rows(0, 5)))
    i[17] = peek_at(at_raw + 3, 2)
    i[18] = peek_at(at_raw + 5, 4) >> 1
    i[19] = peek_at(at_raw + 9, 8) >> 32
    store(i, 32, fields_at(at_raw, 1))
    store(i, 48, fields_at(at_raw + 3, 2))
    store(i, 64, fields_at(at_raw + 7, 3))
    store(i, 80, fields_at(at_raw + 13, 4))
    store(i, 336, fields_at(at_raw + 17, 8))
    store(i, 352, select(mask_at(at_raw + 5), load_ints_at(at_ints), 7))
    rows = spread_at(at_ints, 12, float_bits(filled_rows(0, (7, 7, 7)))) ^ load_ints_at(at_ints)
    store_strided(i, 96, 16, rows)
    store_strided(i, 144, 16, gather_byte(rows, 2))
    store_strided(i, 192, 16, repeat_byte(rows, 1))
    store_strided(i, 240, 16, transpose_bytes(rows))
    store_strided(i, 288, 16, sum_fours(rows))
