"""The device: whether there is one, what it is, how fast its memory is, and its kernels.

CuPy is imported inside `cupy()`, which returns it or says what is missing. Kernels are CUDA text in
``latticeq/gpu/cuda``; CuPy hands it to NVRTC, which comes with CUDA's runtime libraries (no
compiler is installed), and keeps the result on disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from latticeq.errors import InputError, MissingDependencyError

__all__ = [
    "Device",
    "check_device",
    "copy_bandwidth",
    "cuda_source",
    "cupy",
    "describe",
    "device_count",
    "function",
    "hopper_function",
    "missing",
]

EXTRA = (
    "run: pip install 'latticeq[gpu]', or 'latticeq[gpu-cuda13]' where CUDA 13 is installed (never "
    "both)"
)

INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)

COPIES = 20
"""Timed copies; the median counts."""


@dataclass(frozen=True)
class Device:
    """What a device is.

    Attributes
    ----------
    index : int
        As CUDA counts devices.
    name : str
    memory, free_memory : int
        Bytes.
    driver, cuda : str
        The newest CUDA version that the driver serves, and the version of the runtime in use.
    compute_capability : str
        Such as "9.0".
    multiprocessors : int
    l2_bytes : int
        The size of its last cache: what fits there is read faster than from memory.
    """

    index: int
    name: str
    memory: int
    free_memory: int
    driver: str
    cuda: str
    compute_capability: str
    multiprocessors: int
    l2_bytes: int


def cupy() -> Any:
    """Return the module `cupy`, once there is a device that it can use.

    Raises
    ------
    MissingDependencyError
        If CuPy is not installed, or finds no driver or no device; the message says which, and names
        the extra.
    """
    module, reason = _find()
    if reason is not None:
        raise MissingDependencyError(reason)
    return module


def missing() -> str | None:
    """Return why there is no device to run on, as `cupy` would raise it; None if there is one."""
    return _find()[1]


@cache
def _find() -> tuple[Any, str | None]:
    try:
        import cupy as module
    except ImportError as error:
        return None, f"running on a GPU needs CuPy, which cannot be imported ({error}); {EXTRA}"
    try:
        count = module.cuda.runtime.getDeviceCount()
    except module.cuda.runtime.CUDARuntimeError as error:
        return None, (
            f"CuPy {module.__version__} (extra latticeq[gpu]) is installed but finds no usable "
            f"NVIDIA GPU: {error}; check the driver with nvidia-smi, or run on the CPU"
        )
    if count < 1:
        return None, (
            f"CuPy {module.__version__} (extra latticeq[gpu]) and a driver are installed, but no "
            "device is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES, or run on the CPU"
        )
    return module, None


def device_count() -> int:
    """Return how many devices there are; 0 where `cupy` would raise."""
    module, reason = _find()
    return 0 if reason else int(module.cuda.runtime.getDeviceCount())


def check_device(index: int) -> int:
    """Return a device's index if there is such a device.

    Raises
    ------
    InputError
        If there is none of that index.
    MissingDependencyError
        As `cupy`.
    """
    count = int(cupy().cuda.runtime.getDeviceCount())
    if not 0 <= index < count:
        raise InputError(f"device {index} does not exist; there are {count}, counted from 0")
    return index


def describe(index: int = 0) -> Device:
    """Return what a device is, and how much of its memory is free.

    Raises
    ------
    InputError, MissingDependencyError
        As `check_device`.
    """
    module = cupy()
    runtime = module.cuda.runtime
    with module.cuda.Device(check_device(index)):
        free, memory = runtime.memGetInfo()
        properties = runtime.getDeviceProperties(index)
    name = properties["name"]
    return Device(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name),
        memory=int(memory),
        free_memory=int(free),
        driver=_version(runtime.driverGetVersion()),
        cuda=_version(runtime.runtimeGetVersion()),
        compute_capability=f"{properties['major']}.{properties['minor']}",
        multiprocessors=int(properties["multiProcessorCount"]),
        l2_bytes=int(properties["l2CacheSize"]),
    )


def _version(number: int) -> str:
    """Return CUDA's number of a version, 1000 major + 10 minor, as people write it."""
    return f"{number // 1000}.{number % 1000 // 10}"


