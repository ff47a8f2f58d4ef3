"""Every quantized tensor keeps one protocol, and what cannot be quantized is refused."""

import numpy as np
import pytest

from latticeq.errors import InputError
from latticeq.quantizers.base import QuantizedTensor, Quantizer, as_rows
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.scalar import Int8, Scalar
from latticeq.transforms.rotation import Rotation

QUANTIZERS = {
    "nestquant": NestQuant(16, 4, seed=1),
    "int8": Int8(),
    **{kind: Scalar(kind) for kind in ("int4", "nf4", "mxfp4", "nvfp4")},
    "int4 asymmetric": Scalar("int4", group=32, symmetric=False),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_tensors_keep_the_protocol(quantizer: Quantizer, rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 96)).astype(np.float32)
    tensor = quantizer.quantize(x)
    assert isinstance(tensor, QuantizedTensor)
    assert tensor.shape == x.shape
    assert tensor.bits_per_entry == 8 * tensor.nbytes / x.size
    rotated, whole = tensor.rotated(), tensor.dequantize()
    assert isinstance(tensor.rotation, Rotation)
    assert rotated.shape == (6, tensor.rotation.n) == (6, 96)
    assert rotated.dtype == whole.dtype == np.float32
    assert np.array_equal(tensor.rotation.apply_transpose(rotated).reshape(x.shape), whole)
    wanted = tensor.rotation.apply(x.reshape(6, 96))
    assert np.mean((rotated - wanted) ** 2) < 0.02
    # Products in the rotated basis are the products.
    y = rng.normal(size=96).astype(np.float32)
    products = rotated @ tensor.rotation.apply(y)
    np.testing.assert_allclose(products, whole.reshape(6, 96) @ y, atol=1e-4)


def test_rows_are_float64_copies_of_what_is_given() -> None:
    x = np.arange(24, dtype=np.int16).reshape(2, 2, 6)
    rows = as_rows(x, 3)
    assert rows.dtype == np.float64
    assert rows.tolist() == x.reshape(4, 6).tolist()
    rows[0, 0] = 7
    assert x[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 6), complex), "dtype complex128"),
        (np.float32(3), r"shape \(\)"),
        (np.zeros((2, 6)), "positive multiple of 4"),
        (np.zeros((2, 0)), "positive multiple of 4"),
        (np.array([[0, 0, 0, 0], [0, np.nan, np.inf, 0]]), r"entry \(1, 1\) is nan, one of 2"),
    ],
)
def test_what_cannot_be_quantized_is_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_rows(x, 4)
