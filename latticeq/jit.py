"""The one place that decides how kernels are compiled, cached and threaded.

Kernels are plain Python functions under `kernel`. They are compiled for the host on first use and
kept in the user's cache folder; ``NUMBA_DISABLE_JIT=1`` runs the same bodies as Python.

Numba's own cache does not see an edit in a helper that lives in another file, so the cache folder
carries a fingerprint of every source file of the package: any edit starts a fresh one.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
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

__all__ = ["IS_JIT", "cache_root", "kernel", "kernel_cache", "prange", "set_threads", "threads"]

Function = Callable[..., Any]

IS_JIT = not numba.config.DISABLE_JIT
"""False under ``NUMBA_DISABLE_JIT=1``: kernels then run as Python, vector words as NumPy."""


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


@cache
def kernel_cache() -> Path:
    """Return the folder of compiled kernels that belongs to exactly these sources."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        stat = source.stat()
        digest.update(f"{source}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return cache_root() / "kernels" / f"{numba.__version__}-{digest.hexdigest()[:16]}"


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
    # Numba picks the cache folder while it decorates; other packages in the process keep theirs.
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernel_cache())
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        numba.config.CACHE_DIR = before


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
