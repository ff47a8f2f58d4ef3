"""Rows coded on scalar grids: byte by byte as the reference, and back."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.grids import decode_e4m3
from latticeq.errors import InputError
from latticeq.quantizers.rows import RowCodec
from latticeq.quantizers.scalar import Scalar
from latticeq.quantizers.scalar_rows import ScalarRowCodec
from reference import rows as reference
from tests.quantizers.scalar_data import SCALARS, awkward_rows, factors, levels, store

every_scalar = pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)
N = 96


@every_scalar
def test_bytes_are_those_of_the_reference(scalar: Scalar, rng: np.random.Generator) -> None:
    x = awkward_rows(rng, N)
    codec = ScalarRowCodec(scalar, N)
    coded = codec.encode(x)
    for row, raw in zip(x, coded, strict=True):
        peak = np.abs(row).max()
        wanted = reference.scalar_row(
            row,
            levels(scalar),
            scalar.group_size(N),
            factors(scalar),
            store(scalar, peak),
            not scalar.symmetric,
        )
        if scalar.kind == "nvfp4":
            wanted += (peak / np.float32(6 * (256 if scalar.four_over_six else 448))).tobytes()
        assert raw.tobytes() == wanted


@every_scalar
def test_rows_read_back_as_the_tensor_of_one_row(scalar: Scalar, rng: np.random.Generator) -> None:
    codec = ScalarRowCodec(scalar, N)
    assert isinstance(codec, RowCodec)
    x = rng.normal(size=(20, N)).astype(np.float32)
    coded = codec.encode(x)
    assert coded.shape == (20, codec.row_nbytes)
    assert codec.bits_per_entry == 8 * codec.row_nbytes / N
    decoded = codec.decode(coded)
    tensors = np.concatenate([scalar.quantize(row[None]).rotated() for row in x])
    # Codes are chosen by x · (1/step) here and by x/step there: they differ in ties, if at all.
    assert (decoded == tensors).mean() > 0.999
    assert np.array_equal(codec.decode(coded[3:7]), decoded[3:7])
    assert np.array_equal(codec.encode(x[5:6]), coded[5:6])


@pytest.mark.parametrize(
    ("scalar", "n", "n_bytes"),
    [
        (Scalar("int4"), 64, 32 + 2),
        (Scalar("int4", symmetric=False), 64, 32 + 4),
        (Scalar("int4", 32), 80, 40 + 6),
        (Scalar("int4"), 7, 4 + 2),
        (Scalar("nf4"), 128, 64 + 4),
        (Scalar("mxfp4"), 64, 32 + 2),
        (Scalar("nvfp4"), 64, 32 + 4 + 4),
    ],
    ids=repr,
)
def test_bytes_are_counted(scalar: Scalar, n: int, n_bytes: int) -> None:
    codec = ScalarRowCodec(scalar, n)
    assert codec.row_nbytes == n_bytes
    assert codec.encode(np.ones((2, n), np.float32)).shape == (2, n_bytes)


@every_scalar
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_decodes_to_nan(scalar: Scalar, bad: float) -> None:
    x = np.ones((3, N), np.float32)
    x[1, 50] = bad
    codec = ScalarRowCodec(scalar, N)
    decoded = codec.decode(codec.encode(x))
    assert np.isnan(decoded[1]).all()
    assert np.isfinite(decoded[[0, 2]]).all()


@every_scalar
@given(st.integers(-140, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_rows_of_any_size_come_back_or_say_that_they_do_not(
    scalar: Scalar, power: int, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(2, N)).astype(np.float32)
    x = np.ldexp(x, power).astype(np.float32)
    codec = ScalarRowCodec(scalar, N)
    decoded = codec.decode(codec.encode(x))
    if scalar.is_float or power < 10:
        # Beside the code's own error, the scales' last place where they are subnormal.
        assert (np.abs(decoded - x) <= 0.8 * np.abs(x).max() + 1e-6).all()
        assert power > -100 or scalar.is_float or not decoded.any()
    elif power > 20:
        assert np.isnan(decoded).all()


def test_zeros_are_zeros() -> None:
    for scalar in SCALARS.values():
        codec = ScalarRowCodec(scalar, N)
        assert not codec.decode(codec.encode(np.zeros((2, N), np.float32))).any()
        assert codec.encode(np.empty((0, N), np.float32)).shape == (0, codec.row_nbytes)


@every_scalar
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_any_bytes_decode_by_the_definition(scalar: Scalar, seed: int) -> None:
    codec = ScalarRowCodec(scalar, N)
    coded = np.random.default_rng(seed).integers(0, 256, (4, codec.row_nbytes), dtype=np.uint8)
    codes, rest = coded[:, : N // 2], coded[:, N // 2 :]
    values = levels(scalar).astype(np.float32)[
        np.stack([codes & 15, codes >> 4], axis=2).reshape(4, N)
    ]
    group = scalar.group_size(N)
    groups = -(-N // group)
    if scalar.kind == "mxfp4":
        steps = np.float32(2.0 ** (np.minimum(rest, 254) - 127.0))
        steps[rest == 255] = np.nan
    elif scalar.kind == "nvfp4":
        with np.errstate(over="ignore", invalid="ignore"):
            steps = decode_e4m3(rest[:, :groups] & 0x7F)
            steps = steps * np.ascontiguousarray(rest[:, groups:]).view(np.float32)
    else:
        halves = np.ascontiguousarray(rest).view(np.float16).astype(np.float32)
        halves[np.isinf(halves)] = np.nan
        steps, zeros = halves[:, :groups], halves[:, groups:]
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = values * np.repeat(steps, group, axis=1)[:, :N]
        if not scalar.symmetric:
            wanted = wanted + np.repeat(zeros, group, axis=1)[:, :N]
        found = codec.decode(coded)
    known = np.ones((4, N), bool)
    if scalar.kind == "nvfp4":  # scales have no sign: the encoder writes none
        known = np.repeat(rest[:, :groups] < 0x7F, group, axis=1)
    assert np.array_equal(found[known], wanted[known], equal_nan=True)


@pytest.mark.parametrize(
    ("scalar", "n", "message"),
    [
        (Scalar("mxfp4"), 48, "n is 48; rows of mxfp4 must be a positive multiple of 32"),
        (Scalar("nvfp4"), 8, "multiple of 16"),
        (Scalar(), 0, "n is 0"),
        (Scalar(), 8.0, "n is 8.0"),
    ],
)
def test_bad_lengths_are_refused(scalar: Scalar, n: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScalarRowCodec(scalar, n)


def test_bad_arrays_are_refused() -> None:
    codec = ScalarRowCodec(Scalar(), 64)
    with pytest.raises(InputError, match=r"rows have shape \(2, 32\); this codec takes \(R, 64\)"):
        codec.encode(np.zeros((2, 32), np.float32))
    with pytest.raises(InputError, match=r"uint8 \(2, 33\); this codec takes uint8 \(R, 34\)"):
        codec.decode(np.zeros((2, 33), np.uint8))
    with pytest.raises(InputError, match="int64"):
        codec.decode(np.zeros((2, 34), np.int64))
