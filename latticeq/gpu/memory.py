"""Device memory that is kept: buffers by name, so that products allocate nothing once they ran.

A CUDA graph holds addresses. A buffer that grows leaves the old one where it is, so that graphs
which were captured before stay valid. Buffers are shared by all that run on one stream of a device;
two streams must not use them at once.
"""

from __future__ import annotations

from math import prod
from typing import Any

from latticeq.gpu.device import cupy

__all__ = ["buffer", "zeros"]

_BUFFERS: dict[tuple[int, str], Any] = {}
_OUTGROWN: list[Any] = []


def buffer(name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """Return an array of the current device whose content is whatever was left in it.

    Parameters
    ----------
    name : str
        What it is for: a later call with the same name may return the same memory.
    shape : tuple of int
    dtype : str
    """
    module = cupy()
    count = prod(shape)
    key = module.cuda.runtime.getDevice(), f"{name} {dtype}"
    found = _BUFFERS.get(key)
    if found is None or found.size < count:
        if found is not None:
            _OUTGROWN.append(found)
        found = _BUFFERS[key] = module.zeros(max(count, 1), dtype)
    return found[:count].reshape(shape)


def zeros(name: str, count: int) -> Any:
    """Return uint32 counters that are zero, as every kernel that uses them leaves them."""
    return buffer(name, (count,), "uint32")
