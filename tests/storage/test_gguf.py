"""GGUF: metadata and tensors equal what was written, block formats equal their definitions."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latticeq.errors import FormatError, MissingDependencyError
from latticeq.storage.gguf import GGUFFile
from tests.tiny_gguf import write_gguf


def halves(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return blocks.view("<f2").astype(np.float32)


def nibbles(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Sixteen bytes hold 32 entries: the low halves first, then the high ones."""
    return np.concatenate([blocks & 15, blocks >> 4], axis=-1).astype(np.float32)


def q4_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return halves(blocks[:, :2]) * (nibbles(blocks[:, 2:]) - 8)


def q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return halves(blocks[:, :2]) * nibbles(blocks[:, 4:]) + halves(blocks[:, 2:4])


def q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return halves(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def bf16(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


# Type: bytes and entries of a block, and its definition in plain NumPy.
FORMATS: dict[str, tuple[int, int, Any]] = {
    "Q4_0": (18, 32, q4_0),
    "Q4_1": (20, 32, q4_1),
    "Q8_0": (34, 32, q8_0),
    "BF16": (2, 1, bf16),
    "F16": (2, 1, halves),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_block_formats(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    n_bytes, n_entries, definition = FORMATS[kind]
    n_rows, n_blocks = 5, 64 // n_entries
    raw = rng.integers(0, 256, (n_rows * n_blocks, n_bytes), np.uint8)
    if n_entries > 1:  # finite scales; the digits stay arbitrary bytes
        raw[:, :2] = rng.standard_normal(len(raw)).astype("<f2").view(np.uint8).reshape(-1, 2)
        raw[:, 2:4] = rng.standard_normal(len(raw)).astype("<f2").view(np.uint8).reshape(-1, 2)
    rows = raw.reshape(n_rows, -1)
    path = write_gguf(tmp_path / "a.gguf", {}, {"w": rows}, {"w": kind})
    file = GGUFFile(path)
    tensor = file.tensors["w"]
    assert (tensor.type, tensor.shape, tensor.nbytes) == (kind, (5, 64), rows.nbytes)
    expected = definition(raw).reshape(5, 64)
    np.testing.assert_array_equal(file.float32("w").view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4)])
def test_float32_tensors(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    array = rng.standard_normal(shape, np.float32)
    file = GGUFFile(write_gguf(tmp_path / "a.gguf", {}, {"w": array, "v": array + 1}))
    np.testing.assert_array_equal(file.float32("w"), array)
    np.testing.assert_array_equal(file.float32("v"), array + 1)
    assert list(file.tensors) == ["w", "v"]


def test_rows_are_dequantized_in_pieces(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latticeq.storage.gguf._CHUNK_ENTRIES", 200)
    array = rng.standard_normal((10, 64), np.float32)
    file = GGUFFile(write_gguf(tmp_path / "a.gguf", {}, {"w": array}))
    np.testing.assert_array_equal(file.float32("w"), array)


def test_metadata(tmp_path: Path) -> None:
    pairs = {
        "number": 7,
        "decimal": 0.5,
        "flag": True,
        "text": "naïve ☃",
        "numbers": [1, -2, 3],
        "decimals": [0.5, 1.5],
        "texts": ["a", "", "ü"],
        "flags": [True, False],
    }
    metadata = GGUFFile(write_gguf(tmp_path / "a.gguf", pairs, {})).metadata
    for key in ("number", "decimal", "flag", "text", "texts"):
        assert metadata[key] == pairs[key]
        assert type(metadata[key]) is type(pairs[key])
    for key in ("numbers", "decimals", "flags"):
        np.testing.assert_array_equal(metadata[key], pairs[key])
    assert metadata["general.architecture"] == "llama"


def test_type_that_cannot_be_dequantized(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, {"positions": np.arange(3, dtype=np.int32)})
    file = GGUFFile(path)
    with pytest.raises(FormatError, match=r"tensor positions: has the type I32"):
        file.float32("positions")
    with pytest.raises(FormatError, match=r"a\.gguf: tensor other: is missing"):
        file.float32("other")


def test_without_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf", {}, {})
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError, match=r"pip install 'latticeq\[gguf\]'"):
        GGUFFile(path)
