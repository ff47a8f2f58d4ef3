"""PVQ: equal to its recipe, within its rate, and clear about what it refuses."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.pyramid import PyramidCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.quantizers.base import QuantizedTensor, Quantizer
from latticeq.quantizers.metrics import OutputLoss
from latticeq.quantizers.pvq import PVQ, decoded_groups
from latticeq.storage.checkpoint import packed
from reference import pvq as reference
from reference.nestquant import rotation_matrix
from tests.quantizers.test_nestquant import random_hessian

EXAMPLES = settings(max_examples=40 if IS_JIT else 6)


@pytest.mark.parametrize("with_hessian", [False, True])
@pytest.mark.parametrize(
    ("group", "bits", "n", "seed"),
    [(16, 4.25, 96, None), (8, 3.0, 72, 7), (16, 2.0, 48, 1), (32, 4.0, 96, None), (2, 4.5, 40, 3)],
)
def test_the_reference_finds_the_same_words(
    group: int, bits: float, n: int, seed: int | None, with_hessian: bool, rng: np.random.Generator
) -> None:
    weights = rng.normal(size=(5, n)) * rng.uniform(0.01, 10, (5, 1))
    weights[3] = 0
    hessian = random_hessian(rng, n) if with_hessian else None
    found = PVQ(group, bits, seed=seed).quantize(weights, hessian)
    rotation = rotation_matrix(n, seed)
    parts = (rotation, group, found.code.pulses, found.levels)
    wanted = reference.quantize(weights, *parts, hessian)
    assert np.array_equal(found.words, wanted.words)
    assert np.array_equal(found.gain_index, wanted.gain_index)
    assert found.row_scale.tobytes() == wanted.row_scale.tobytes()
    values = reference.dequantize(wanted, rotation, found.levels)
    np.testing.assert_allclose(found.dequantize(), values, atol=1e-5 * np.abs(values).max())
    assert not found.dequantize()[3].any()
    assert found.damping == (1e-2 if with_hessian else None)


@pytest.mark.skipif(not IS_JIT, reason="measures many vectors")
@pytest.mark.parametrize(
    ("group", "bits", "limit"),
    [(16, 4.25, 0.0046), (16, 3.25, 0.0190), (32, 4.0, 0.0063), (8, 4.25, 0.0051), (16, 2, 0.107)],
)
def test_loss_on_gaussian_matrices_from_bytes(
    group: int, bits: float, limit: float, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(256, 4096)).astype(np.float32)
    stored = packed(PVQ(group, bits).quantize(x))
    assert 8 * stored.nbytes / x.size < bits + 0.005
    assert np.mean((stored.unpack().dequantize() - x) ** 2) < limit


def test_feedback_lowers_the_proxy_loss(rng: np.random.Generator) -> None:
    weights, hessian = rng.normal(size=(32, 96)), random_hessian(rng, 96)
    quantizer = PVQ(16, 3.25)
    plain, fed_back = (quantizer.quantize(weights, given) for given in (None, hessian))
    loss = OutputLoss(weights, hessian)
    assert loss(fed_back.dequantize()) < 0.7 * loss(plain.dequantize())
    shared = quantizer.quantize(weights, quantizer.factor(hessian))
    assert np.array_equal(shared.words, fed_back.words)


@EXAMPLES
@given(st.integers(2, 24), st.integers(1, 60), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_what_a_code_stands_for_quantizes_to_itself(
    group: int, pulses: int, gain_bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    code = PyramidCode(group, pulses)
    words, _ = code.nearest(rng.normal(size=(12, group)), "projection")
    lengths = rng.uniform(0.5, 2, 12).astype(np.float32)
    values = decoded_groups(words, lengths)
    again, gains = code.nearest(values)
    assert np.array_equal(again, words)
    np.testing.assert_allclose(gains, lengths, rtol=1e-6)


@EXAMPLES
@given(st.integers(-12, 8), st.integers(0, 2**32 - 1))
def test_a_power_of_two_scales_the_result(power: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(3, 64)).astype(np.float32)
    plain, scaled = (PVQ(16, 3.0).quantize(part) for part in (x, x * np.float32(2.0**power)))
    assert np.array_equal(plain.words, scaled.words)
    assert np.array_equal(plain.dequantize() * np.float32(2.0**power), scaled.dequantize())


def test_any_rate_between_two(rng: np.random.Generator) -> None:
    x = rng.normal(size=(16, 512)).astype(np.float32)
    losses = []
    for bits in (2.0, 2.5, 2.75, 3.25, 3.3, 4.0, 5.125):
        found = PVQ(16, bits).quantize(x)
        assert bits - 1 / 16 < found.bits_per_entry - 16 / 512 <= bits + 0.13
        losses.append(np.mean((found.dequantize() - x) ** 2))
    assert losses == sorted(losses, reverse=True)


def test_threads_do_not_change_the_words(rng: np.random.Generator) -> None:
    x, before = rng.normal(size=(40, 64)), threads()
    many = PVQ().quantize(x)
    set_threads(1)
    try:
        one = PVQ().quantize(x)
    finally:
        set_threads(before)
    assert np.array_equal(one.words, many.words)


def test_it_is_a_quantizer_for_any_axes(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 32))
    assert isinstance(PVQ(), Quantizer)
    found = PVQ().quantize(x)
    assert isinstance(found, QuantizedTensor)
    assert found.dequantize().shape == found.shape == (2, 3, 32)
    flat = PVQ().quantize(x.reshape(6, 32))
    assert np.array_equal(found.words, flat.words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group": 1}, "group is 1; it must be an integer from 2 to 256"),
        ({"group": 16.0}, "group is 16.0"),
        ({"bits": 0}, "bits is 0; it must be a number above 0, up to 8"),
        ({"bits": 8.5}, "bits is 8.5"),
        ({"bits": True}, "bits is True"),
        ({"bits": 0.25}, "4 bits a group; the direction alone needs at least 5"),
        ({"gain_bits": 9}, "gain_bits is 9; it must be an integer from 0 to 8, or None"),
        ({"bits": 0.5, "gain_bits": 4}, "4 bits were given for the shape of 16 numbers"),
        ({"rotate": "random"}, "rotate is 'random'"),
        ({"search": "best"}, "search is 'best'"),
        ({"group": 256, "bits": 8}, "smaller groups"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PVQ(**arguments)


def test_bad_input_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        PVQ().quantize(np.ones((2, 24)))
    with pytest.raises(InputError, match=r"entry \(0, 3\) is nan"):
        PVQ().quantize(np.where(np.arange(32) == 3, np.nan, 1.0)[None])
    with pytest.raises(InputError, match="blocks of 8; this quantizer needs blocks of 16"):
        PVQ(16).quantize(np.ones((2, 32)), PVQ(8).factor(np.eye(32)))
    with pytest.raises(InputError, match="float16 row scales cannot"):
        PVQ().quantize(np.full((1, 32), 1e9))
