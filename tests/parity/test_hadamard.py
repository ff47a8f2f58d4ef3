"""The fast Hadamard transform against the definition in ``reference``."""

import numpy as np
import pytest

from latticeq.transforms.hadamard import hadamard, hadamard_matrix
from latticeq.transforms.paley import paley_matrix
from reference import hadamard as reference

ORDERS = [1, 2, 4, 8, 12, 20, 24, 28, 36, 44, 48, 52, 72, 76, 80, 100, 124, 576]


@pytest.mark.parametrize("n", ORDERS)
def test_same_matrix(n: int) -> None:
    signs = np.rint(hadamard_matrix(n) * np.sqrt(n)).astype(np.int64)
    assert np.array_equal(signs, reference.hadamard_matrix(n))


@pytest.mark.parametrize(("p", "e", "m"), [(3, 3, 28), (5, 2, 52), (7, 2, 100), (7, 3, 344)])
def test_extension_fields_number_their_elements_alike(p: int, e: int, m: int) -> None:
    assert np.array_equal(paley_matrix(m), reference.paley_matrix(p, e))


@pytest.mark.parametrize("n", ORDERS)
def test_same_transform(n: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, n))
    expected = reference.hadamard_transform(x)
    assert np.allclose(hadamard(x), expected, rtol=0, atol=1e-13)
    roundings = 2.0**-24 * 30 * np.linalg.norm(x, axis=-1, keepdims=True)
    assert (np.abs(hadamard(x.astype(np.float32)) - expected) <= roundings).all()


@pytest.mark.parametrize("n", [3, 92, 188])
def test_both_refuse_the_same_sizes(n: int) -> None:
    with pytest.raises(ValueError, match=str(n)):
        reference.hadamard_matrix(n)
    with pytest.raises(ValueError, match=str(n)):
        hadamard(np.zeros(n))
