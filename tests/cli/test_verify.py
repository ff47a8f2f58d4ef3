"""The verb ``verify``: exit code 3 and the name of whatever differs."""

import shutil
from pathlib import Path

import pytest

from latticeq.storage.safetensors import TensorFolder
from tests.tiny_model import latticeq


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_a_whole_folder(packed: Path) -> None:
    done = latticeq("verify", packed)
    assert done.code == 0, done.err
    with TensorFolder(packed) as folder:
        assert done.result["tensors"] == len(folder.names)
        assert done.result["nbytes"] == sum(folder.info(name).nbytes for name in folder.names)
    assert "are as they were written" in done.err


def test_a_changed_bit_is_a_mismatch(copy: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight.digits"
    with TensorFolder(copy) as folder:
        info = folder.info(name)
    data = bytearray(info.path.read_bytes())
    data[info.start + 5] ^= 1
    info.path.write_bytes(data)
    done = latticeq("verify", copy)
    assert (done.code, done.out) == (3, "")
    assert f"tensor {name}" in done.err


def test_a_changed_file_is_a_mismatch(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    done = latticeq("verify", copy)
    assert done.code == 3
    assert "file tokenizer.json" in done.err


def test_what_has_no_checksums_is_refused(source: Path, tmp_path: Path) -> None:
    done = latticeq("verify", source)
    assert done.code == 1
    assert "checksums.json: is missing" in done.err
    done = latticeq("verify", tmp_path)
    assert done.code == 1
    assert "model.safetensors" in done.err
