"""safetensors: what is written is what the safetensors library and TensorFolder read."""

import errno
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from latticeq.errors import FormatError, InputError, LatticeqError
from latticeq.storage.safetensors import (
    DTYPES,
    SafetensorsWriter,
    TensorFolder,
    bfloat16_to_float32,
)


def write(path: Path, arrays: dict[str, np.ndarray], dtypes: dict[str, str] | None = None) -> Path:
    names = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
    with SafetensorsWriter(path, {"format": "pt"}) as writer:
        for name, array in arrays.items():
            writer.declare(name, (dtypes or {}).get(name) or names[array.dtype], array.shape)
        for name, array in reversed(arrays.items()):  # any order
            writer.write(name, array)
    return path


ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    hnp.arrays(
        st.sampled_from([np.dtype(code) for code in ("?", "u1", "i2", "f2", "f4", "f8", "u8")]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9),
    ),
    max_size=6,
)


@given(ARRAYS)
def test_round_trip_through_bytes(tmp_path_factory: Any, arrays: dict[str, np.ndarray]) -> None:
    folder = tmp_path_factory.mktemp("round")
    path = write(folder / "model.safetensors", arrays)
    with TensorFolder(folder) as ours:
        assert ours.names == sorted(arrays)
        assert ours.metadata == {"format": "pt"}
        for name, array in arrays.items():
            read = ours.raw(name)
            assert (read.shape, read.dtype) == (array.shape, array.dtype)
            assert read.tobytes() == array.tobytes()  # bits: NaN payloads and -0 count
            assert read.flags.aligned
            assert not read.flags.writeable
    theirs = safetensors.numpy.load_file(path)
    assert {name: array.tobytes() for name, array in theirs.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_reads_what_the_library_writes(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {"a": rng.standard_normal((3, 5), np.float32), "b": np.arange(7, dtype=np.int8)}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    with TensorFolder(tmp_path) as folder:
        for name, array in arrays.items():
            np.testing.assert_array_equal(folder.raw(name), array)
        info = folder.info("a")
    assert (info.dtype, info.shape, info.nbytes) == ("F32", (3, 5), 60)
    assert info.path == tmp_path / "model.safetensors"


def test_exact_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with SafetensorsWriter(path, {"k": "v"}) as writer:
        writer.declare("odd", "U8", (3,))
        writer.declare("big", "F32", (16,))
        writer.write("odd", np.array([1, 2, 3], np.uint8))
        writer.write("big", np.arange(16, dtype=np.float32))
    header = (
        b'{"__metadata__":{"k":"v"},"big":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},'
        b'"odd":{"dtype":"U8","shape":[3],"data_offsets":[64,67]}}'
    )
    padded = header.ljust(-(-(8 + len(header)) // 64) * 64 - 8)
    data = np.arange(16, dtype="<f4").tobytes() + bytes([1, 2, 3])
    assert path.read_bytes() == struct.pack("<Q", len(padded)) + padded + data


def test_multiples_of_64_bytes_are_aligned_to_64(tmp_path: Path) -> None:
    sizes = [1, 64, 7, 128, 32, 192, 4]
    arrays = {str(index): np.zeros(size, np.uint8) for index, size in enumerate(sizes)}
    write(tmp_path / "model.safetensors", arrays)
    with TensorFolder(tmp_path) as folder:
        starts = [folder.info(name).start for name in arrays]
    for start, size in zip(starts, sizes, strict=True):
        assert start % (64 if size % 64 == 0 else size & -size) == 0


def test_strided_arrays_are_written_in_c_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write(tmp_path / "model.safetensors", {"a": array})
    np.testing.assert_array_equal(TensorFolder(tmp_path).raw("a"), array)


BF16 = {
    0x0000: 0.0,
    0x8000: -0.0,
    0x3F80: 1.0,
    0x0001: 2.0**-133,  # the smallest subnormal
    0x807F: -127 * 2.0**-133,
    0x0080: 2.0**-126,
    0x7F7F: 255 * 2.0**120,  # the largest
    0x7F80: np.inf,
    0xFF80: -np.inf,
}


def test_bfloat16_values() -> None:
    bits = np.array(list(BF16), np.uint16)
    expected = np.array(list(BF16.values()), np.float32)
    assert bfloat16_to_float32(bits).tobytes() == expected.tobytes()
    assert np.isnan(bfloat16_to_float32(np.array([0x7FC0, 0xFF81, 0x7F81], np.uint16))).all()


def test_bfloat16_is_the_upper_half_of_every_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = bfloat16_to_float32(bits.reshape(256, 256))
    assert wide.shape == (256, 256)
    np.testing.assert_array_equal(wide.view(np.uint32) >> 16, bits.reshape(256, 256))
    assert not (wide.view(np.uint32) & 0xFFFF).any()


def test_float32_of_every_float_type(tmp_path: Path) -> None:
    arrays = {
        "f16": np.array([1.5, -2.0, 65504], np.float16),
        "f32": np.array([1.5, -2.0, 3.0], np.float32),
        "f64": np.array([1.5, -2.0, 1e300], np.float64),
        "bf16": np.array([0x3FC0, 0xC000, 0x7F80], np.uint16),
        "i32": np.array([1, 2], np.int32),
    }
    write(tmp_path / "model.safetensors", arrays, {"bf16": "BF16"})
    with TensorFolder(tmp_path) as folder:
        for name, last in {"f16": 65504.0, "f32": 3.0, "f64": np.inf, "bf16": np.inf}.items():
            values = folder.float32(name)
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, [1.5, -2.0, last])
            np.testing.assert_array_equal(folder.float32(name, slice(1, 3)), [-2.0, last])
        assert np.shares_memory(folder.float32("f32"), folder.raw("f32"))  # no copy
        with pytest.raises(FormatError, match=r"tensor i32 has dtype I32"):
            folder.float32("i32")


def test_shards(tmp_path: Path) -> None:
    write(tmp_path / "one.safetensors", {"a": np.zeros(2), "stray": np.zeros(1)})
    write(tmp_path / "two.safetensors", {"b": np.ones(3)})
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with TensorFolder(tmp_path) as folder:
        assert folder.names == ["a", "b"]  # what the index does not list is not there
        assert folder.info("b").path.name == "two.safetensors"
        np.testing.assert_array_equal(folder.raw("b"), np.ones(3))


def test_arrays_outlive_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", {"a": np.arange(5)})
    with TensorFolder(tmp_path) as folder:
        array = folder.raw("a")
    np.testing.assert_array_equal(array, np.arange(5))
    with pytest.raises(FormatError, match="closed"):
        folder.raw("a")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda w: w.declare("a", "F32", (2,)), "declared twice"),
        (lambda w: w.declare("b", "F31", (2,)), "has dtype F31"),
        (lambda w: w.declare("b", "F32", (-1,)), "must not be negative"),
        (lambda w: w.declare("__metadata__", "F32", (1,)), "own name"),
        (lambda w: w.write("b", np.zeros(2, np.float32)), "not declared"),
        (lambda w: w.write("a", np.zeros(3, np.float32)), r"is float32 \(3,\); declared was F32"),
        (lambda w: w.write("a", np.zeros(2, np.float64)), "is float64"),
        (
            lambda w: [w.write("a", np.zeros(2, np.float32))] * 2 + [w.declare("b", "U8", ())],
            "after",
        ),
        (lambda w: None, "never written"),
    ],
)
def test_misuse_of_the_writer(tmp_path: Path, act: Any, words: str) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=words), SafetensorsWriter(path, {}) as writer:
        writer.declare("a", "F32", (2,))
        act(writer)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writer_keeps_the_old_file(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"a": np.zeros(2)})
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), SafetensorsWriter(path, {}) as writer:
        writer.declare("b", "U8", (1,))
        writer.write("b", np.zeros(1, np.uint8))
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LatticeqError, match=r"model\.safetensors: the disk is full"):
        write(tmp_path / "model.safetensors", {"a": np.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LatticeqError, match="missing"):
        SafetensorsWriter(tmp_path / "missing" / "model.safetensors", {})
