"""Linears whose input is coded: codes by codes as integers, and else what the codes stand for."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.nested import CELLS, NestedCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.linear.base import Linear, apply_shared
from latticeq.linear.coded import CodedLinear, DecodedLinear, coded_rows
from latticeq.linear.matmul import matmul
from latticeq.quantizers.nestquant import NestTensor
from latticeq.quantizers.rows import NestRowCodec
from latticeq.quantizers.scalar import Scalar
from latticeq.quantizers.scalar_rows import ScalarRowCodec
from latticeq.transforms.rotation import Rotation
from tests.linear.linears import CODE, CODES, ROUNDING, linear_of, one_of_each
from tests.storage.packed_models import integer_nest, random_nest

FEW = 40 if IS_JIT else 5

EIGHTS = np.array(
    [
        (2, 2, 2, 2, 2, 2, 2, 2),
        (4, 4, 0, 0, 0, 0, 0, 0),
        (5, 2, 1, 1, 1, 0, 0, 0),
        (3, 3, 3, 2, 1, 0, 0, 0),
        (4, 3, 2, 1, 1, 1, 0, 0),
    ]
)
"""Eight numbers whose squares add up to 32, so that their root mean square is 2."""


def integer_codec(cell: str, q: int, k: int, n: int) -> NestRowCodec:
    """Return a codec whose units are eighths of a row's root mean square."""
    unit = NestedCode(q, (1.0,), cell).unit
    return NestRowCodec(NestedCode(q, tuple((i + 1) / 8 / unit for i in range(k)), cell), n)


def rows_of_twos(rng: np.random.Generator, t: int, n: int) -> np.ndarray:
    """Return rows (T, N) whose root mean squares are exactly 2, 4, 8 or 16."""
    eights = rng.permuted(EIGHTS[rng.integers(len(EIGHTS), size=(t, n // 8))], axis=2)
    signs = rng.choice([-1, 1], eights.shape)
    rows = (eights * signs).reshape(t, n) * np.exp2(rng.integers(0, 4, (t, 1)))
    return np.asarray(rows, np.float32)


@settings(max_examples=2 * FEW)
@given(
    m=st.integers(1, 70),
    t=st.integers(1, 18),
    blocks=st.integers(1, 6),
    cells=st.tuples(st.sampled_from(CELLS), st.sampled_from(CELLS)),
    half_q=st.tuples(st.integers(1, 31), st.integers(1, 12)),
    k=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_by_codes_are_exact(
    m: int,
    t: int,
    blocks: int,
    cells: tuple[str, str],
    half_q: tuple[int, int],
    k: tuple[int, int],
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    n = 8 * blocks
    tensor, matrix = integer_nest(rng, m, n, 2 * half_q[0], k[0], cells[0])
    codec = integer_codec(cells[1], 2 * half_q[1], k[1], n)
    x = rows_of_twos(rng, t, n)
    points, scales = codec.decode_points(codec.encode(x))
    eighths = np.rint(8 * scales).astype(np.int64)
    assert (scales == eighths / 8).all()
    wanted = (points.astype(np.int64) * np.repeat(eighths, 8, axis=1)) @ matrix.T / 8
    assert np.abs(wanted).max() < 2**20
    linear = CodedLinear(linear_of(tensor), codec)
    assert linear.is_integer
    found = linear(x)
    assert np.array_equal(found, wanted)
    for token, y in zip(x, found, strict=True):
        assert np.array_equal(linear(token[None])[0], y)
    norms = np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=1))
    digits, index = codec.code.encode((x / norms[:, None].astype("f4")).reshape(t, blocks, 8))
    coded = NestTensor(x.shape, codec.code, tensor.rotation, digits, index, norms.astype("f2"))
    assert np.array_equal(matmul(coded, tensor), found)


@pytest.mark.parametrize(("q", "k", "cell", "seed"), CODES)
@pytest.mark.parametrize("own", ["voronoi", "d8"])
def test_integers_give_what_decoded_floats_give(
    own: str, q: int, k: int, cell: str, seed: int | None, rng: np.random.Generator
) -> None:
    tensor = random_nest(37, 48, q, k, seed, cell=cell)
    codec = NestRowCodec(NestedCode(14, (0.25, 0.35, 0.5), own), 48)
    x = rng.normal(size=(11, 48)).astype(np.float32)
    decoded = coded_rows(x, tensor.rotation, codec).astype(np.float64)
    matrix = tensor.rotated().astype(np.float64)
    bound = (48 / 8 + 8) * ROUNDING * (np.abs(decoded) @ np.abs(matrix).T)
    linear = CodedLinear(linear_of(tensor), codec)
    assert (np.abs(linear(x) - decoded @ matrix.T) <= bound).all()
    assert np.array_equal(np.concatenate([linear(token[None]) for token in x]), linear(x))


def test_other_pairs_multiply_what_the_codes_stand_for(rng: np.random.Generator) -> None:
    nest, scalar = NestRowCodec(CODE, 64), ScalarRowCodec(Scalar("int4", group=16), 64)
    x = rng.normal(size=(9, 64)).astype(np.float32)
    inners = [*one_of_each(rng), *one_of_each(rng, None, "float32")]
    for inner in inners:
        for codec in (nest, scalar):
            linear = CodedLinear(inner, codec)
            assert isinstance(linear, Linear)
            both = codec is nest and inner.runtime == "packed" and inner.dtype == "nestquant"
            assert linear.is_integer == both
            rows = coded_rows(x, inner.rotation, codec)
            wanted = inner.multiply_rotated(rows)
            assert np.array_equal(DecodedLinear(inner)(rows), wanted)
            assert both or np.array_equal(linear(x), wanted)


def test_several_matrices_at_once_give_what_each_gives(rng: np.random.Generator) -> None:
    nest, other = NestRowCodec(CODE, 64), NestRowCodec(NestedCode(14, (0.3,)), 64)
    inners = [*one_of_each(rng), *one_of_each(rng, None, "float32")]
    every = [CodedLinear(inner, nest) for inner in inners]
    same = [linear for linear in every if linear.inner.rotation == Rotation(64)]
    assert {linear.is_integer for linear in same} == {True, False}
    turned = linear_of(random_nest(20, 64, 16, 4, 7))
    assert turned.rotation == Rotation(64, 7)
    for group in (same, same[::-1], same[:3], every, [CodedLinear(inners[0], other), *same], [
        CodedLinear(turned, nest), same[0],
    ]):  # fmt: skip
        for count in (1, 9):
            x = rng.normal(size=(count, 64)).astype(np.float32)
            found = apply_shared(group, x)
            assert all(np.array_equal(y, f(x)) for y, f in zip(found, group, strict=True))


def test_a_codec_of_another_length_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="inputs of 64 numbers cannot be coded in rows of 48"):
        CodedLinear(one_of_each(rng)[0], NestRowCodec(CODE, 48))
