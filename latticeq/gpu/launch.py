"""Kernels started early: while the one before comes to its end, where the device can do so.

On devices of compute capability 9.0 and up a kernel may be started before its predecessor in the
stream has ended; it waits (``wait_for_grids`` in ``cuda/halves.cuh``) before it reads or writes
anything that other kernels touch. Till then it asks memory for weights, which nothing changes. That
spares a microsecond or two a product, which is much: a product takes five to fifty. CuPy has no way
to ask for it, so the driver's function is called here; elsewhere CuPy launches.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from latticeq.errors import LatticeqError
from latticeq.gpu.device import cupy

__all__ = ["allow_shared", "is_hopper", "launch_early"]

MAX_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""

SERIALIZATION = 6
"""CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION."""


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("id", ctypes.c_uint),
        ("padding", ctypes.c_uint),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_byte * 60),
    )


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


def launch_early(
    kernel: Any,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Any],
    shared: int = 0,
) -> None:
    """Launch a kernel on the current stream; it may begin before its predecessor has ended.

    Parameters
    ----------
    kernel : cupy.RawKernel
        Which waits for grids before it touches what others write.
    grid, block : tuple of int
    arguments : sequence
        Device arrays, integers (0 for a null pointer), numpy.float32 and numpy.float64.
    shared : int
        Bytes of dynamic shared memory.

    Raises
    ------
    LatticeqError
        If the driver refuses.
    """
    module = cupy()
    driver = _driver(int(module.cuda.runtime.getDevice()))
    if driver is None:
        kernel(grid, block, tuple(arguments), shared_mem=shared)
        return
    values = [_value(argument) for argument in arguments]
    places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    attribute = _Attribute(id=SERIALIZATION, value=1)
    three = ctypes.c_uint * 3
    config = _Config(
        grid=three(*grid, *(1,) * (3 - len(grid))),
        block=three(*block, *(1,) * (3 - len(block))),
        shared=shared,
        stream=module.cuda.get_current_stream().ptr,
        attributes=ctypes.pointer(attribute),
        count=1,
    )
    code = driver.cuLaunchKernelEx(
        ctypes.byref(config), ctypes.c_void_p(kernel.kernel.ptr), places, None
    )
    if code != 0:
        raise LatticeqError(
            f"CUDA could not launch {kernel.name} with grid {grid} and block {block}: error {code}"
        )


def is_hopper() -> bool:
    """Tell whether the current device is of compute capability 9.0 and its driver can be called."""
    module = cupy()
    device = int(module.cuda.runtime.getDevice())
    return _driver(device) is not None and module.cuda.Device(device).compute_capability == "90"


def allow_shared(kernel: Any, size: int) -> None:
    """Let a kernel ask for so many bytes of dynamic shared memory.

    Raises
    ------
    LatticeqError
        If the driver refuses.
    """
    driver = _driver(int(cupy().cuda.runtime.getDevice()))
    place = ctypes.c_void_p(kernel.kernel.ptr)
    if driver is None or driver.cuFuncSetAttribute(place, MAX_SHARED, size) != 0:
        raise LatticeqError(f"CUDA does not let {kernel.name} have {size} bytes of shared memory")


def _value(argument: Any) -> Any:
    """Return an argument as C has it: its low bytes come first, so an int may be shorter."""
    if isinstance(argument, np.float32):
        return ctypes.c_float(float(argument))
    if isinstance(argument, np.float64):
        return ctypes.c_double(float(argument))
    if isinstance(argument, int):
        return ctypes.c_longlong(argument)
    return ctypes.c_void_p(argument.data.ptr)


@cache
def _driver(device: int) -> Any:
    """Return CUDA's driver if it and the device start kernels early, else None."""
    module = cupy()
    if int(module.cuda.Device(device).compute_capability) < 90:
        return None
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    driver = ctypes.CDLL(name)
    return driver if hasattr(driver, "cuLaunchKernelEx") else None
