"""A plugin of pytest: each array of a device has memory of its own, whose ends a sanitizer sees.

CuPy cuts arrays from larger pieces, so that what is read beyond one is often inside another.
"""

from __future__ import annotations


def pytest_configure() -> None:
    from latticeq.gpu.device import cupy

    cupy().cuda.set_allocator(None)
