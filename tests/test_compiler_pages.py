"""Pages of the compiler: which may be given back, that they are, and that kernels run after it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from latticeq.compiler_pages import release_compiler, unchanged_mappings
from latticeq.jit import IS_JIT, kernel

SMAPS = """\
7f0000000000-7f0000100000 r--p 00000000 fe:00 42                 /opt/a b/libllvmlite.so
Rss:                 512 kB
Anonymous:             0 kB
7f0000100000-7f0000900000 r-xp 00100000 fe:00 42                 /opt/a b/libllvmlite.so
Rss:                4096 kB
Anonymous:             0 kB
7f0000900000-7f0000a00000 r--p 00900000 fe:00 42                 /opt/a b/libllvmlite.so
Anonymous:           128 kB
7f0000a00000-7f0000b00000 rw-p 00a00000 fe:00 42                 /opt/a b/libllvmlite.so
Anonymous:             0 kB
7f0000b00000-7f0000c00000 r-xp 00000000 fe:00 43                 /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000c00000-7f0000d00000 r--p 00000000 00:00 0
Anonymous:             0 kB
"""


def test_only_what_was_never_written_is_given_back() -> None:
    found = unchanged_mappings(SMAPS.splitlines(), "libllvmlite")
    assert found == [(0x7F0000000000, 0x100000), (0x7F0000100000, 0x800000)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system is asked on Linux")
@pytest.mark.skipif(not IS_JIT, reason="no kernel is compiled")
def test_kernels_compile_and_run_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATTICEQ_CACHE", "0")

    def twice(x):  # type: ignore[no-untyped-def]
        return x + x

    before = _resident()
    assert before > 2**22
    release_compiler()
    assert _resident() < before / 4
    assert kernel(twice)(np.float32(21)) == 42
    assert _resident() > 2**20  # the compiler was there again
    release_compiler()
    assert kernel(twice)(21) == 42


def _resident() -> int:
    """Return the bytes of the compiler's program that are in this process's memory."""
    total, is_program = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        if " r-xp " in line:
            is_program = "libllvmlite" in line
        elif "-" in line.split()[0]:
            is_program = False
        elif is_program and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total
