"""NestQuant: equal to the paper's recipe, within its rate, and clear about what it refuses."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from latticeq.codes.nested import CELLS
from latticeq.errors import InputError
from latticeq.jit import IS_JIT, set_threads, threads
from latticeq.quantizers.base import QuantizedTensor, Quantizer
from latticeq.quantizers.metrics import OutputLoss, relative_error
from latticeq.quantizers.nestquant import NestQuant
from latticeq.storage.checkpoint import pack
from reference import nestquant as reference


def random_hessian(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.normal(size=(4 * n, n)) @ (rng.normal(size=(n, n)) / np.sqrt(n) + 0.5 * np.eye(n))
    return np.asarray(x.T @ x / len(x))


@pytest.mark.parametrize("with_hessian", [False, True])
@pytest.mark.parametrize(
    ("cell", "q", "k", "n", "seed"),
    [
        ("voronoi", 16, 4, 96, None),
        ("voronoi", 14, 2, 72, 7),
        ("voronoi", 5, 1, 40, 1),
        ("voronoi", 32, 8, 184, None),
        ("nestquantm", 14, 4, 96, None),
        ("cubic", 16, 8, 72, None),
        ("d8", 12, 8, 40, 3),
    ],
)
def test_the_reference_finds_the_same_digits(
    cell: str,
    q: int,
    k: int,
    n: int,
    seed: int | None,
    with_hessian: bool,
    rng: np.random.Generator,
) -> None:
    weights = rng.normal(size=(9, n)) * rng.uniform(0.01, 10, (9, 1))
    weights[4] = 0
    hessian = random_hessian(rng, n) if with_hessian else None
    quantizer = NestQuant(q, k, cell, seed=seed)
    rotation = reference.rotation_matrix(n, seed)
    found = quantizer.quantize(weights, hessian)
    betas = quantizer.code.betas
    wanted = reference.quantize(weights, rotation, q, betas, hessian, cell=cell)
    assert np.array_equal(found.digits, wanted.digits)
    assert np.array_equal(found.scale_index, wanted.scale_index)
    assert found.row_scale.tobytes() == wanted.row_scale.tobytes()
    values = reference.dequantize(wanted, rotation, q, betas, cell)
    np.testing.assert_allclose(found.dequantize(), values, atol=1e-5 * np.abs(values).max())
    assert found.damping == (1e-2 if with_hessian else None)


def test_identity_hessian_is_plain_quantization(rng: np.random.Generator) -> None:
    weights = rng.normal(size=(6, 64))
    plain = NestQuant().quantize(weights)
    fed_back = NestQuant().quantize(weights, np.eye(64))
    agree = (plain.digits == fed_back.digits).mean()
    assert agree > 0.999  # rotating the identity leaves rounding errors off its diagonal
    unrotated = NestQuant(rotate="none")
    assert np.array_equal(
        unrotated.quantize(weights).digits, unrotated.quantize(weights, np.eye(64)).digits
    )


def test_feedback_lowers_the_proxy_loss(rng: np.random.Generator) -> None:
    weights, hessian = rng.normal(size=(32, 96)), random_hessian(rng, 96)
    losses = [
        OutputLoss(weights, hessian)(NestQuant().quantize(weights, given_hessian).dequantize())
        for given_hessian in (hessian, None)
    ]
    assert losses[0] < 0.7 * losses[1]


@pytest.mark.skipif(not IS_JIT, reason="needs many blocks")
@pytest.mark.parametrize(
    ("quantizer", "target"),
    [
        (NestQuant(), 0.00420),
        (NestQuant(14, 4, betas="published"), 0.00691),
        (NestQuant(seed=3), 0.00420),
        (NestQuant(8), 0.0166),
        (NestQuant(shaping="cubic"), 0.00513),
        (NestQuant(16, 8, "cubic"), 0.00430),
        (NestQuant(16, 8, "d8"), 0.0063),
        (NestQuant(simplified="nestquantm"), 0.0052),
    ],
    ids=str,
)
def test_error_on_gaussian_rows(quantizer: NestQuant, target: float) -> None:
    x = np.random.default_rng(3).normal(size=(512, 768))
    assert relative_error(x, quantizer.quantize(x).dequantize()) < 1.01 * target


@settings(max_examples=25)
@given(st.integers(2, 63), st.integers(1, 16), st.integers(1, 20), st.integers(1, 9), st.data())
def test_valid_codes_quantize_to_themselves(
    q: int, k: int, m: int, blocks: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    betas = tuple(np.geomspace(3.0, 7.0, k) / q) if k > 1 else (4.0 / q,)
    quantizer = NestQuant(q, k, betas=betas, rotate="none")
    values = quantizer.quantize(rng.normal(size=(m, 8 * blocks))).rotated()
    again = quantizer.quantize(values.astype(np.float64))
    # Only the row scale, the root mean square of the values, may have moved.
    rescaled = values / np.where(again.row_scale > 0, again.row_scale, 1)[:, None]
    code = quantizer.code
    digits, index, decoded = code.encode_decoded(rescaled.reshape(m, blocks, 8).astype(np.float32))
    assert np.array_equal(digits, again.digits)
    assert np.array_equal(index, again.scale_index)
    scaled = decoded.reshape(m, -1) * again.row_scale.astype(np.float32)[:, None]
    np.testing.assert_allclose(again.rotated(), scaled, rtol=1e-6)


def test_zero_loss_when_the_row_scale_is_exact(rng: np.random.Generator) -> None:
    # Rows whose root mean square is a float16 number: blocks ±(1, 1, 0⁶) permuted have 1/2.
    roots = np.zeros((40, 6, 8))
    for row in roots.reshape(-1, 8):
        row[rng.choice(8, 2, replace=False)] = rng.choice([-1.0, 1.0], 2)
    weights = roots.reshape(40, 48) * 2.0 ** rng.integers(-8, 8, (40, 1))
    quantized = NestQuant(16, 1, betas=(0.5,), rotate="none").quantize(weights)
    assert np.array_equal(quantized.dequantize(), weights)


@settings(max_examples=20)
@given(st.integers(-8, 8), st.integers(0, 2**32 - 1))
def test_powers_of_two_move_the_row_scale_alone(power: int, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(size=(3, 48))
    before = NestQuant().quantize(weights)
    after = NestQuant().quantize(weights * 2.0**power)
    assert np.array_equal(before.digits, after.digits)
    assert np.array_equal(before.scale_index, after.scale_index)
    assert np.array_equal(before.row_scale * np.float16(2.0**power), after.row_scale)
    assert np.array_equal(before.dequantize() * np.float32(2.0**power), after.dequantize())


def test_rows_are_independent_of_each_other(rng: np.random.Generator) -> None:
    weights, hessian = rng.normal(size=(20, 64)), random_hessian(rng, 64)
    whole = NestQuant().quantize(weights)
    parts = [NestQuant().quantize(weights[i : i + 3]).digits for i in range(0, 20, 3)]
    assert np.array_equal(whole.digits, np.concatenate(parts))
    assert NestQuant().quantize(weights, hessian).digits.shape == (20, 8, 8)


def test_threads_change_nothing(rng: np.random.Generator) -> None:
    weights, hessian = rng.normal(size=(50, 96)), random_hessian(rng, 96)
    before = threads()
    results = []
    try:
        for count in {1, min(2, before)}:
            set_threads(count)
            quantized = NestQuant().quantize(weights, hessian)
            results.append(quantized.digits.tobytes() + quantized.scale_index.tobytes())
    finally:
        set_threads(before)
    assert len(set(results)) == 1


@settings(max_examples=40)
@given(
    st.sampled_from(CELLS),
    st.integers(2, 62),
    st.integers(1, 8),
    st.integers(1, 40),
    st.integers(1, 5),
    st.booleans(),
)
def test_nbytes_are_those_of_the_packed_arrays(
    cell: str, q: int, k: int, m: int, blocks: int, is_radix: bool
) -> None:
    q -= q % 2 if cell in {"cubic", "d8"} else 0
    is_radix &= cell != "d8" and q < 16 and q not in {2, 4, 8}
    packing = "radix" if is_radix else "digits"
    betas = tuple(np.linspace(0.1, 1.0, k)) if k > 1 else (0.5,)
    quantizer = NestQuant(q, k, cell, betas=betas, packing=packing)
    quantized = quantizer.quantize(np.ones((m, 8 * blocks)))
    assert quantized.packing == packing
    assert quantized.nbytes == sum(array.nbytes for array in pack(quantized).values())
    assert quantized.bits_per_entry == 8 * quantized.nbytes / (m * 8 * blocks)


def test_protocols_and_shapes(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 48)).astype(np.float32)
    quantized = NestQuant().quantize(x)
    assert isinstance(NestQuant(), Quantizer)
    assert isinstance(quantized, QuantizedTensor)
    assert quantized.dequantize().shape == quantized.shape == (2, 3, 48)
    assert quantized.dequantize().dtype == np.float32
    assert NestQuant().quantize(x[0, 0]).dequantize().shape == (48,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": 1, "k": 1, "betas": (1.0,)}, "nesting ratio"),
        ({"q": 11.5, "k": 1, "betas": (1.0,)}, "integer"),
        ({"k": 0}, "from 1 to 16"),
        ({"k": 17}, "from 1 to 16"),
        ({"k": 4.0}, "integer"),
        ({"q": 15}, "no scales were tuned for q = 15, k = 4, cell 'voronoi'; tuned are q = 2, 3"),
        ({"k": 2, "betas": "published"}, "published"),
        ({"betas": (0.1, 0.2)}, "2 betas were given for k = 4"),
        ({"betas": (0.4, 0.3, 0.2, 0.1)}, "increasing"),
        ({"betas": (0.1, 0.1 + 1e-12, 0.2, 0.3)}, "increasing"),  # equal in float32
        ({"betas": "best"}, "'best'"),
        ({"shaping": "round"}, "shaping"),
        ({"simplified": "cubic"}, "simplified is 'cubic'"),
        ({"shaping": "d8", "simplified": "nestquantm"}, "leave one of them out"),
        ({"shaping": "d8", "k": 16}, "from 1 to 8"),
        ({"shaping": "cubic", "q": 15, "betas": (0.1, 0.2, 0.3, 0.4)}, "even"),
        ({"shaping": "cubic", "betas": "published"}, "'published'"),
        ({"shaping": "cubic", "k": 16}, "no scales were tuned for q = 16, k = 16, cell 'cubic'"),
        ({"packing": "zip"}, "packing is 'zip'"),
        ({"packing": "radix"}, "q from 3 to 15"),
        ({"packing": "radix", "q": 14, "shaping": "d8"}, "another cell"),
        ({"rotate": "random"}, "rotate"),
        ({"selection": "worst"}, "selection"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NestQuant(**arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 12)), "multiple of 8"),
        (np.ones((0, 8)), "shape"),
        (np.float64(3.0), "shape"),
        (np.ones((2, 8), complex), "complex128; it must hold real numbers"),
        (np.array([[1.0] * 8, [1.0] * 7 + [np.nan]]), r"entry \(1, 7\) is nan, one of 1"),
        (np.full((1, 8), np.inf), r"entry \(0, 0\) is inf, one of 8"),
        (np.full((1, 8), 1e6), "row 0 has root mean square 1e"),
        (np.full((1, 8), 1e-9), "float16 row scales cannot hold"),
    ],
)
def test_bad_tensors_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NestQuant(rotate="none").quantize(x)


def test_nestquantm_has_two_names(rng: np.random.Generator) -> None:
    x = rng.normal(size=(4, 64))
    named, simplified = NestQuant(shaping="nestquantm"), NestQuant(simplified="nestquantm")
    assert named.cell == simplified.cell == simplified.code.cell == "nestquantm"
    assert np.array_equal(named.quantize(x).digits, simplified.quantize(x).digits)


@pytest.mark.parametrize("cell", CELLS)
def test_float32_rows_are_coded_as_their_float64_copies_nearly_are(
    cell: str, rng: np.random.Generator
) -> None:
    x = rng.normal(size=(24, 96)).astype(np.float32)
    quantizer = NestQuant(16, 8, cell)
    single, double = quantizer.quantize(x), quantizer.quantize(x.astype(np.float64))
    assert (single.row_scale != double.row_scale).mean() < 0.1
    same = (single.digits == double.digits).all(axis=2)[single.row_scale == double.row_scale]
    assert same.mean() > 0.99
    assert relative_error(x, single.dequantize()) < 1.01 * relative_error(x, double.dequantize())


@pytest.mark.parametrize("cell", CELLS)
def test_rotated_rows_are_points_times_scales(cell: str, rng: np.random.Generator) -> None:
    quantized = NestQuant(14, 4, cell).quantize(rng.normal(size=(5, 48)))
    code = quantized.code
    values = code.decode(quantized.digits, quantized.scale_index, np.float64).reshape(5, 48)
    expected = values * quantized.row_scale.astype(np.float64)[:, None]
    np.testing.assert_allclose(quantized.rotated(), expected, rtol=1e-6)


def test_a_hessian_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="needs"):
        NestQuant().quantize(np.ones((2, 16)), np.eye(8))
    with pytest.raises(InputError, match="needs"):
        NestQuant().quantize(np.ones((2, 16)), NestQuant().factor(np.eye(24)))
