"""Format v1 as it was frozen: its bytes, its codewords, its tie rule, its signs and rotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.codes.nested import NestedCode
from latticeq.storage.bits import (
    pack_digits,
    pack_int8,
    pack_scale_index,
    unpack_digits,
    unpack_int8,
    unpack_scale_index,
)
from latticeq.transforms.rotation import Rotation, random_signs
from tests.golden.make_format_v1 import make

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("format_v1.json").read_text("utf-8"))


def test_the_generator_still_makes_the_file() -> None:
    assert json.loads(json.dumps(make())) == VECTORS


@pytest.mark.parametrize("vector", VECTORS["voronoi"], ids=lambda v: f"q={v['q']},k={v['k']}")
def test_voronoi_codewords(vector: dict[str, Any]) -> None:
    q, k = vector["q"], vector["k"]
    digits = np.array(vector["digits"], np.uint8)
    packed = pack_digits(digits, q)
    assert packed[:, :, :3].tobytes().hex() == vector["packed_digits"]
    assert not packed[:, :, 3:].any()
    assert np.array_equal(unpack_digits(packed, q, 3), digits)
    scale_index = np.array(vector["scale_index"], np.uint8)
    packed = pack_scale_index(scale_index, k)
    assert packed.tobytes().hex() == vector["packed_scale_index"]
    assert np.array_equal(unpack_scale_index(packed, k, 3), scale_index)
    doubled = NestedCode(q, (1.0,)).points(digits.reshape(-1, 8))
    assert doubled.reshape(3, 2, 8).tolist() == vector["doubled"]


@pytest.mark.parametrize("vector", VECTORS["ties"], ids=lambda v: f"q={v['q']}")
def test_ties(vector: dict[str, Any]) -> None:
    digits = np.array(vector["digits"], np.uint8)
    assert NestedCode(vector["q"], (1.0,)).points(digits).tolist() == vector["doubled"]


def test_int8_rows() -> None:
    values = np.array(VECTORS["int8"]["values"], np.int8)
    packed = pack_int8(values)
    assert packed[:, :, :2].tobytes().hex() == VECTORS["int8"]["packed"]
    assert (packed[:, :, 2:] == 128).all()
    assert np.array_equal(unpack_int8(packed, 2), values)


@pytest.mark.parametrize("vector", VECTORS["signs"], ids=lambda v: f"seed={v['seed']}")
def test_signs(vector: dict[str, Any]) -> None:
    assert random_signs(24, vector["seed"]).astype(int).tolist() == vector["signs"]


@pytest.mark.parametrize("vector", VECTORS["rotations"], ids=lambda v: f"n={v['n']}")
def test_rotations(vector: dict[str, Any]) -> None:
    n, rotation = vector["n"], Rotation(vector["n"], vector["seed"])
    is_minus = np.array([digit == "1" for digit in vector["is_minus"]]).reshape(n, n)
    assert np.array_equal(rotation.matrix() < 0, is_minus)
    assert np.array_equal(rotation.apply(np.eye(n)).T < -1e-9, is_minus)
