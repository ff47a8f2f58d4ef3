"""Folders appear whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from latticeq.errors import InputError, LatticeqError
from latticeq.storage.disk import clear_leftovers, disk_errors, new_folder


def test_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "model"
    with new_folder(target) as partial:
        (partial / "file").write_text("content")
        assert not target.exists()
        assert partial.parent == target.parent  # same disk, so that the rename is atomic
    assert (target / "file").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_after_a_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), new_folder(tmp_path / "model") as partial:
        (partial / "file").write_text("content")
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path):
        pytest.fail("the block must not run")


def test_who_comes_second_loses_cleanly(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(InputError, match="appeared"), new_folder(target) as partial:
        (partial / "file").write_text("second")
        target.mkdir()
        (target / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_contents_are_on_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, bool]] = []

    def fsync(number: int) -> None:
        flushed.append((os.fstat(number).st_ino, (tmp_path / "model").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "model") as partial:
        (partial / "inner").mkdir()
        (partial / "inner/file").write_text("content")
        names = [partial / "inner/file", partial / "inner", partial]
        inodes = {path.stat().st_ino for path in names}
    before = {inode for inode, is_named in flushed if not is_named}
    assert before >= inodes
    assert flushed[-1] == (tmp_path.stat().st_ino, True)  # and the name itself, at the end


def test_only_leftovers_of_the_path_are_deleted(tmp_path: Path) -> None:
    names = [".model.partial-1f", ".model.partial", "model", ".model2.partial-1f", ".other"]
    for name in names:
        (tmp_path / name).mkdir()
    clear_leftovers(tmp_path / "model")
    clear_leftovers(tmp_path / "nowhere" / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied"), (errno.EIO, "I/O error")],
)
def test_os_errors_name_the_path(number: int, words: str) -> None:
    with pytest.raises(LatticeqError, match=words) as caught, disk_errors(Path("some-model")):
        raise OSError(number, "Input/output: I/O error")
    assert "some-model" in str(caught.value)


def test_other_errors_pass_through() -> None:
    with pytest.raises(InputError, match=r"^kept$"), disk_errors(Path("path")):
        raise InputError("kept")
