"""Jobs: parts appear whole or not at all, and only the same job is resumed."""

import json
from collections.abc import Callable
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


def write_output(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "checksums.json").write_text('{"new": 1}')


def test_a_finished_job_is_gone(tmp_path: Path) -> None:
    start(tmp_path / "out").finish(tmp_path / "out", write_output, replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/config.json").read_text() == "{}"


def test_an_output_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    job = start(tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("old")
    with pytest.raises(InputError, match="out appeared while it was being written"):
        job.finish(tmp_path / "out", write_output, replace=False)
    assert (tmp_path / "out/config.json").read_text() == "old"
    again = open_job(tmp_path / "out", SETTINGS, resume=True, force=True)
    again.finish(tmp_path / "out", write_output, replace=True)
    assert (tmp_path / "out/config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_job_that_died_as_it_cleaned_up_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("latticeq.model.job.clear_leftovers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            job.finish(tmp_path / "out", write_output, replace=False)
    assert (tmp_path / "out.partial/made.json").is_file()
    with pytest.raises(InputError, match="out exists already"):
        start(tmp_path / "out")
    again = open_job(tmp_path / "out", SETTINGS, resume=True, force=False)
    again.finish(tmp_path / "out", interrupted, replace=False)  # nothing is written again
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_resuming_goes_before_force(tmp_path: Path) -> None:
    start(tmp_path / "out").write("part", TENSORS, {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(InputError, match="out exists already"):
        open_job(tmp_path / "out", SETTINGS, resume=True, force=False)
    assert open_job(tmp_path / "out", SETTINGS, resume=True, force=True).has("part")
    assert not open_job(tmp_path / "out", SETTINGS, resume=False, force=True).has("part")


def test_what_was_being_written_is_deleted(tmp_path: Path) -> None:
    job = start(tmp_path / "out")
    (job.folder / ".part.partial-1234").mkdir()
    (job.folder / "checkpoint").mkdir()
    (tmp_path / ".out.partial.partial-1234").mkdir()
    open_job(tmp_path / "out", SETTINGS, resume=True, force=False)
    assert [path.name for path in job.folder.iterdir()] == ["job.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(_: bytes) -> bytes:
    return b""


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def tail_zeroed(content: bytes) -> bytes:
    return content[:-16] + bytes(16)


@pytest.mark.parametrize("loses", [truncated, emptied, zeroed, tail_zeroed, None])
@pytest.mark.parametrize("name", ["model.safetensors", "record.json", "checksums.json"])
def test_a_part_that_the_disk_lost_is_dropped(
    tmp_path: Path, name: str, loses: Callable[[bytes], bytes] | None
) -> None:
    job = start(tmp_path / "out")
    job.write("first", TENSORS, {"a": 1})
    job.write("second", TENSORS, {"a": 2})
    path = job.folder / "second" / name
    if loses is None:
        path.unlink()
    else:
        path.write_bytes(loses(path.read_bytes()))
    job = open_job(tmp_path / "out", SETTINGS, resume=True, force=False)
    assert job.drop_damaged() == ["second"]
    assert job.has("first")
    assert not job.has("second")
    assert job.drop_damaged() == []
