"""What this process may use of the machine: cores and memory. Imports neither NumPy nor Numba."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from latticeq.errors import InputError

__all__ = [
    "available_memory",
    "cpu_name",
    "foreign_environment",
    "limit_threads",
    "logical_cores",
    "peak_rss_mib",
    "physical_cores",
    "rss_mib",
    "total_memory",
]

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""How OpenMP's threads wait: `limit_threads` sets one, `latticeq.jit` both."""


def limit_threads(count: int | None) -> int:
    """Tell BLAS and Numba how many threads to use; call before either is imported.

    Parameters
    ----------
    count : int or None
        The user's wish, which goes before the environment; None keeps what the environment says
        and takes the physical cores where it says nothing.

    Returns
    -------
    int
        The number of threads that Numba's kernels will use.

    Raises
    ------
    InputError
        If the environment's ``NUMBA_NUM_THREADS`` is not a number.
    """
    is_loaded = "numba" in sys.modules
    for variable in THREAD_VARIABLES:
        if is_loaded and variable == "NUMBA_NUM_THREADS":
            continue  # Numba reads it again when it compiles, and refuses another number then
        if count is not None:
            os.environ[variable] = str(count)
        else:
            os.environ.setdefault(variable, str(physical_cores()))
    # An OpenMP thread that waits actively is descheduled whenever another process wants its core,
    # and the whole region then waits for the scheduler: 8 ms instead of microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if is_loaded:  # called from a program: the variables come too late for Numba
        from latticeq import jit

        with suppress(ValueError):  # Numba has started with fewer: those it is
            jit.set_threads(count or physical_cores())
        return jit.threads()
    wanted = os.environ["NUMBA_NUM_THREADS"]
    if not wanted.isdecimal() or int(wanted) < 1:
        raise InputError(
            f"NUMBA_NUM_THREADS={wanted!r}: set it to a whole number from 1, or unset it"
        )
    return int(wanted)


def foreign_environment() -> dict[str, str]:
    """Return the environment for a program that is not ours: nothing about threads.

    Other programs built with OpenMP read the same variables: told to wait as ours do, llama.cpp
    decodes at a quarter of its speed on two threads.
    """
    ours = {*THREAD_VARIABLES, *WAIT_VARIABLES}
    return {name: value for name, value in os.environ.items() if name not in ours}


def logical_cores() -> int:
    """Return the number of hardware threads that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores() -> int:
    """Return the number of cores that this process may run on.

    Two hardware threads of one core share its vector units: a second thread there makes kernels
    slower. Linux names the core of each hardware thread, macOS its performance cores; elsewhere the
    hardware threads are counted. A container's CPU quota lowers the number.
    """
    cores = logical_cores()
    if sys.platform == "linux":
        cores = _linux_cores(Path("/proc/cpuinfo"), os.sched_getaffinity(0)) or cores
        cores = min(cores, _quota(Path("/sys/fs/cgroup/cpu.max")) or cores)
    elif sys.platform == "darwin":
        cores = _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or cores
    return max(cores, 1)


def _linux_cores(cpuinfo: Path, allowed: set[int]) -> int | None:
    """Count the (socket, core) pairs of the allowed hardware threads; None if unnamed."""
    cores = set()
    for paragraph in _text(cpuinfo).split("\n\n"):
        fields = {}
        for line in paragraph.splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
        if fields.get("processor", "").isdigit() and int(fields["processor"]) in allowed:
            if "core id" not in fields:
                return None
            cores.add((fields.get("physical id"), fields["core id"]))
    return len(cores) or None


def _quota(cpu_max: Path) -> int | None:
    """Return a container's limit in whole cores, from "quota period" in microseconds."""
    quota, _, period = _text(cpu_max).partition(" ")
    if quota.isdigit() and period.strip().isdigit() and int(period) > 0:
        return max(math.ceil(int(quota) / int(period)), 1)
    return None


def _sysctl(name: str) -> int | None:
    command = ["sysctl", "-n", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    if sys.platform == "linux":
        for line in _text(Path("/proc/cpuinfo")).splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return platform.processor() or platform.machine()


def total_memory() -> int | None:
    """Return the machine's memory in bytes, or None if the system does not say."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def available_memory() -> int | None:
    """Return the bytes that could be used without swapping, or None if the system does not say."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def peak_rss_mib() -> float | None:
    """Return the most memory this process has had, in MiB, or None if the system does not say."""
    for line in _text(Path("/proc/self/status")).splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return round(int(value.split()[0]) / 2**10, 1)
    if sys.platform == "win32":
        return None
    import resource

    return rss_mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def rss_mib(ru_maxrss: int) -> float:
    """Return in MiB what the system says of a process's memory: in kilobytes, on macOS in bytes."""
    return round(ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
