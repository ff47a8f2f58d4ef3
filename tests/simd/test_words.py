"""Every word means in LLVM what it means in NumPy, on random lanes and at the edges."""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from latticeq import simd
from latticeq.jit import IS_JIT, kernel
from tests.simd import programs

pytestmark = pytest.mark.skipif(not IS_JIT, reason="without the JIT there is only one meaning")

EITHER = [
    programs.float_arithmetic,
    programs.float_choices,
    programs.integer_arithmetic,
    programs.bytes_in_lanes,
    programs.memory,
    programs.crossing,
]
SINGLE = [programs.single_precision, programs.addresses]
COMPILED = {program: kernel(program) for program in EITHER + SINGLE}
NOT_WORDS = {"path", "has_byte_tables"}

FLOATS = [0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-30, -1e15, 1e15, 8388607.5, -1.0, 1.0, 3.25]
INTEGERS = [0, 1, -1, 2**31 - 1, -(2**31), 255, 256, -256, 0x7F7F7F7F, -0x7F7F7F80, 0x01010101]


def in_numpy(program: Callable[..., None]) -> Callable[..., None]:
    """Return the program with every word replaced by its NumPy meaning."""
    meanings = {name: getattr(simd, name).plain for name in simd.__all__ if name not in NOT_WORDS}
    return FunctionType(program.__code__, {**vars(programs), **meanings})  # type: ignore[arg-type]


def inputs(seed: int, dtype: type) -> list[np.ndarray]:
    """Return numbers of which half are at the edges."""
    rng = np.random.default_rng(seed)
    ints = np.where(
        rng.random(160) < 0.5, rng.integers(-(2**31), 2**31, 160), rng.choice(INTEGERS, 160)
    )
    floats = np.where(rng.random(384) < 0.5, rng.normal(size=384) * 100, rng.choice(FLOATS, 384))
    return [ints.astype(np.int32), floats.astype(dtype), rng.integers(0, 256, 256, np.uint8)]


def outputs(dtype: type) -> list[np.ndarray]:
    return [np.zeros(1600, dtype), np.zeros(960, np.int32)]


@pytest.mark.parametrize("program", EITHER, ids=lambda program: program.__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_llvm_and_numpy_agree_bit_for_bit(program: Callable[..., None], dtype: type) -> None:
    for seed in range(30):
        results = []
        for run in (COMPILED[program], in_numpy(program)):
            given_inputs, stored = inputs(seed, dtype), outputs(dtype)
            run(*given_inputs, *stored)
            results.append([*given_inputs, *stored])
        for compiled, plain in zip(*results, strict=True):
            # Adding zero makes the two zeros one: which of them a maximum returns is not defined.
            assert (compiled + np.zeros_like(compiled)).tobytes() == (plain + 0).tobytes()


@pytest.mark.parametrize("seed", range(10))
def test_words_of_float32_alone(seed: int) -> None:
    results: list[Any] = []
    for run in (COMPILED[programs.single_precision], in_numpy(programs.single_precision)):
        stored = outputs(np.float32)
        ints, floats, raw = inputs(seed, np.float32)
        run(ints, np.clip(floats, -1000, 1000), raw, *stored)  # products are exact in float64
        results.append(stored)
    assert np.array_equal(results[0][0], results[1][0])


def test_words_on_addresses() -> None:
    ints, floats, raw = inputs(1, np.float32)
    results: list[Any] = []
    for run in (COMPILED[programs.addresses], in_numpy(programs.addresses)):
        stored = outputs(np.float32)
        halves, copied = np.arange(100, 200).astype(np.float16).view(np.uint16), raw.copy()
        run(ints.ctypes.data, floats.ctypes.data, copied.ctypes.data, halves, *stored)
        results.append([*stored, halves, copied])
    for compiled, plain in zip(*results, strict=True):
        assert compiled.tobytes() == plain.tobytes()


def through_halves(floats: Any, halves: Any, back: Any) -> None:
    for at in range(0, floats.size, 16):
        address = halves.ctypes.data + 2 * at
        simd.store_numbers_at(address, simd.load(floats, at), halves)
        simd.store(back, at, simd.load_numbers_at(address, halves))


def test_float16_as_numpy_has_it() -> None:
    with np.errstate(invalid="ignore"):
        every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    between = (finite[1:] + finite[:-1]) / 2  # ties, and what lies just beside them
    sides = [np.nextafter(between, np.float32(side)) for side in (-np.inf, np.inf)]
    rest = [65519.0, 65520.0, -65520.0, 1e30, 2.0**-25, 2.0**-26, np.inf, -np.inf, np.nan, 1e-40]
    floats = np.concatenate([every, between, *sides, np.float32(rest)])
    floats = np.concatenate([floats, np.zeros(-len(floats) % 16, np.float32)])
    halves, back = np.zeros(len(floats), np.uint16), np.zeros(len(floats), np.float32)
    kernel(through_halves)(floats, halves, back)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = floats.astype(np.float16)
    np.testing.assert_array_equal(halves.view(np.float16), expected)
    np.testing.assert_array_equal(back, expected.astype(np.float32))
    assert (np.signbit(back) == np.signbit(floats))[~np.isnan(floats)].all()


def test_fields_are_bits_one_after_the_other() -> None:
    given_inputs, stored = inputs(2, np.float32), outputs(np.float32)
    raw = given_inputs[2]
    addresses = (array.ctypes.data for array in given_inputs)
    COMPILED[programs.addresses](*addresses, np.zeros(100, np.uint16), *stored)
    for width, first, place in ((1, 0, 32), (2, 3, 48), (3, 7, 64), (4, 13, 80)):
        bits = np.unpackbits(raw[first : first + 2 * width], bitorder="little").reshape(16, width)
        wanted = bits @ (1 << np.arange(width))
        assert np.array_equal(stored[1][place : place + 16] & (2**width - 1), wanted)


def test_bytes_are_stored_side_by_side_and_nowhere_else() -> None:
    ints, floats, raw = inputs(3, np.float32)
    before = raw.copy()
    COMPILED[programs.memory](ints, floats, raw, *outputs(np.float32))
    assert np.array_equal(raw[3:19], (ints[:16] & 255).astype(np.uint8))
    assert np.array_equal(raw[21:37].view(np.int8), (ints[16:32] >> 24).astype(np.int8))
    others = np.r_[:3, 19:21, 37:128]
    assert np.array_equal(raw[others], before[others])


def test_one_rounding_in_fused_multiply_add() -> None:
    x, y, z = np.float32(1 + 2.0**-12), np.float32(1 - 2.0**-12), np.float32(-1)
    floats = np.repeat([x, y, z], 16).astype(np.float32)

    @kernel
    def multiply(floats: Any, out: Any) -> None:
        product = simd.fused_multiply_add(
            simd.load(floats, 0), simd.load(floats, 16), simd.load(floats, 32)
        )
        simd.store(out, 0, product)

    out = np.zeros(16, np.float32)
    multiply(floats, out)
    assert (out == np.float32(-(2.0**-24))).all()


def test_every_word_is_in_a_program() -> None:
    used = {name for program in EITHER + SINGLE for name in program.__code__.co_names}
    assert set(simd.__all__) - NOT_WORDS <= used


def test_the_path_names_a_way_to_multiply_bytes() -> None:
    assert simd.path() in {"avx512vnni", "avx2", "neon-dotprod", "generic"}
