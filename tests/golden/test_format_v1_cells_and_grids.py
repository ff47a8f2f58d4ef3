"""The formats besides voronoi and int8 as they were frozen: their bytes and their numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.codes.nested import NestedCode
from latticeq.codes.pyramid import PyramidCode
from latticeq.linear.packed import make_packed_linear
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.grid_tensor import GridTensor
from latticeq.quantizers.nestquant import NestTensor
from latticeq.quantizers.pvq import PVQTensor
from latticeq.storage.checkpoint import packed
from latticeq.transforms.rotation import Rotation
from tests.golden.make_format_v1_cells_and_grids import PATH, make

VECTORS: dict[str, Any] = json.loads(Path(PATH).read_text("utf-8"))


def test_the_generator_still_makes_the_file() -> None:
    assert json.loads(json.dumps(make())) == VECTORS


@pytest.mark.parametrize("vector", VECTORS["cells"], ids=lambda v: f"{v['cell']},q={v['q']}")
def test_codewords(vector: dict[str, Any]) -> None:
    code = NestedCode(vector["q"], (1.0,), vector["cell"])
    digits = np.array(vector["digits"], np.uint8)
    assert code.points(digits).tolist() == vector["points"]


def nest_of(vector: dict[str, Any], cell: str, packing: str = "digits") -> NestTensor:
    """Return the matrix that a vector names, all row scales one."""
    digits = np.array(vector["digits"], np.uint8)
    index = np.array(vector.get("scale_index", np.zeros(digits.shape[:2])), np.uint8)
    code = NestedCode(vector["q"], tuple(range(1, 2 + int(index.max()))), cell)
    n = 8 * digits.shape[1]
    rows = (digits, index, np.ones(len(digits), np.float16))
    return NestTensor((len(digits), n), code, Rotation(n), *rows, packing=packing)


def assert_is_read(tensor: QuantizedTensor, raw: np.ndarray, wanted: str) -> None:
    """Check bytes of the two rows there are, and that unpacking and tiles give the matrix."""
    assert raw.tobytes().hex() == wanted
    found = packed(tensor)
    found.check()
    assert found.unpack().rotated().tobytes() == tensor.rotated().tobytes()
    product = make_packed_linear(found).multiply_rotated(np.eye(tensor.shape[1], dtype=np.float32))
    assert np.array_equal(product.T, tensor.rotated())


@pytest.mark.parametrize("vector", VECTORS["radix"], ids=lambda v: f"q={v['q']}")
def test_mixed_radix(vector: dict[str, Any]) -> None:
    tensor = nest_of(vector, "voronoi", "radix")
    assert_is_read(tensor, packed(tensor).arrays["radix"], vector["packed"])


@pytest.mark.parametrize("vector", VECTORS["d8"], ids=lambda v: f"q={v['q']}")
def test_words_of_d8(vector: dict[str, Any]) -> None:
    tensor = nest_of(vector, "d8")
    words = packed(tensor).arrays["words"]
    assert not words[:, :, 2:].any()
    assert_is_read(tensor, words[:, :, :2], vector["packed"])


@pytest.mark.parametrize("vector", VECTORS["grids"], ids=lambda v: v["kind"])
def test_grids(vector: dict[str, Any]) -> None:
    kind, codes = vector["kind"], np.array(vector["codes"], np.uint8)
    dtype = "u1" if kind in {"mxfp4", "nvfp4"} else "<f2"
    scale = vector.get("tensor_scale")
    tensor = GridTensor(
        codes.shape,
        "int4" if kind == "uint4" else kind,
        vector["group"],
        Rotation(codes.shape[1], None, "none"),
        codes,
        np.frombuffer(bytes.fromhex(vector["scales"]), dtype).reshape(2, 2),
        np.frombuffer(bytes.fromhex(vector["zero"]), "<f2").reshape(2, 2)
        if "zero" in vector
        else None,
        None if scale is None else np.float32(scale),
    )
    assert np.array_equal(tensor.rotated(), _values(vector))
    stored = packed(tensor).arrays
    assert stored["scales"].tobytes().hex() == vector["scales"]
    assert not stored["codes"][:, :, 2:].any()
    assert_is_read(tensor, stored["codes"][:, :, :2], vector["packed"])


@pytest.mark.parametrize("vector", VECTORS["pvq"], ids=lambda v: f"group={v['group']}")
def test_pyramid_codes(vector: dict[str, Any]) -> None:
    words = np.array(vector["words"], np.int16)
    n = words.shape[1] * vector["group"]
    tensor = PVQTensor(
        (2, n),
        PyramidCode(vector["group"], vector["pulses"]),
        Rotation(n, None, "none"),
        words,
        np.array(vector["gain_index"], np.uint8),
        np.frombuffer(bytes.fromhex(vector["levels"]), "<f4"),
        np.frombuffer(bytes.fromhex(vector["row_scale"]), "<f2"),
    )
    assert tensor.rotated().astype("<f4").tobytes().hex() == vector["values"]
    stored = packed(tensor).arrays
    assert stored["gain_index"].tobytes().hex() == vector["packed_gains"]
    assert_is_read(tensor, stored["index"], vector["index"])


def _values(vector: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(bytes.fromhex(vector["values"]), "<f4")
    return values.reshape(np.shape(vector["codes"]))
