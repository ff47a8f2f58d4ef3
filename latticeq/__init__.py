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
    from latticeq.linear.matmul import matmul
    from latticeq.model.loader import load
    from latticeq.model.perplexity import perplexity
    from latticeq.model.pull import pull
    from latticeq.model.quantize import quantize
    from latticeq.quantizers.nestquant import NestQuant
    from latticeq.quantizers.pvq import PVQ
    from latticeq.quantizers.scalar import Int8, Scalar
    from latticeq.storage.checkpoint import verify
    from latticeq.transforms.rotation import Rotation

_MODULES = ["codes", "lattices", "linear", "model", "quantizers", "storage", "transforms"]

_HOMES = {
    "FormatError": "latticeq.errors",
    "Int8": "latticeq.quantizers.scalar",
    "InputError": "latticeq.errors",
    "LatticeqError": "latticeq.errors",
    "MissingDependencyError": "latticeq.errors",
    "NestQuant": "latticeq.quantizers.nestquant",
    "PVQ": "latticeq.quantizers.pvq",
    "Rotation": "latticeq.transforms.rotation",
    "Scalar": "latticeq.quantizers.scalar",
    "VerificationError": "latticeq.errors",
    "load": "latticeq.model.loader",
    "matmul": "latticeq.linear.matmul",
    "perplexity": "latticeq.model.perplexity",
    "pull": "latticeq.model.pull",
    "quantize": "latticeq.model.quantize",
    "verify": "latticeq.storage.checkpoint",
}
"""Where each public name lives; `__getattr__` brings it from there."""

__all__ = [
    "PVQ",
    "FormatError",
    "InputError",
    "Int8",
    "LatticeqError",
    "MissingDependencyError",
    "NestQuant",
    "Rotation",
    "Scalar",
    "VerificationError",
    "codes",
    "lattices",
    "linear",
    "load",
    "matmul",
    "model",
    "perplexity",
    "pull",
    "quantize",
    "quantizers",
    "storage",
    "transforms",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"latticeq.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name == "__version__":
        value = import_module("latticeq.version").package_version()
    else:
        raise AttributeError(f"module 'latticeq' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
