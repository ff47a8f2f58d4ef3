"""The one place that decides how kernels are compiled, cached and threaded.

Kernels are plain Python functions under `kernel`. They are compiled for the host on first use and
kept in the user's cache folder; ``NUMBA_DISABLE_JIT=1`` runs the same bodies as Python.

Numba's own cache does not see an edit in a helper that lives in another file, so the cache folder
carries a fingerprint of every source file that can change compiled code: see `kernel_sources`. Nor
does it expect two processes to add to one function's cache at once, so writers take turns.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, overload

# Between two parallel regions the threads should spin, but not for long: one that sleeps at once
# costs up to 100 microseconds to wake, one that spins on keeps any other process off its core for
# 8 ms at a time. It must be said before numba loads OpenMP; what a user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

import numba
from numba import prange
from numba.core.caching import FunctionCache

from latticeq.compiler_pages import release_compiler

__all__ = [
    "IS_JIT",
    "cache_root",
    "kernel",
    "kernel_cache",
    "kernel_sources",
    "prange",
    "set_threads",
    "threads",
]

Function = Callable[..., Any]

IS_JIT = not numba.config.DISABLE_JIT
"""False under ``NUMBA_DISABLE_JIT=1``: kernels then run as Python, vector words as NumPy."""

KEPT_DAYS = 30
"""How long compiled kernels of other sources or other versions are kept after their last use."""

# A kernel, and every helper or constant that is compiled into one, stands in a file that imports
# one of these two at its top level, or in one of these two. tests/test_jit.py holds files to that.
_IMPORTS_KERNELS = re.compile(rb"^from latticeq\.(?:jit|simd)\b", re.MULTILINE)


def cache_root() -> Path:
    """Return the folder for everything latticeq keeps: models and compiled kernels.

    ``LATTICEQ_CACHE_DIR`` if it is set, else the platform's user cache folder.
    """
    if given := os.environ.get("LATTICEQ_CACHE_DIR"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "latticeq"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/latticeq"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latticeq"


def kernel_sources() -> list[Path]:
    """Return the source files that can change compiled code, sorted: jit.py, simd and all kernels.

    The other files, such as the command line's, can be edited without compiling anything again.
    """
    package = Path(__file__).parent
    own = (Path(__file__), *(package / "simd").glob("*.py"))
    others = (path for path in package.rglob("*.py") if path not in own)
    return sorted([*own, *(path for path in others if _IMPORTS_KERNELS.search(path.read_bytes()))])


@cache
def kernel_cache() -> Path:
    """Return the folder of compiled kernels that belongs to exactly these sources.

    Its modification time is that of its last use. A process that starts a new folder removes those
    that have not been used for `KEPT_DAYS` days.
    """
    digest = hashlib.sha256()
    for source in kernel_sources():
        stat = source.stat()
        digest.update(f"{source}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    folder = cache_root() / "kernels" / f"{numba.__version__}-{digest.hexdigest()[:16]}"
    with suppress(OSError):  # a cache that cannot be written is Numba's to complain of
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _remove_unused(folder.parent)
        os.utime(folder)
    return folder


def _remove_unused(kernels: Path) -> None:
    """Remove folders of kernels that no process has used for a while, where that is allowed."""
    import shutil

    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for folder in kernels.glob("*-" + "[0-9a-f]" * 16):
        if folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, to which one process at a time adds.

    Numba reads the index, takes the next free number for the new code, and writes both. Of two
    processes that do so at once for different argument types, each may take the same number, and
    the index then leads to code compiled for the other types.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load what was compiled for a signature; None if nothing was."""
        found = super().load_overload(sig, target_context)
        if found is not None:
            release_compiler()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save what was compiled for a signature."""
        with _one_writer(kernel_cache() / "lock"):
            super().save_overload(sig, data)


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the system releases with the process, however that ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a read-only cache: nobody writes
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks: as safe as Numba alone
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@overload
def kernel(function: Function, *, parallel: bool = ..., inline: bool = ...) -> Function: ...


@overload
def kernel(*, parallel: bool = ..., inline: bool = ...) -> Callable[[Function], Function]: ...


def kernel(
    function: Function | None = None, *, parallel: bool = False, inline: bool = False
) -> Any:
    """Compile a function with the project's flags.

    No fast-math: a kernel's floats equal its plain NumPy twin's operation by operation. Division by
    zero follows NumPy, the GIL is released, and the compiled code is cached on disk unless
    ``LATTICEQ_CACHE=0``.

    Parameters
    ----------
    function : callable
        The kernel. Omit it to use the decorator with arguments.
    parallel : bool
        Allow `prange`. Each output element must be owned by one iteration, so that results do not
        depend on the number of threads.
    inline : bool
        Inline into the calling kernel: for helpers of a few lines.
    """
    if function is None:
        return lambda given: kernel(given, parallel=parallel, inline=inline)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "parallel": parallel}
    if inline:
        return numba.njit(inline="always", **options)(function)
    if os.environ.get("LATTICEQ_CACHE") == "0" or not IS_JIT:
        return numba.njit(**options)(function)
    compiled = numba.njit(**options)(function)
    # A cache picks its folder while it is made; other packages in the process keep theirs.
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernel_cache())
    try:
        compiled._cache = _Cache(function)  # what njit(cache=True) does, with a cache of its own
    finally:
        numba.config.CACHE_DIR = before
    return compiled


def set_threads(count: int) -> None:
    """Use `count` threads in parallel kernels from now on.

    Raises
    ------
    ValueError
        If `count` is not between 1 and the number that numba started with.
    """
    numba.set_num_threads(count)


def threads() -> int:
    """Return the number of threads that parallel kernels use."""
    return int(numba.get_num_threads())
