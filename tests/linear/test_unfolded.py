"""Codewords laid out anew give the numbers that they give as they are stored."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.jit import IS_JIT
from latticeq.linear import nest, tiled
from latticeq.linear.nest import NestLinear
from latticeq.linear.packed import make_packed_linear
from latticeq.linear.unfolded import UNFOLDED, can_unfold
from latticeq.quantizers.nestquant import NestTensor
from latticeq.storage.checkpoint import packed
from tests.storage.packed_models import random_nest


def as_stored(tensor: NestTensor) -> NestLinear:
    """Return the linear of a matrix whose codewords stay as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nest, "can_unfold", lambda *_: False)
        return NestLinear(packed(tensor))


def is_unfolded(linear: NestLinear) -> bool:
    return linear.token_kernel()[0] is UNFOLDED.multiply_token


def with_edges(tensor: NestTensor, rng: np.random.Generator) -> NestTensor:
    """Return a matrix half of whose digits are 0 or q / 2: deep holes, where coordinates are -q."""
    q = tensor.code.q
    edges = rng.choice([0, q // 2], tensor.digits.shape)
    is_edge = rng.random(tensor.digits.shape[:2]) < 0.5
    return replace(
        tensor, digits=np.where(is_edge[..., None], edges, tensor.digits).astype(np.uint8)
    )


@settings(max_examples=40 if IS_JIT else 5)
@given(
    m=st.integers(1, 40),
    fours=st.integers(1, 5),
    q=st.integers(2, 16),
    k=st.integers(1, 4),
    packing=st.sampled_from(["digits", "radix"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_product_is_that_of_the_stored_form(
    m: int, fours: int, q: int, k: int, packing: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tensor = random_nest(m, 32 * fours, q, k, packing=packing if q == 14 else "digits")
    tensor = with_edges(tensor, rng)
    linear, stored = NestLinear(packed(tensor)), as_stored(tensor)
    assert is_unfolded(linear)
    assert not is_unfolded(stored)
    for tokens in (1, 3, 17):
        x = rng.normal(size=(tokens, 32 * fours)).astype(np.float32)
        np.testing.assert_array_equal(linear(x), stored(x))
    for mine, its in zip(linear.points(0, 1), stored.points(0, 1), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_the_largest_coordinate_is_there() -> None:
    """The one that takes n_i to its end: -q, of a deep hole."""
    tensor = random_nest(16, 32, 16, 4)
    digits = np.zeros_like(tensor.digits)
    digits[..., 0] = 8
    found, _ = NestLinear(packed(replace(tensor, digits=digits))).points(0, 1)
    assert found.view(np.uint8).min() == 0


def test_several_matrices_share_a_kernel(rng: np.random.Generator) -> None:
    linears = [NestLinear(packed(random_nest(m, 64, 16, 4))) for m in (40, 16, 7)]
    x = rng.normal(size=(1, 64)).astype(np.float32)
    for linear, y in zip(linears, NestLinear.apply_group(linears, x), strict=True):
        np.testing.assert_array_equal(y, linear(x))


@pytest.mark.parametrize(
    ("n", "k", "cell"), [(40, 4, "voronoi"), (64, 8, "voronoi"), (64, 4, "cubic")]
)
def test_what_stays_as_it_is_stored(n: int, k: int, cell: str) -> None:
    assert not is_unfolded(NestLinear(packed(random_nest(20, n, 16, k, cell=cell))))
    assert not is_unfolded(NestLinear(packed(random_nest(20, 64, 16, 4)), runtime="float32"))


def test_what_is_kept_in_another_form_gives_its_pages_back(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[np.ndarray] = []
    monkeypatch.setattr(tiled, "release", released.append)
    matrix = packed(random_nest(20, 64, 16, 4))
    for runtime, wanted in (("packed", True), ("int8", True), ("float32", False)):
        make_packed_linear(matrix, runtime=runtime)
        stored = matrix.arrays.values() if wanted else ()
        assert [id(array) for array in released] == [id(array) for array in stored]
        released.clear()


def test_limits() -> None:
    assert can_unfold(32, 2)
    assert not can_unfold(48, 2)
    assert not can_unfold(32, 3)
