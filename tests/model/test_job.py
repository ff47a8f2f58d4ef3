"""Jobs: parts appear whole or not at all, and only the same job is resumed."""

import json
from pathlib import Path

import numpy as np
import pytest

from latticeq.errors import FormatError, InputError, LatticeqError
from latticeq.model.job import Job, open_job, partial_folder
from latticeq.storage.safetensors import SafetensorsWriter

SETTINGS = {"options": {"q": 16, "betas": (0.1, 0.2)}, "weights": "abc"}
TENSORS = {
    "w.digits": np.arange(24, dtype=np.uint8).reshape(2, 12),
    "w.row_scale": np.ones(2, np.float16),
    "w.betas": np.ones(1, np.float32),
    "embedding": np.array([0x3F80], np.uint16),  # bfloat16
}


def start(out: Path) -> Job:
    return open_job(out, SETTINGS, resume=False, force=False)


def test_parts_are_read_back(tmp_path: Path) -> None:
    job = start(tmp_path / "out")
    assert job.folder == partial_folder(tmp_path / "out") == tmp_path / "out.partial"
    assert not job.has("part")
    job.write("part", TENSORS, {"note": [1, "ä"]})
    assert job.has("part")
    assert job.record("part") == {"note": [1, "ä"]}
    with job.tensors(["part"]) as (part,):
        assert part.names == sorted(TENSORS)
        assert part.info("embedding").dtype == "BF16"
        assert np.array_equal(part.raw("w.digits"), TENSORS["w.digits"])
    job.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_same_settings_go_on(tmp_path: Path) -> None:
    start(tmp_path / "out").write("part", TENSORS, {})
    again = open_job(tmp_path / "out", SETTINGS, resume=True, force=False)
    assert again.has("part")


def test_resuming_what_is_not_there_starts(tmp_path: Path) -> None:
    assert not open_job(tmp_path / "out", SETTINGS, resume=True, force=False).has("part")


def test_force_starts_over(tmp_path: Path) -> None:
    start(tmp_path / "out").write("part", TENSORS, {})
    other = {**SETTINGS, "weights": "def"}
    assert not open_job(tmp_path / "out", other, resume=False, force=True).has("part")


@pytest.mark.parametrize("change", [{"weights": "x"}, {"options": {"q": 14}}, {"new": 1}])
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    start(tmp_path / "out")
    name = next(iter(change))
    with pytest.raises(InputError, match=f"was started with {name} = .*; now it is .*--force"):
        open_job(tmp_path / "out", SETTINGS | change, resume=True, force=False)


def test_what_stands_in_the_way_is_refused(tmp_path: Path) -> None:
    start(tmp_path / "out")
    with pytest.raises(InputError, match=r"out\.partial holds an unfinished job; give --resume"):
        start(tmp_path / "out")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="other exists already"):
        start(tmp_path / "other")
    with pytest.raises(InputError, match="no model folder, so not even --force"):
        open_job(tmp_path / "other", SETTINGS, resume=False, force=True)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, '"x"'])
def test_a_damaged_job_is_refused(tmp_path: Path, content: str) -> None:
    job = start(tmp_path / "out")
    job.write("part", TENSORS, {})
    (job.folder / "part/record.json").write_text(content, "utf-8")
    with pytest.raises(FormatError, match=r"record\.json: .*start over with --force"):
        job.record("part")
    (job.folder / "job.json").write_text(content, "utf-8")
    with pytest.raises(FormatError, match=r"job\.json: .*start over with --force"):
        open_job(tmp_path / "out", SETTINGS, resume=True, force=False)


def test_a_part_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(tmp_path / "out")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "write", fail)
    with pytest.raises(LatticeqError, match="the disk is full"):
        job.write("part", TENSORS, {})
    assert not job.has("part")
    assert [path.name for path in job.folder.iterdir()] == ["job.json"]
    assert json.loads((job.folder / "job.json").read_text("utf-8"))["weights"] == "abc"
