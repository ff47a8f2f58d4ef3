"""Arrays that no quantizer writes: a FormatError that names folder, tensor and value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError
from latticeq.quantizers.base import QuantizedTensor
from latticeq.quantizers.scalar import Int8
from latticeq.storage.bits import pack_digits, pack_scale_index
from latticeq.storage.checkpoint import describe, pack, read_packed
from latticeq.transforms.rotation import Rotation
from tests.storage.packed_models import random_grid, random_nest, random_pvq, write_parts

Arrays = dict[str, np.ndarray]
Change = Callable[[Arrays], object]

NEST = random_nest(20, 24, 14, 3)
RADIX = random_nest(20, 24, 14, 3, packing="radix")
D8 = random_nest(20, 24, 14, 5, cell="d8")
INT4 = random_grid(20, 24, "int4", 8, symmetric=False)
MXFP4 = random_grid(20, 64, "mxfp4", 32)
NVFP4 = random_grid(20, 64, "nvfp4", 16, rotation=Rotation(64, None, "none"))
PVQ = random_pvq(20, 48, 16, 8, 3)  # an index has 25 bits: 30316544 words
INT8 = Int8().quantize(np.random.default_rng(0).normal(size=(20, 24)))


def put(name: str, value: Any) -> Change:
    """Return a change that replaces an array."""

    def change(arrays: Arrays) -> None:
        arrays[f"w.{name}"] = value

    return change


def one(name: str, place: tuple[int, ...], value: Any) -> Change:
    """Return a change of one element of an array."""

    def change(arrays: Arrays) -> None:
        arrays[f"w.{name}"] = arrays[f"w.{name}"].copy()
        arrays[f"w.{name}"][place] = value

    return change


def without(name: str) -> Change:
    """Return a change that drops an array."""
    return lambda arrays: arrays.pop(f"w.{name}")


SCALES = "row_scale holds a negative, infinite or NaN"
RADIX_RANGE = r"an integer of sixteen digits is not below 14\*\*16, or one of eight"

CASES: list[tuple[QuantizedTensor, Change, str]] = [
    (NEST, without("digits"), r"\.digits is missing"),
    (NEST, without("betas"), r"\.betas is missing"),
    (NEST, put("row_scale", np.zeros(19, np.float16)), r"F16 \(19,\).*F16 \(20,\)"),
    (NEST, put("row_scale", np.zeros(20, np.float32)), r"F32 \(20,\).*F16 \(20,\)"),
    (NEST, put("row_scale", np.full(20, -1, np.float16)), SCALES),
    (NEST, put("row_scale", np.full(20, np.nan, np.float16)), SCALES),
    (NEST, put("row_scale", np.full(20, np.inf, np.float16)), SCALES),
    (NEST, put("betas", np.array([1, 2, 2], np.float32)), "positive and increasing"),
    (NEST, put("betas", np.array([0, 1, 2], np.float32)), "positive and increasing"),
    (NEST, put("betas", np.array([1, 2, np.inf], np.float32)), "positive and increasing"),
    (NEST, put("betas", np.array([1, np.nan, 2], np.float32)), "positive and increasing"),
    (
        NEST,
        put("digits", pack_digits(np.full((20, 3, 8), 15, np.uint8), 16)),
        "a digit is 15; it must be below 14",
    ),
    (
        NEST,
        put("scale_index", pack_scale_index(np.full((20, 3), 3, np.uint8), 4)),
        "a scale index is 3; it must be below 3",
    ),
    (NEST, one("digits", (1, 2, 15, 3), 0xE0), "a digit is 14"),  # a row of padding
    (RADIX, without("radix"), r"\.radix is missing"),
    (RADIX, put("radix", np.zeros((2, 183), np.uint8)), r"U8 \(2, 183\).*U8 \(2, 184\)"),
    (RADIX, one("radix", (0, slice(0, 8)), 255), RADIX_RANGE),
    (RADIX, one("radix", (1, slice(112, 122)), 255), RADIX_RANGE),  # a row of padding
    (RADIX, one("radix", (1, slice(176, 184)), 255), RADIX_RANGE),  # of the odd block
    (D8, without("words"), r"\.words is missing"),
    (D8, one("words", (0, 1, 3, 2), 0xEE), "a digit is 14; it must be below 14"),
    (D8, one("words", (1, 2, 15, 0), 0x0F), "a digit is 15"),
    # Bits 16, 20 and 24 of a word are those of the scale index.
    (D8, one("words", (0, 1, 3, slice(2, 4)), [0x10, 0x01]), "a scale index is 6; .* below 5"),
    (D8, one("words", (1, 2, 15, slice(2, 4)), [0x01, 0x01]), "a scale index is 5; .* below 5"),
    (D8, put("betas", np.array([5, 4, 3, 2, 1], np.float32)), "positive and increasing"),
    (D8, put("row_scale", np.full(20, -0.5, np.float16)), SCALES),
    (INT4, without("codes"), r"\.codes is missing"),
    (INT4, without("zero"), r"\.zero is missing"),
    (INT4, put("codes", np.zeros((2, 3, 16, 3), np.uint8)), "config.json makes it U8"),
    (INT4, put("scales", np.zeros((20, 3), np.uint8)), r"U8 \(20, 3\).*F16 \(20, 3\)"),
    (INT4, put("scales", np.zeros((20, 2), np.float16)), r"F16 \(20, 2\).*F16 \(20, 3\)"),
    (INT4, one("scales", (19, 2), np.nan), "scales holds a negative, infinite or NaN"),
    (INT4, one("scales", (0, 0), np.inf), "scales holds a negative, infinite or NaN"),
    (INT4, one("scales", (0, 0), -1), "scales holds a negative, infinite or NaN"),
    (INT4, one("zero", (19, 2), np.nan), "zero holds an infinite or NaN number"),
    (INT4, one("zero", (0, 0), -np.inf), "zero holds an infinite or NaN number"),
    (MXFP4, one("scales", (19, 1), 253), "a scale has code 253; it must be at most 252"),
    (NVFP4, one("scales", (19, 3), 127), "a scale has code 127; it must be at most 126"),
    (NVFP4, one("scales", (0, 0), 128), "a scale has code 128; it must be at most 126"),
    (NVFP4, without("tensor_scale"), r"\.tensor_scale is missing"),
    (NVFP4, put("tensor_scale", np.full(1, np.nan, np.float32)), "tensor_scale is nan"),
    (NVFP4, put("tensor_scale", np.full(1, -1, np.float32)), "tensor_scale is -1"),
    (NVFP4, put("tensor_scale", np.full(1, 1e35, np.float32)), r"tensor_scale is 1.*e\+35"),
    (NVFP4, put("tensor_scale", np.ones(2, np.float32)), r"F32 \(2,\).*F32 \(1,\)"),
    (PVQ, without("index"), r"\.index is missing"),
    (PVQ, without("levels"), r"\.levels is missing"),
    (PVQ, put("index", np.zeros((2, 3, 49), np.uint8)), r"U8 \(2, 3, 49\).*U8 \(2, 3, 50\)"),
    (PVQ, one("index", (0, 1, slice(0, 8)), 255), "row 0, group 1 names no word; .*30316544"),
    (PVQ, one("index", (1, 2, slice(47, 50)), 255), "row 31, group 2 names no word"),  # padding
    (PVQ, one("levels", (7,), np.nan), "levels holds a negative, infinite or NaN"),
    (PVQ, one("levels", (0,), -1), "levels holds a negative, infinite or NaN"),
    (PVQ, put("levels", np.ones(4, np.float32)), r"F32 \(4,\).*F32 \(8,\)"),
    (PVQ, put("row_scale", np.full(20, np.inf, np.float16)), SCALES),
    (INT8, put("row_scale", np.full(20, np.inf, np.float16)), SCALES),
    (INT8, put("int8", np.zeros((2, 6, 16, 3), np.uint8)), "config.json makes it U8"),
]


@pytest.mark.parametrize(("matrix", "change", "message"), CASES)
def test_bad_arrays_are_refused(
    tmp_path: Path, matrix: QuantizedTensor, change: Change, message: str
) -> None:
    arrays = {f"w.{suffix}": array for suffix, array in pack(matrix).items()}
    with write_parts(tmp_path / "good", arrays) as good:
        assert read_packed(good, "w", describe(matrix)).nbytes == matrix.nbytes
    change(arrays)
    with (
        write_parts(tmp_path / "bad", arrays) as bad,
        pytest.raises(FormatError, match=rf"bad.*tensor w.*{message}"),
    ):
        read_packed(bad, "w", describe(matrix))