def copy_bandwidth(index: int = 0, size: int = 2**30) -> float:
    """Measure what a large copy inside a device's memory reaches.

    Parameters
    ----------
    index : int
    size : int
        Bytes to copy; less if memory is short, and always far more than the last cache holds.

    Returns
    -------
    float
        Bytes a second, those read and those written both counted; the median of some copies.

    Raises
    ------
    InputError, MissingDependencyError
        As `check_device`.
    """
    module = cupy()
    with module.cuda.Device(check_device(index)):
        size = min(size, int(module.cuda.runtime.memGetInfo()[0]) // 4)
        source = module.arange(size // 8, dtype=module.int64)
        target = module.empty_like(source)
        start, stop = module.cuda.Event(), module.cuda.Event()
        stream = module.cuda.get_current_stream()
        times: list[float] = []
        for _ in range(COPIES + 2):
            start.record()
            target.data.copy_from_device_async(source.data, source.nbytes, stream)
            stop.record()
            stop.synchronize()
            times.append(float(module.cuda.get_elapsed_time(start, stop)))
    times = sorted(times[2:])
    return 2e3 * int(source.nbytes) / times[len(times) // 2]


def function(name: str, kernel: str, **constants: int | str) -> Any:
    """Return a kernel of a CUDA file, compiled for the current device.

    Parameters
    ----------
    name : str
        A file of ``latticeq/gpu/cuda``, without ``.cu``.
    kernel : str
        An ``extern "C"`` function in it.
    **constants : int or str
        Macros to compile it with: each set of them is a program of its own.

    Returns
    -------
    cupy.RawKernel
        Kept for the life of the process; a later call with the same arguments returns it again.

    Raises
    ------
    MissingDependencyError
        As `cupy`.
    """
    device = int(cupy().cuda.runtime.getDevice())
    return _function(name, kernel, tuple(sorted(constants.items())), device)


@cache
def _function(
    name: str, kernel: str, constants: tuple[tuple[str, int | str], ...], device: int
) -> Any:
    return _module(name, constants, device).get_function(kernel)


@cache
def _module(name: str, constants: tuple[tuple[str, int | str], ...], device: int) -> Any:
    # A module belongs to the device that it was loaded on, so there is one for each.
    return cupy().RawModule(code=cuda_source(name, dict(constants)), options=("-std=c++17",))


@dataclass(frozen=True)
class HopperKernel:
    """A kernel that CuPy's own compiler options cannot name: as much of a RawKernel as is used.

    Attributes
    ----------
    name : str
    kernel : cupy.cuda.Function
    """

    name: str
    kernel: Any


def hopper_function(name: str, kernel: str, **constants: int | str) -> HopperKernel:
    """Return a kernel compiled for compute capability 9.0 and no other (``sm_90a``).

    Its tensor cores have instructions that later devices have not. Parameters and errors are those
    of `function`; the program is compiled once a process, in a second or two.
    """
    device = int(cupy().cuda.runtime.getDevice())
    constant = tuple(sorted(constants.items()))
    return HopperKernel(kernel, _hopper_module(name, constant, device).get_function(kernel))


@cache
def _hopper_module(name: str, constants: tuple[tuple[str, int | str], ...], device: int) -> Any:
    from cupy.cuda import function as loader
    from cupy.cuda import nvrtc

    text = cuda_source(name, dict(constants))
    program = nvrtc.createProgram(text, f"{name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, ("-arch=sm_90a", "-std=c++17"))
        binary = nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)
    module = loader.Module()
    module.load(binary)
    return module


def cuda_source(name: str, constants: Mapping[str, int | str]) -> str:
    """Return the text of a CUDA file as it is compiled: constants first, headers written in.

    Headers of this package are put in their places, each once, so that a program is one string and
    whatever caches it sees every change. ``#include <...>`` is left to the compiler.
    """
    lines = [f"#define {key} {value}\n" for key, value in sorted(constants.items())]
    return "".join(lines) + _written_in(_text(f"{name}.cu"), set())


def _written_in(text: str, seen: set[str]) -> str:
    def header(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return _written_in(_text(match[1]), seen)

    return INCLUDE.sub(header, text)


def _text(name: str) -> str:
    return (resources.files("latticeq.gpu") / "cuda" / name).read_text(encoding="utf-8")
