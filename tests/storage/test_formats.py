"""Every format is a bijection between quantized matrices and bytes, equal to its definition."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.d8_fields import join_d8, split_d8
from latticeq.codes.nested import CELLS
from latticeq.errors import FormatError, InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.nestquant import is_radix_q
from latticeq.quantizers.scalar import Int8, Int8Tensor
from latticeq.storage.bits import pack_digits, pack_int8
from latticeq.storage.checkpoint import FORMATS, describe, pack, packed, stored_shapes
from latticeq.storage.radix import check_radix, pack_radix, radix_width, unpack_radix
from latticeq.transforms.rotation import Rotation
from reference import bits as reference
from reference import pyramid
from tests.storage.packed_models import random_digits, random_grid, random_nest, random_pvq

RADIX_Q = [q for q in range(2, 64) if is_radix_q(q)]
SHAPES = st.tuples(st.integers(1, 35), st.integers(1, 5))
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = {"U8": "uint8", "F16": "float16", "F32": "float32"}


@st.composite
def nests(draw: st.DrawFn) -> QuantizedTensor:
    """Draw codewords of any cell, q and shape, in mixed radix where there is one."""
    cell = draw(st.sampled_from(CELLS))
    q = draw(st.integers(2, 63))
    q -= q % 2 if cell in {"cubic", "d8"} else 0
    is_radix = cell != "d8" and is_radix_q(q) and draw(st.booleans())
    return random_nest(
        draw(st.integers(1, 35)),
        8 * draw(st.integers(1, 5)),
        q,
        draw(st.integers(1, 8 if cell == "d8" else 16)),
        rotate=draw(st.sampled_from(["none", "hadamard"])),
        cell=cell,
        packing="radix" if is_radix else "digits",
    )


@st.composite
def grids(draw: st.DrawFn) -> QuantizedTensor:
    """Draw codes of any grid, group, shape and rotation."""
    kind = draw(st.sampled_from(["int4", "nf4", "mxfp4", "nvfp4"]))
    fixed = {"mxfp4": 32, "nvfp4": 16}.get(kind)
    group = fixed or draw(st.integers(1, 40))
    n = group * draw(st.integers(1, 3)) if fixed else draw(st.integers(group, 90))
    block = draw(st.sampled_from([None, *(size for size in (1, 2, 4) if n % size == 0)]))
    is_symmetric = kind != "int4" or draw(st.booleans())
    rotation = Rotation(n, draw(SEEDS), block=block)
    return random_grid(draw(st.integers(1, 35)), n, kind, group, is_symmetric, rotation)


@st.composite
def pyramids(draw: st.DrawFn) -> QuantizedTensor:
    """Draw words of a pyramid code of any group, from a few bits an index to several limbs."""
    group, blocks = draw(st.integers(2, 40)), draw(st.integers(1, 3))
    rotation = Rotation(group * blocks, draw(SEEDS))
    code = draw(st.integers(1, 60)), draw(st.integers(0, 8))
    return random_pvq(draw(st.integers(1, 35)), group * blocks, group, *code, rotation)


@st.composite
def int8_rows(draw: st.DrawFn) -> QuantizedTensor:
    """Draw rows of int8."""
    shape = draw(st.integers(1, 35)), 4 * draw(st.integers(1, 9))
    values = np.random.default_rng(draw(SEEDS)).integers(-127, 128, shape).astype(np.int8)
    return Int8Tensor(shape, values, np.linspace(0, 3, len(values)).astype(np.float16))


@settings(max_examples=300 if IS_JIT else 20)
@given(st.one_of(nests(), nests(), grids(), pyramids(), int8_rows()))
def test_every_matrix_comes_back_from_its_bytes(matrix: QuantizedTensor) -> None:
    entry, arrays = describe(matrix), pack(matrix)
    FORMATS[entry["format"]].check_entry(entry)
    shapes = stored_shapes(entry)
    assert {name: (DTYPES[dtype], shape) for name, (dtype, shape) in shapes.items()} == {
        name: (array.dtype.name, array.shape) for name, array in arrays.items()
    }
    found = packed(matrix)
    found.check()
    assert found.nbytes == matrix.nbytes
    assert found.rotation == matrix.rotation
    again = found.unpack()
    assert describe(again) == entry
    assert again.rotated().tobytes() == matrix.rotated().tobytes()
    for name, array in pack(again).items():
        assert array.tobytes() == arrays[name].tobytes()


@settings(max_examples=50 if IS_JIT else 10)
@given(SHAPES, st.sampled_from(RADIX_Q), SEEDS)
def test_mixed_radix_is_its_definition(shape: tuple[int, int], q: int, seed: int) -> None:
    digits = np.random.default_rng(seed).integers(0, q, (*shape, 8)).astype(np.uint8)
    digits[-1] = q - 1  # the largest integers
    found = pack_radix(digits, q)
    assert found.shape == (-(-shape[0] // 16), radix_width(q, shape[1]))
    assert np.array_equal(found, reference.pack_radix(digits, q))
    assert np.array_equal(unpack_radix(found, q, shape[1]), pack_digits(digits, q))
    check_radix(found, q, shape[1])


@settings(max_examples=50 if IS_JIT else 10)
@given(st.integers(1, 20), st.integers(1, 5), st.sampled_from(RADIX_Q), st.data())
def test_an_integer_out_of_range_is_seen(
    rows: int, blocks: int, q: int, data: st.DataObject
) -> None:
    groups, row = -(-rows // 16), data.draw(st.integers(0, 16 * -(-rows // 16) - 1))
    pair = data.draw(st.integers(0, -(-blocks // 2) - 1))
    count = 8 if 2 * pair + 1 == blocks else 16
    bits = (q**count - 1).bit_length()
    value = data.draw(st.integers(q**count, 2**bits - 1)) if q**count < 2**bits else None
    assert value is not None  # no q here is a power of two
    strings = [0] * (-(-blocks // 2))
    strings[pair] = value << (bits * (row % 16))
    widths = [
        2 * (q ** (8 if 2 * i + 1 == blocks else 16) - 1).bit_length() for i in range(len(strings))
    ]
    raw = b"".join(s.to_bytes(w, "little") for s, w in zip(strings, widths, strict=True))
    found = np.zeros((groups, len(raw)), np.uint8)
    found[row // 16] = np.frombuffer(raw, np.uint8)
    for look in (check_radix, unpack_radix):
        with pytest.raises(FormatError, match=rf"not below {q}\*\*16"):
            look(found, q, blocks)


def test_mixed_radix_of_a_power_of_two_is_refused() -> None:
    for q in (2, 4, 8, 16, 17):
        with pytest.raises(InputError, match="use packing='digits'"):
            pack_radix(np.zeros((1, 1, 8), np.uint8), q)


@pytest.mark.parametrize("q", range(2, 64, 2))
def test_words_of_d8_are_their_definition(q: int, rng: np.random.Generator) -> None:
    digits = random_digits(rng, (19, 3), q, "d8")
    index = rng.integers(0, 8, (19, 3), dtype=np.uint8)
    fields = join_d8(digits, index, q)
    assert fields.max() < q
    assert np.array_equal(pack_digits(fields, q), reference.pack_d8(digits, index, q))
    again, indices = split_d8(fields, q)
    assert np.array_equal(again, digits)
    assert np.array_equal(indices, index)


@given(SEEDS)
def test_every_word_of_d8_is_a_codeword(seed: int) -> None:
    fields = np.random.default_rng(seed).integers(0, 14, (50, 8), dtype=np.uint8)
    digits, index = split_d8(fields, 14)
    assert np.array_equal(join_d8(digits, index, 14), fields)


def test_grids_and_int8_are_their_definition(rng: np.random.Generator) -> None:
    tensor = random_grid(19, 21, "int4", 5)
    codes = np.zeros((19, 24), np.uint8)
    codes[:, :21] = tensor.codes
    assert np.array_equal(pack(tensor)["codes"], reference.pack_digits(codes.reshape(19, 3, 8), 16))
    values = Int8().quantize(rng.normal(size=(19, 20)))
    assert np.array_equal(pack(values)["int8"], reference.pack_int8(values.values))
    assert np.array_equal(pack(values)["int8"], pack_int8(values.values))


@pytest.mark.parametrize(("group", "pulses", "gain_bits"), [(16, 58, 4), (8, 3, 1), (40, 40, 5)])
def test_words_of_pyramid_codes_are_their_definition(
    group: int, pulses: int, gain_bits: int
) -> None:
    tensor = random_pvq(19, 3 * group, group, pulses, gain_bits)
    index = [[pyramid.rank(word) for word in row] for row in tensor.words]
    arrays, bits = pack(tensor), tensor.code.index_bits
    assert np.array_equal(arrays["index"], reference.pack_wide(index, bits))
    gains = [[int(level) for level in row] for row in tensor.gain_index]
    assert np.array_equal(arrays["gain_index"], reference.pack_wide(gains, gain_bits))


def test_what_has_no_format_is_refused() -> None:
    with pytest.raises(InputError, match="formats are for matrices"):
        packed(Int8().quantize(np.ones((2, 3, 4))))
    with pytest.raises(InputError, match="a str has no format; formats are voronoi, "):
        pack("a tensor")  # type: ignore[arg-type]
