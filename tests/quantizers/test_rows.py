"""Rows under nested codes: byte by byte as the reference, and back."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.nested import NestedCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers.rows import NestRowCodec, RowCodec
from reference import rows as reference

FOUR = (0.1942, 0.2423, 0.2892, 0.3771)
CODECS = {
    "q16 k4": NestRowCodec(NestedCode(16, FOUR), 64),
    "q14 k4": NestRowCodec(NestedCode(14, FOUR), 72),
    "q16 k8": NestRowCodec(NestedCode(16, (*FOUR, 0.5, 0.6, 0.7, 0.8)), 72),
    "q8 k1": NestRowCodec(NestedCode(8, (0.5,)), 64),
    "q3 k2": NestRowCodec(NestedCode(3, (0.9, 1.5)), 40),
    "q63 k16": NestRowCodec(NestedCode(63, tuple(0.01 * p for p in range(4, 20))), 24),
    "nestquantm": NestRowCodec(NestedCode(16, FOUR, "nestquantm"), 64),
    "cubic": NestRowCodec(NestedCode(16, FOUR, "cubic"), 8),
    "d8": NestRowCodec(NestedCode(16, (0.35, 0.42, 0.5, 0.65, 0.8), "d8"), 64),
    "d8 q6": NestRowCodec(NestedCode(6, (0.8, 1.2), "d8"), 40),
}
every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)


def some_rows(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.normal(size=(9, n)).astype(np.float32)
    x[1] = 0
    x[2] *= np.float32(1e-6)
    x[3] *= np.float32(1e4)
    x[4, n // 2 :] = 0
    x[5] = np.float32(2.0) ** rng.integers(-9, 9, n)
    x[6] *= np.float32(1e-9)  # below what float16 norms can tell from zero
    return x


@every_codec
def test_bytes_are_those_of_the_reference(codec: NestRowCodec, rng: np.random.Generator) -> None:
    code = codec.code
    x = some_rows(rng, codec.n)
    for row, raw in zip(x, codec.encode(x), strict=True):
        unit, norm = reference.unit_row(row)
        digits, index = code.encode(unit.reshape(-1, 8))
        wanted = reference.nest_row(digits, index, norm, code.q, len(code.betas), code.cell)
        assert raw.tobytes() == wanted


@every_codec
def test_rows_read_back_as_their_codewords(codec: NestRowCodec, rng: np.random.Generator) -> None:
    assert isinstance(codec, RowCodec)
    x = some_rows(rng, codec.n)
    coded = codec.encode(x)
    assert coded.shape == (len(x), codec.row_nbytes)
    assert codec.bits_per_entry == 8 * codec.row_nbytes / codec.n
    decoded = codec.decode(coded)
    for row, found in zip(x, decoded, strict=True):
        unit, norm = reference.unit_row(row)
        _, _, values = codec.code.encode_decoded(unit.reshape(-1, 8))
        np.testing.assert_allclose(found, values.reshape(-1) * norm.value, rtol=1e-6)
    assert not decoded[[1, 6]].any()
    assert np.array_equal(codec.encode(x[3:5]), coded[3:5])
    assert np.array_equal(codec.decode(coded[3:5]), decoded[3:5])


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("q16 k4", 32 + 2 + 2),
        ("q14 k4", 36 + 3 + 2),  # nine indices of two bits: eighteen
        ("q16 k8", 36 + 4 + 2),
        ("q8 k1", 24 + 2),
        ("q3 k2", 10 + 1 + 2),
        ("q63 k16", 18 + 2 + 2),
        ("d8", 32 + 2),
    ],
)
def test_bytes_are_counted(name: str, n_bytes: int) -> None:
    codec = CODECS[name]
    assert codec.row_nbytes == n_bytes
    assert codec.encode(np.empty((0, codec.n), np.float32)).shape == (0, n_bytes)


@every_codec
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_codewords_are_found_again(codec: NestRowCodec, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3, codec.n)).astype(np.float32)
    once = codec.encode(x)
    # The norm of what is decoded differs, so the codewords are looked for under the first norm.
    values = codec.decode(once)
    norms = np.ascontiguousarray(once[:, -2:]).view(np.float16).astype(np.float32)
    scaled = (values / norms).reshape(-1, 8)
    again = codec.code.decode(*codec.code.encode(scaled))
    np.testing.assert_allclose(again, scaled, rtol=1e-5, atol=1e-6)


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_a_row_without_a_norm_decodes_to_nan(codec: NestRowCodec, bad: float) -> None:
    x = np.ones((3, codec.n), np.float32)
    x[1, 5] = bad
    decoded = codec.decode(codec.encode(x))
    assert np.isnan(decoded[1]).all()
    assert np.isfinite(decoded[[0, 2]]).all()


def test_the_error_on_gaussians(rng: np.random.Generator) -> None:
    x = rng.normal(size=(400 if IS_JIT else 8, 1536)).astype(np.float32)
    codec = NestRowCodec(NestedCode(16, FOUR), 1536)
    error = np.mean((codec.decode(codec.encode(x)) - x) ** 2)
    assert error == pytest.approx(0.00419, rel=0.015 if IS_JIT else 0.05)
    assert codec.bits_per_entry == pytest.approx(4.25 + 16 / 1536)


@pytest.mark.parametrize(
    ("code", "n", "message"),
    [
        (NestedCode(16, FOUR), 20, "n is 20; rows must be a positive multiple of 8 long"),
        (NestedCode(16, FOUR), 0, "n is 0"),
        (NestedCode(16, FOUR), 8.0, "n is 8.0"),
        (NestedCode(16, tuple(range(1, 10)), "d8"), 8, "9 scales were given.*has room for 8"),
    ],
)
def test_bad_codecs_are_refused(code: NestedCode, n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NestRowCodec(code, n)


def test_bad_arrays_are_refused() -> None:
    codec = CODECS["q14 k4"]
    with pytest.raises(InputError, match=r"rows have shape \(72,\); this codec takes \(R, 72\)"):
        codec.encode(np.zeros(72, np.float32))
    with pytest.raises(InputError, match=r"uint8 \(2, 40\); this codec takes uint8 \(R, 41\)"):
        codec.decode(np.zeros((2, 40), np.uint8))
    with pytest.raises(InputError, match="digits run from 15 to 15"):
        codec.decode(np.full((1, 41), 0xFF, np.uint8))
