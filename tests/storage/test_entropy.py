"""Entropy-coded scale indices: near their entropy, and not counted where there are none."""

import dataclasses

import numpy as np
import pytest

from latticeq.storage.checkpoint import packed
from latticeq.storage.entropy import entropy_coded_nbytes
from tests.storage.packed_models import random_grid, random_nest


@pytest.mark.parametrize("shares", [(0.7, 0.2, 0.05, 0.05), (0.5, 0.5), (0.25, *[0.05] * 15)])
def test_close_to_the_entropy(shares: tuple[float, ...], rng: np.random.Generator) -> None:
    tensor = random_nest(256, 2048, 16, len(shares))
    index = rng.choice(len(shares), tensor.scale_index.shape, p=shares).astype(np.uint8)
    matrix = packed(dataclasses.replace(tensor, scale_index=index))
    entropy = -np.dot(shares, np.log2(shares)) * index.size / 8
    rest = matrix.nbytes - matrix.arrays["scale_index"].nbytes
    coded = entropy_coded_nbytes(matrix) - rest
    assert 0.98 * entropy < coded < 1.10 * entropy + 400
    assert coded <= matrix.arrays["scale_index"].nbytes


def test_nothing_to_code() -> None:
    for tensor in (
        random_nest(20, 64, 16, 1),
        random_nest(3, 8, 16, 4),
        random_nest(20, 64, 16, 8, cell="d8"),
        random_grid(20, 64, "int4", 64),
    ):
        assert entropy_coded_nbytes(packed(tensor)) == packed(tensor).nbytes == tensor.nbytes
