"""Damaged and malicious GGUF files: a FormatError that names file and tensor, never a hang."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticeq.errors import FormatError, LatticeqError
from latticeq.model.gguf_import import import_gguf
from latticeq.storage.gguf import GGUFFile
from tests.tiny_gguf import write_gguf, write_tiny_model

U32, U64_MAX = 4, (1 << 64) - 1


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def tensor(
    name: bytes = b"w", dims: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0
) -> bytes:
    described = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + described + struct.pack("<IQ", kind, offset)


def gguf_bytes(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = bytes(4096),
    version: int = 3,
) -> bytes:
    pairs, tensors = pairs or [], tensors or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    head += b"".join(pairs + tensors)
    return head + bytes(-len(head) % 32) + data


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


FILES = {
    "empty": (b"", "the file is empty"),
    "another format": (b"PK\3\4" + bytes(100), "is not a GGUF file"),
    "only the magic": (b"GGUF", "the version takes 4 bytes"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1"),
    "big endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "endless pairs": (b"GGUF" + struct.pack("<IQQ", 3, 0, U64_MAX), "metadata key 0"),
    "endless tensors": (b"GGUF" + struct.pack("<IQQ", 3, U64_MAX, 0), "name of tensor 0"),
    "endless string": (
        gguf_bytes([struct.pack("<Q", U64_MAX)]),
        r"metadata key 0 of 1 takes \d+ bytes; 65535",
    ),
    "endless array": (gguf_bytes([pair(b"k", 9, array(U32, U64_MAX))]), "metadata 'k' takes"),
    "endless strings": (gguf_bytes([pair(b"k", 9, array(8, U64_MAX))], data=b""), "metadata 'k'"),
    "nested array": (gguf_bytes([pair(b"k", 9, array(9, 1))]), "unsupported value type 9"),
    "unknown value": (gguf_bytes([pair(b"k", 99, b"")]), "unknown value type 99"),
    "key twice": (gguf_bytes([pair(b"k", 0, b"\1")] * 2), "'k' occurs twice"),
    "key not UTF-8": (gguf_bytes([pair(b"\xff", 0, b"\1")]), "is not UTF-8"),
    "alignment 0": (
        gguf_bytes([pair(b"general.alignment", U32, bytes(4))]),
        "general.alignment is 0",
    ),
    "alignment text": (gguf_bytes([pair(b"general.alignment", 8, text(b"x"))]), "alignment is 'x'"),
    "no dimension": (gguf_bytes(tensors=[tensor(dims=())]), "tensor 'w': has 0 dimensions"),
    "five dimensions": (gguf_bytes(tensors=[tensor(dims=(1,) * 5)]), "'w': has 5 dimensions"),
    "empty dimension": (gguf_bytes(tensors=[tensor(dims=(0, 2))]), r"'w': has shape \(2, 0\)"),
    "overflowing shape": (gguf_bytes(tensors=[tensor(dims=(1 << 33, 1 << 33))]), "'w': ends at"),
    "huge offset": (gguf_bytes(tensors=[tensor(offset=U64_MAX)]), "'w': ends at byte"),
    "beyond the end": (gguf_bytes(tensors=[tensor(offset=4000)]), "'w': ends at byte"),
    "ragged block": (gguf_bytes(tensors=[tensor(dims=(33, 2), kind=2)]), "multiple of 32"),
    "endless name": (gguf_bytes(tensors=[tensor(b"w" * 65)]), "tensor 0 of 1 takes 65 bytes; 64"),
    "unknown type": (gguf_bytes(tensors=[tensor(kind=4)]), "'w': has the type number 4"),
    "tensor twice": (gguf_bytes(tensors=[tensor(), tensor(offset=256)]), "'w': occurs twice"),
    "overlap": (
        gguf_bytes(tensors=[tensor(), tensor(b"v", offset=224)]),
        "'w' and 'v' overlap",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    content, words = FILES[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)


def test_the_maker_of_bad_files_can_make_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(gguf_bytes([pair(b"k", U32, b"\7\0\0\0")], [tensor()]))
    file = GGUFFile(path)
    assert file.metadata == {"k": 7}
    np.testing.assert_array_equal(file.float32("w"), np.zeros((2, 32)))


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        GGUFFile(tmp_path / name)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    pairs = {"number": 7, "texts": ["a", "b"]}
    arrays = {"w": np.ones((2, 8), np.float32)}  # a multiple of the alignment: no padding behind
    path = write_gguf(tmp_path / "a.gguf", pairs, arrays)
    whole = path.read_bytes()
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(FormatError):
            GGUFFile(path)


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: Any) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_tiny_model(path, np.random.default_rng(1)).read_bytes()


@given(flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6))
def test_flipped_bytes_never_crash(
    tmp_path_factory: Any, model_bytes: bytes, flips: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("flips")
    content = bytearray(model_bytes)
    for position, value in flips:
        content[position % 10_000] = value  # metadata, vocabulary and tensor descriptions
    source = folder / "model.gguf"
    source.write_bytes(content)
    try:
        import_gguf(source, folder / "out", progress=False)
    except LatticeqError as error:
        assert str(source) in str(error)
        assert list(folder.iterdir()) == [source]
    else:
        assert sorted(path.name for path in folder.iterdir()) == ["model.gguf", "out"]


def test_truncated_model_leaves_nothing(tmp_path: Path, model_bytes: bytes) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(model_bytes[:-1000])
    with pytest.raises(FormatError, match=r"tensor 'blk\.1"):
        import_gguf(source, tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == [source]
