"""Checkpoints read back what was written, and nothing that a quantizer would not write."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError, LatticeqError, VerificationError
from latticeq.quantizers.scalar import Int8
from latticeq.storage.checkpoint import (
    CHECKSUMS,
    FORMATS,
    describe,
    pack,
    quantization_config,
    read_packed,
    stored_shapes,
    verify,
)
from latticeq.storage.formats.base import rotation_of
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.safetensors import TensorFolder
from latticeq.transforms.rotation import Rotation
from tests.storage.packed_models import (
    random_grid,
    random_nest,
    random_pvq,
    write_checkpoint_of,
)

MATRICES = {
    "a.weight": random_nest(20, 24, 16, 4),
    "b.weight": random_nest(3, 16, 14, 3, seed=9),
    "c.weight": random_nest(17, 8, 63, 1, rotate="none"),
    "e.weight": random_nest(20, 24, 14, 4, packing="radix"),
    "f.weight": random_nest(20, 24, 9, 4, cell="nestquantm"),
    "g.weight": random_nest(20, 24, 12, 8, cell="cubic", packing="radix"),
    "h.weight": random_nest(20, 24, 14, 5, cell="d8"),
    "i.weight": random_grid(20, 20, "int4", 20),
    "j.weight": random_grid(20, 20, "int4", 8, symmetric=False),
    "k.weight": random_grid(5, 65, "nf4", 64, rotation=Rotation(65, None, "none")),
    "l.weight": random_grid(20, 64, "mxfp4", 32, rotation=Rotation(64, None, block=32)),
    "m.weight": random_grid(17, 48, "nvfp4", 16, rotation=Rotation(48, 3, block=16)),
    "n.weight": random_pvq(20, 48, 16, 58, 4),
    "o.weight": random_pvq(17, 80, 40, 60, 0),
    "d.weight": Int8().quantize(np.random.default_rng(0).normal(size=(5, 12))),
}
"""One matrix of every format, with shapes that leave a row group and a word part empty."""


def test_every_format_is_tried() -> None:
    assert {describe(matrix)["format"] for matrix in MATRICES.values()} == set(FORMATS)


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
            for suffix, array in pack(again).items():
                assert array.tobytes() == pack(matrix)[suffix].tobytes()
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


PVQ = {"format": "pvq", "shape": [20, 48], "group": 16, "pulses": 58, "gain_bits": 4}
PVQ |= {"rotation": "none", "seed": None}
NEST = {"format": "voronoi", "shape": [20, 24], "q": 16, "k": 4, "rotation": "none", "seed": None}
GRID = {"shape": [20, 64], "rotation": "none", "seed": None}
INT4 = GRID | {"format": "int4", "group": 20, "symmetric": True}


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        (NEST, {"format": "int3"}, "format"),
        (NEST, {"format": ["voronoi"]}, "format"),
        (NEST, {"shape": [20]}, "shape"),
        (NEST, {"shape": [20, 25]}, "multiple of 8"),
        (NEST, {"shape": [20, 2**40]}, "shape"),
        (NEST, {"shape": [0, 24]}, "shape"),
        (NEST, {"shape": [True, 24]}, "shape"),
        (NEST, {"shape": "20x24"}, "shape"),
        (NEST, {"q": 1}, "q is 1"),
        (NEST, {"q": 64}, "q is 64"),
        (NEST, {"q": 16.0}, "q is 16.0"),
        (NEST, {"q": None}, "q is None"),
        (NEST, {"k": 0}, "k is 0"),
        (NEST, {"k": 17}, "k is 17"),
        (NEST, {"rotation": "givens"}, "rotation is 'givens'"),
        (NEST, {"rotation": ["none"]}, "rotation is"),
        (NEST, {"seed": -1}, "seed is -1"),
        (NEST, {"seed": 2**64}, "seed"),
        (NEST, {"seed": 1}, "a seed is given for rotation 'none'"),
        (NEST, {"block": 8}, "a block is given for rotation 'none'"),
        (NEST, {"rotation": "hadamard", "block": 5}, "block is 5"),
        (NEST, {"rotation": "hadamard", "block": 3}, "block is 3"),
        (NEST, {"rotation": "hadamard", "block": 0}, "block is 0"),
        (NEST, {"rotation": "hadamard", "block": 8.0}, "block is 8.0"),
        (NEST, {"packing": "radix"}, "packing is 'radix' with q = 16"),
        (NEST, {"packing": "radix", "q": 63}, "packing is 'radix' with q = 63"),
        (NEST, {"packing": "digits"}, "packing is 'digits'"),
        (NEST, {"packing": None}, "packing is None"),
        (NEST, {"format": "cubic", "q": 15}, "q is 15; it must be even"),
        (NEST, {"format": "d8", "q": 15}, "q is 15; it must be even"),
        (NEST, {"format": "d8", "k": 9}, "k is 9; it must be from 1 to 8"),
        (INT4, {"shape": [20, 0]}, "shape"),
        (INT4, {"group": 0}, "group is 0"),
        (INT4, {"group": 65}, "group is 65; it must be from 1 to 64"),
        (PVQ, {"group": 1}, "group is 1; it must be from 2 to 256"),
        (PVQ, {"group": "16"}, "group is '16'"),
        (PVQ, {"group": 32}, "the second a multiple of 32"),
        (PVQ, {"pulses": 0}, "pulses is 0; it must be from 1 to 4095"),
        (PVQ, {"pulses": 4096}, "pulses is 4096"),
        (PVQ, {"gain_bits": 9}, "gain_bits is 9; it must be from 0 to 8"),
        (PVQ, {"group": 256, "shape": [1, 256], "pulses": 4095}, "take smaller groups"),
        (PVQ, {"rotation": "random"}, "rotation is 'random'"),
        (INT4, {"group": None}, "group is None"),
        (INT4, {"symmetric": 1}, "symmetric is 1"),
        (INT4, {"symmetric": None}, "symmetric is None"),
        (INT4, {"rotation": None}, "rotation is None"),
        (GRID, {"format": "nf4"}, "group is None"),
        (GRID, {"format": "mxfp4", "group": 16}, "group is 16; it must be 32"),
        (GRID, {"format": "nvfp4", "group": 16.0}, "group is 16.0; it must be 16"),
        (GRID, {"format": "mxfp4", "group": 32, "shape": [20, 48]}, "multiple of 32"),
        (GRID, {"format": "nvfp4", "group": 16, "shape": [20, 56]}, "multiple of 16"),
    ],
)
def test_bad_entries_are_refused(
    entry: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    config = {
        "quantization_config": {
            "quant_method": "latticeq",
            "format_version": 1,
            "tensors": {"w": entry | change},
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


def test_a_missing_seed_means_none() -> None:
    entry = {key: value for key, value in NEST.items() if key != "seed"}
    assert rotation_of(entry) == Rotation(24, None, "none")
