"""Lattice quantization of Llama models: packed for real, run on a CPU from pure Python.

The names below are imported when they are first used, so ``import latticeq`` compiles nothing and
loads neither NumPy nor Numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latticeq import codes, lattices, linear, model, quantizers, storage, transforms
    from latticeq.errors import (
        FormatError,
        InputError,
        LatticeqError,
        MissingDependencyError,
        VerificationError,
    )
    from latticeq.transforms.rotation import Rotation

_MODULES = ["codes", "lattices", "linear", "model", "quantizers", "storage", "transforms"]

_HOMES = {
    "FormatError": "latticeq.errors",
    "InputError": "latticeq.errors",
    "LatticeqError": "latticeq.errors",
    "MissingDependencyError": "latticeq.errors",
    "Rotation": "latticeq.transforms.rotation",
    "VerificationError": "latticeq.errors",
}
"""Where each public name lives; `__getattr__` brings it from there."""

__all__ = [
    "FormatError",
    "InputError",
    "LatticeqError",
    "MissingDependencyError",
    "Rotation",
    "VerificationError",
    "codes",
    "lattices",
    "linear",
    "model",
    "quantizers",
    "storage",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"latticeq.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module 'latticeq' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latticeq")
    except PackageNotFoundError:
        return "0+not.installed"
