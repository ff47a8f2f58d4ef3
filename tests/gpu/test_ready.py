"""Tokens made ready in one launch are those of the longer way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from latticeq.codes.nested import NestedCode
from latticeq.gpu.device import cupy
from latticeq.gpu.product import done
from latticeq.gpu.ready import GATE, NORM, PLAIN, Before, Ready
from latticeq.gpu.rows import GpuRowCodec
from latticeq.gpu.tokens import GpuRotation
from latticeq.quantizers.rows import NestRowCodec
from latticeq.transforms.rotation import Rotation

pytestmark = pytest.mark.gpu

SIZES = (32, 64, 96, 192, 576, 1024, 1536, 2048, 4096, 8192, 11008, 14336, 5120)
TOKENS = 3


def before(source: int, n: int) -> Before:
    """Return a random step; each call draws the same numbers anew."""
    rng = np.random.default_rng([source, n])

    def drawn(*shape: int) -> Any:
        return cupy().asarray(rng.standard_normal(shape).astype(np.float32))

    if source == NORM:
        return Before(NORM, drawn(TOKENS, n), drawn(TOKENS, n), drawn(n), 1e-5)
    return Before(source, drawn(TOKENS, 2 * n if source == GATE else n))


@pytest.mark.parametrize("source", [PLAIN, NORM, GATE])
@pytest.mark.parametrize("n", SIZES)
def test_rounded_tokens_are_the_same(n: int, source: int) -> None:
    rotation = Rotation(n)
    assert Ready.fits(rotation)
    step, ready = before(source, n), Ready(rotation)
    found = ready.operand(step)
    values = found.halves.astype("float32") * found.scale[:, None]
    halves, scale, stream = found.halves.copy(), found.scale.copy(), step.x.copy()
    step = before(source, n)
    longer = GpuRotation(rotation).operand(done(step, cupy().empty((TOKENS, n), "float32")))
    assert (stream == step.x).all()
    if ready._is_shared_out and source != NORM:  # another scale, the same numbers
        wanted = longer.halves.astype("float32") * longer.scale[:, None]
        assert float(abs(values - wanted).max()) < 1e-3 * float(abs(wanted).max())
    else:
        assert (halves == longer.halves).all()
        assert (scale == longer.scale).all()


@pytest.mark.parametrize("cell", ["voronoi", "cubic"])
@pytest.mark.parametrize("n", [64, 576, 1536, 4096])
def test_coded_tokens_are_the_same(n: int, cell: str) -> None:
    codec = NestRowCodec(NestedCode(16, (0.19, 0.24, 0.29, 0.38), cell), n)
    found = Ready(Rotation(n), codec).operand(before(PLAIN, n))
    halves, scale = found.halves.copy(), found.scale.copy()
    longer = GpuRowCodec(codec).operand(GpuRotation(Rotation(n)).rotate(before(PLAIN, n).x))
    assert (halves == longer.halves).all()
    assert (scale == longer.scale).all()


@pytest.mark.parametrize("n", [64, 576, 1536])
def test_blocks_that_share_a_token_leave_the_stream_to_the_next(n: int) -> None:
    codec = NestRowCodec(NestedCode(16, (0.19, 0.24, 0.29, 0.38), "voronoi"), n)
    ready, step = Ready(Rotation(n), codec), before(NORM, n)
    found = ready.operand(step)
    halves, scale = found.halves.copy(), found.scale.copy()
    given = before(NORM, n)
    stream = cupy().full_like(given.x, np.nan)
    shared = ready.operand(replace(given, stream=stream))
    assert (given.x == before(NORM, n).x).all()
    assert (stream == step.x).all()
    assert (shared.halves == halves).all()
    assert (shared.scale == scale).all()
    sums = cupy().full_like(given.x, np.nan)
    normed = done(replace(given, stream=sums), cupy().empty_like(sums))
    assert (sums == stream).all()
    assert (normed == done(before(NORM, n), cupy().empty_like(sums))).all()


@pytest.mark.parametrize("n", [96, 576, 14336])
def test_many_tokens_are_in_the_order_that_products_take(n: int) -> None:
    x = before(PLAIN, n).x.repeat(50, axis=0)
    x *= cupy().arange(1, len(x) + 1, dtype="float32")[:, None]
    found = Ready(Rotation(n)).operand(Before(PLAIN, x))
    halves, scale = found.halves.copy(), found.scale.copy()
    longer = GpuRotation(Rotation(n)).operand(x, found.is_wide)
    assert found.tokens == len(x)
    if found.is_wide:  # (blocks of 128 tokens, parts of 64 columns, 128 tokens, 64)
        shape = (-1, halves.shape[1] // 64, 128, 64)
        halves, longer_halves = (h.reshape(shape) for h in (halves, longer.halves))
        halves, longer_halves = (
            h.swapaxes(1, 2).reshape(-1, found.halves.shape[1])[: len(x)].astype("float32")
            for h in (halves, longer_halves)
        )
    else:
        halves, longer_halves = halves.astype("float32"), longer.halves.astype("float32")
    values, wanted = halves * scale[:, None], longer_halves * longer.scale[:, None]
    assert float(abs(values - wanted).max()) < 1e-3 * float(abs(wanted).max())
    assert float(abs(values).max()) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [576, 14336])
def test_what_is_no_number_stays_none(n: int, bad: float) -> None:
    step = before(PLAIN, n)
    step.x[1, 5] = bad
    scale = Ready(Rotation(n)).operand(step).scale.get()
    assert np.isnan(scale).tolist() == [False, True, False]
