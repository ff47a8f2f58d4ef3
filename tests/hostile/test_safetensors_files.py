"""Damaged and malicious safetensors folders: a FormatError that names file and tensor."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import FormatError, LatticeqError
from latticeq.storage.safetensors import TensorFolder

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


HEADERS = {
    "truncated data": ({"a": GOOD}, bytes(7)),
    "trailing data": ({"a": GOOD}, bytes(9)),
    "negative shape": ({"a": GOOD | {"shape": [-2]}}, bytes(8)),
    "fractional shape": ({"a": GOOD | {"shape": [2.5]}}, bytes(8)),
    "shape beyond the data": ({"a": GOOD | {"shape": [3]}}, bytes(8)),
    "shape whose product overflows": ({"a": GOOD | {"shape": [1 << 40, 1 << 40]}}, bytes(8)),
    "dtype of another size": ({"a": GOOD | {"dtype": "F64"}}, bytes(8)),
    "unknown dtype": ({"a": GOOD | {"dtype": "F33"}}, bytes(8)),
    "overlap": ({"a": GOOD, "b": GOOD | {"data_offsets": [4, 12]}}, bytes(12)),
    "hole": ({"a": GOOD, "b": GOOD | {"data_offsets": [12, 20]}}, bytes(20)),
    "too many dimensions": ({"a": GOOD | {"shape": [2] + [1] * 99}}, bytes(8)),
    "empty and endless": ({"a": GOOD | {"shape": [1 << 62, 0], "data_offsets": [0, 0]}}, b""),
    "offsets reversed": ({"a": GOOD | {"data_offsets": [8, 0]}}, bytes(8)),
    "offsets beyond 64 bits": ({"a": GOOD | {"data_offsets": [0, 1 << 70]}}, bytes(8)),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "metadata that is not text": ({"a": GOOD, "__metadata__": {"x": 1}}, bytes(8)),
    "not an object": ([GOOD], bytes(8)),
    "not JSON": (b'{"a":', bytes(8)),
    "not UTF-8": (b'{"\xff":{}}', bytes(8)),
    "nested without end": (b"[" * 100_000, b""),
    "duplicate name": (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_bad_header(tmp_path: Path, case: str) -> None:
    header, data = HEADERS[case]
    raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("length", [1 << 30, 1 << 62, (1 << 64) - 1, 50])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    raw_file(tmp_path / "model.safetensors", b"{}", length=length)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0", bytes(8), b"version https://git-lfs"])
def test_not_a_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        TensorFolder(tmp_path)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        TensorFolder(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.arange(4, dtype=np.float32)}, path)
    whole = path.read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(FormatError):
            TensorFolder(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=4))
def test_flipped_bytes_never_crash(tmp_path_factory: Any, flips: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("flips")
    path = folder / "model.safetensors"
    arrays = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 3), np.float16)}
    safetensors.numpy.save_file(arrays, path)
    content = bytearray(path.read_bytes())
    for position, value in flips:
        content[position % len(content)] = value
    path.write_bytes(content)
    try:
        with TensorFolder(folder) as opened:
            for name in opened.names:
                opened.float32(name)
    except LatticeqError as error:
        assert str(path) in str(error)


def test_metadata_that_is_null_is_none(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", {"__metadata__": None, "a": GOOD}, bytes(8))
    opened = TensorFolder(tmp_path)
    assert (opened.metadata, opened.names) == ({}, ["a"])


def test_dtype_without_a_numpy_counterpart(tmp_path: Path) -> None:
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    raw_file(tmp_path / "model.safetensors", {"eight": entry}, bytes(4))
    with pytest.raises(FormatError, match="tensor eight has dtype F8_E4M3"):
        TensorFolder(tmp_path).raw("eight")


def test_unaligned_tensor_is_copied(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    raw_file(tmp_path / "model.safetensors", header, b"\1" + np.array([1, 2], np.float32).tobytes())
    array = TensorFolder(tmp_path).raw("b")
    assert array.flags.aligned
    np.testing.assert_array_equal(array, [1, 2])


@pytest.mark.parametrize(
    "file",
    [
        "../other.safetensors",
        "/etc/other.safetensors",
        "sub/other.safetensors",
        "..\\other.safetensors",
        "C:other.safetensors",
        ".hidden.safetensors",
        "..",
        "",
        "config.json",
        "nul\0.safetensors",
        "half a pair \ud800.safetensors",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_index_cannot_leave_the_folder(tmp_path: Path, file: object) -> None:
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="tensor a in"):
        TensorFolder(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\udcff"]
)
def test_bad_index(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match=r"index\.json"):
        TensorFolder(tmp_path)


def test_index_names_a_missing_shard_or_tensor(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"one\.safetensors: cannot be read"):
        TensorFolder(tmp_path)
    safetensors.numpy.save_file({"b": np.zeros(2)}, tmp_path / "one.safetensors")
    with pytest.raises(FormatError, match=r"one\.safetensors: tensor a is missing"):
        TensorFolder(tmp_path)


def test_missing_folder_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="nowhere has neither"):
        TensorFolder(tmp_path / "nowhere")
    safetensors.numpy.save_file({"b": np.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match="tensor c is missing"):
        TensorFolder(tmp_path).raw("c")
