"""Checkpoints read back what was written, and nothing that a quantizer would not write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError, LatticeqError, VerificationError
from latticeq.quantizers.scalar import Int8
from latticeq.storage.bits import pack_digits, pack_scale_index
from latticeq.storage.checkpoint import (
    CHECKSUMS,
    PackedInt8,
    PackedVoronoi,
    describe,
    pack,
    quantization_config,
    read_packed,
    stored_shapes,
    verify,
)
from latticeq.storage.safetensors import TensorFolder
from tests.storage.packed_models import random_nest, write_checkpoint_of, write_parts

MATRICES = {
    "a.weight": random_nest(20, 24, 16, 4),
    "b.weight": random_nest(3, 16, 14, 3, seed=9),
    "c.weight": random_nest(17, 8, 63, 1, rotate="none"),
    "d.weight": Int8().quantize(np.random.default_rng(0).normal(size=(5, 12))),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    write_checkpoint_of(folder, MATRICES)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def test_matrices_come_back(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text("utf-8"))
    entries = quantization_config(config)["tensors"]
    with TensorFolder(whole) as tensors:
        for name, matrix in MATRICES.items():
            packed = read_packed(tensors, name, entries[name])
            assert packed.nbytes == matrix.nbytes
            again = packed.unpack()
            assert np.array_equal(again.dequantize(), matrix.dequantize())
            assert again.shape == matrix.shape
            assert describe(again) == describe(matrix) == entries[name]
            assert again.row_scale.tobytes() == matrix.row_scale.tobytes()
    assert isinstance(packed, PackedInt8)


def test_arrays_have_the_shapes_that_the_entry_makes_them() -> None:
    for matrix in MATRICES.values():
        shapes = stored_shapes(describe(matrix))
        arrays = pack(matrix)
        assert list(shapes) == list(arrays)
        for suffix, (dtype, shape) in shapes.items():
            assert arrays[suffix].shape == shape
            assert {"U8": "uint8", "F16": "float16", "F32": "float32"}[dtype] == arrays[
                suffix
            ].dtype


def test_verify_counts_what_it_read(whole: Path) -> None:
    seen: list[str] = []

    def watch(names: Any) -> Any:
        for name in names:
            seen.append(name)
            yield name

    counted = verify(whole, watch)
    with TensorFolder(whole) as tensors:
        assert sorted(seen) == tensors.names
        nbytes = sum(tensors.info(name).nbytes for name in tensors.names)
    assert counted == {"tensors": len(seen), "files": 1, "nbytes": nbytes}


def changed(path: Path, place: int, value: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= value
    path.write_bytes(data)


def test_verify_sees_every_changed_byte(copy: Path) -> None:
    names = [path.name for path in copy.iterdir() if path.name != CHECKSUMS]
    assert set(names) == {"config.json", "model.safetensors"}
    rng = np.random.default_rng(1)
    for name in names:
        path = copy / name
        size = path.stat().st_size
        for place in range(0, size, max(1, size // 400)):
            bit = 1 << int(rng.integers(8))
            changed(path, place, bit)
            with pytest.raises(VerificationError, match="1 of the checkpoint's parts differ"):
                verify(copy)
            changed(path, place, bit)
    assert verify(copy)["files"] == 1


def test_verify_sees_every_truncation(copy: Path) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(LatticeqError, match=r"model\.safetensors"):
            verify(copy)


def test_changed_checksums_never_pass_as_they_were(copy: Path) -> None:
    path = copy / CHECKSUMS
    text = path.read_text("utf-8")
    for place in [i for i, character in enumerate(text) if not character.isspace()][::7]:
        path.write_text(text[:place] + "#" + text[place + 1 :], "utf-8")
        with pytest.raises(LatticeqError):
            verify(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; give a folder"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "must be an object"),
        ('{"format_version": 1, "files": {}, "tensors": []}', "must be an object"),
        ('{"format_version": 2, "files": {}, "headers": {}, "tensors": {}}', "version 2"),
    ],
)
def test_checksums_of_another_kind_are_refused(
    copy: Path, content: str | None, message: str
) -> None:
    (copy / CHECKSUMS).unlink()
    if content is not None:
        (copy / CHECKSUMS).write_text(content, "utf-8")
    with pytest.raises(FormatError, match=f"{CHECKSUMS}.*{message}"):
        verify(copy)


def test_verify_names_what_is_missing_or_new(copy: Path) -> None:
    record = json.loads((copy / CHECKSUMS).read_text("utf-8"))
    digest = record["tensors"].pop("a.weight.digits")
    record["tensors"]["gone"] = digest
    record["files"]["../config.json"] = digest
    (copy / CHECKSUMS).write_text(json.dumps(record), "utf-8")
    with pytest.raises(VerificationError, match=r"file \.\./config\.json \(missing\)"):
        verify(copy)
    del record["files"]["../config.json"]
    (copy / CHECKSUMS).write_text(json.dumps(record), "utf-8")
    with pytest.raises(VerificationError, match=r"a\.weight\.digits \(no checksum\).*gone \(miss"):
        verify(copy)


ENTRY = {"format": "voronoi", "shape": [20, 24], "q": 16, "k": 4, "rotation": "none", "seed": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "int3"}, "format"),
        ({"shape": [20]}, "shape"),
        ({"shape": [20, 25]}, "multiple of 8"),
        ({"shape": [20, 2**40]}, "shape"),
        ({"shape": [0, 24]}, "shape"),
        ({"shape": [True, 24]}, "shape"),
        ({"shape": "20x24"}, "shape"),
        ({"q": 1}, "q is 1"),
        ({"q": 64}, "q is 64"),
        ({"q": 16.0}, "q is 16.0"),
        ({"q": None}, "q is None"),
        ({"k": 0}, "k is 0"),
        ({"k": 17}, "k is 17"),
        ({"rotation": "givens"}, "rotation is 'givens'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1}, "a seed is given for rotation 'none'"),
    ],
)
def test_bad_entries_are_refused(change: dict[str, Any], message: str) -> None:
    config = {
        "quantization_config": {
            "quant_method": "latticeq",
            "format_version": 1,
            "tensors": {"w": ENTRY | change},
        }
    }
    with pytest.raises(FormatError, match=rf"tensors\['w'\]: .*{message}"):
        quantization_config(config)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "no quantization_config of latticeq's"),
        ({"quant_method": "gptq"}, "no quantization_config of latticeq's"),
        ({"quant_method": "latticeq"}, "format version None"),
        ({"quant_method": "latticeq", "format_version": 2, "tensors": {}}, "version 2"),
        ({"quant_method": "latticeq", "format_version": 1}, "must be an object"),
        ({"quant_method": "latticeq", "format_version": 1, "tensors": {"w": 3}}, "is 3"),
    ],
)
def test_other_configurations_are_refused(found: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        quantization_config({"quantization_config": found})


def out_of_range_digits(arrays: dict[str, np.ndarray]) -> None:
    arrays["w.digits"] = pack_digits(np.full((20, 3, 8), 15, np.uint8), 16)


def out_of_range_index(arrays: dict[str, np.ndarray]) -> None:
    arrays["w.scale_index"] = pack_scale_index(np.full((20, 3), 3, np.uint8), 4)


def put(name: str, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[f"w.{name}"] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("w.digits"), r"w\.digits is missing"),
        (lambda arrays: arrays.pop("w.betas"), r"w\.betas is missing"),
        (put("row_scale", np.zeros(19, np.float16)), r"F16 \(19,\).*F16 \(20,\)"),
        (put("row_scale", np.zeros(20, np.float32)), r"F32 \(20,\).*F16 \(20,\)"),
        (put("row_scale", np.full(20, -1, np.float16)), "row_scale holds"),
        (put("row_scale", np.full(20, np.nan, np.float16)), "row_scale holds"),
        (put("row_scale", np.full(20, np.inf, np.float16)), "row_scale holds"),
        (put("betas", np.array([1, 2, 2], np.float32)), "positive and increasing"),
        (put("betas", np.array([0, 1, 2], np.float32)), "positive and increasing"),
        (put("betas", np.array([1, 2, np.inf], np.float32)), "positive and increasing"),
        (put("betas", np.array([1, np.nan, 2], np.float32)), "positive and increasing"),
        (out_of_range_digits, "a digit is 15; it must be below 14"),
        (out_of_range_index, "a scale index is 3; it must be below 3"),
    ],
)
def test_bad_arrays_are_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    matrix = random_nest(20, 24, 14, 3)
    arrays = {f"w.{suffix}": array for suffix, array in pack(matrix).items()}
    with write_parts(tmp_path / "good", arrays) as good:
        assert isinstance(read_packed(good, "w", describe(matrix)), PackedVoronoi)
    change(arrays)
    with write_parts(tmp_path / "bad", arrays) as bad, pytest.raises(FormatError, match=message):
        read_packed(bad, "w", describe(matrix))
