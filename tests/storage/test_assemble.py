"""Checkpoints are written whole, in shards where they must be, and errors of the disk are told."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from latticeq.errors import LatticeqError
from latticeq.storage.assemble import json_bytes, write_checkpoint
from latticeq.storage.checkpoint import pack, verify
from latticeq.storage.safetensors import TensorFolder
from tests.storage.packed_models import random_nest, write_checkpoint_of, write_parts

MATRICES = {f"layer.{i}": random_nest(16 * i + 4, 16, 16, 4) for i in range(5)}


@pytest.mark.parametrize("shard_bytes", [1, 600, 2000, 10**9])
def test_shards_hold_every_tensor_once(tmp_path: Path, shard_bytes: int) -> None:
    write_checkpoint_of(tmp_path / "model", MATRICES, shard_bytes)
    wanted = {f"{n}.{s}": a for n, m in MATRICES.items() for s, a in pack(m).items()}
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    found = [load_file(shard) for shard in shards]  # as another library reads them
    assert sum(map(len, found)) == len(wanted)
    for shard in found:
        assert len(shard) == 1 or sum(a.nbytes for a in shard.values()) <= shard_bytes
        for name, array in shard.items():
            assert array.tobytes() == wanted[name].tobytes()
    if len(shards) > 1:
        index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text("utf-8"))
        assert set(index["weight_map"]) == set(wanted)
        assert index["metadata"]["total_size"] == sum(a.nbytes for a in wanted.values())
        assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert verify(tmp_path / "model")["tensors"] == len(wanted)


def test_equal_parts_make_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint_of(tmp_path / name, MATRICES)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_parts_are_read_in_their_order(tmp_path: Path) -> None:
    parts = [
        write_parts(tmp_path / name, {f"{name}.w": np.full(4, i, np.float32)})
        for i, name in enumerate("ba")
    ]
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", parts, {}, shard_bytes=16)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text("utf-8"))
    assert list(index["weight_map"]) == ["b.w", "a.w"]
    with TensorFolder(tmp_path / "out") as tensors:
        assert tensors.raw("a.w").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(path: Path, content: Any) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(LatticeqError, match=r"the disk is full|permission denied"):
        write_checkpoint_of(tmp_path / "model", MATRICES)


def test_json_is_indented_and_ends_its_line() -> None:
    assert json_bytes({"a": "ä"}) == '{\n  "a": "ä"\n}\n'.encode()
