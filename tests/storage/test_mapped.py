"""Pages of a mapped file are given back, and read again when they are wanted."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from latticeq.storage.mapped import release

PAGE = mmap.PAGESIZE

needs_madvise = pytest.mark.skipif(
    not hasattr(mmap.mmap, "madvise"), reason="this system takes no advice on mapped pages"
)


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    """Ten pages of a file, as checkpoints are mapped."""
    np.arange(10 * PAGE, dtype=np.uint8).tofile(tmp_path / "file")
    return np.asarray(np.memmap(tmp_path / "file", np.uint8, "r"))


def resident(array: np.ndarray) -> int:
    """Return the kilobytes of the mapping that an array begins, which the process has."""
    size = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith(f"{array.ctypes.data:x}-"):
            size = -1
        elif size == -1 and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("no such mapping")


@needs_madvise
def test_whole_pages_within_an_array(mapped: np.ndarray) -> None:
    before = mapped.copy()
    assert release(mapped[PAGE // 2 : 5 * PAGE]) == 4 * PAGE
    assert release(mapped[1 : 2 * PAGE - 1].view()[: PAGE // 2]) == 0
    assert release(mapped.reshape(10, -1).view(np.int32)[2:]) == 8 * PAGE
    np.testing.assert_array_equal(mapped, before)


@needs_madvise
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux alone tells what is there")
def test_the_pages_are_gone_until_they_are_read(mapped: np.ndarray) -> None:
    total = int(mapped.sum())
    assert resident(mapped) == 10 * PAGE // 1024
    release(mapped)
    assert resident(mapped) == 0
    assert int(mapped.sum()) == total


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    own = np.arange(10 * PAGE, dtype=np.uint8)
    kept = own.copy()
    assert release(own) == release(own[PAGE:]) == 0
    np.testing.assert_array_equal(own, kept)
    own.tofile(tmp_path / "file")
    private = np.asarray(np.memmap(tmp_path / "file", np.uint8, "c"))
    private[:] = 7  # is not in the file
    assert release(private) == 0
    assert (private == 7).all()
    shown = np.asarray(np.memmap(tmp_path / "file", np.uint8, "r"))
    assert release(shown[::2]) == 0
    assert release(np.frombuffer(bytes(4 * PAGE), np.uint8)) == 0
