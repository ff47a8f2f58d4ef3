"""The verb ``latticeq env``: what this machine will run, and with what."""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from latticeq.cli import machine
from latticeq.cli.console import say

__all__ = ["HELP", "add_arguments", "run", "versions"]

HELP = "show what this machine will run, and with what"

LIBRARIES = ("numpy", "numba", "llvmlite", "scipy", "safetensors", "tokenizers", "tqdm")

EXTRAS = {
    "gguf": ("gguf",),
    "hub": ("huggingface_hub",),
    "chat": ("jinja2", "prompt_toolkit"),
    "plot": ("matplotlib",),
    "gpu": ("cupy-cuda12x",),
    "gpu-cuda13": ("cupy-cuda13x",),
    "docs": ("mkdocs-material",),
    "dev": ("pytest",),
}
"""Packages of each extra: where they are all, the extra is installed."""

FEATURES = ("avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "neon", "dotprod")
"""The CPU features that decide how the kernels are compiled, by LLVM's names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: it has none of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Report versions, processor, kernel path, threads, memory, cache, extras and GPUs."""
    from latticeq import simd
    from latticeq.jit import cache_root
    from latticeq.simd.packed import features

    folder = cache_root()
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: number for name, number in versions().items() if name != "python"},
        "cpu": machine.cpu_name(),
        "cpu_features": [name for name in FEATURES if name in features()],
        "kernels": simd.path(),
        "physical_cores": machine.physical_cores(),
        "logical_cores": machine.logical_cores(),
        "threads": args.threads,
        "memory_bytes": machine.total_memory(),
        "available_memory_bytes": machine.available_memory(),
        "cache_folder": str(folder),
        "cache_bytes": _folder_bytes(folder),
        "extras": {extra: all(map(_version, packages)) for extra, packages in EXTRAS.items()},
        **_devices(),
    }
    _report(result)
    return result


def _devices() -> dict[str, Any]:
    """Return what GPUs there are, and why none can be used if so."""
    from latticeq.gpu.device import describe, device_count, missing

    devices = [asdict(describe(index)) for index in range(device_count())]
    return {"gpus": devices, "gpu_missing": missing()}


def versions() -> dict[str, str | None]:
    """Return the versions of Python, latticeq and its libraries; None where one is missing."""
    from latticeq import __version__

    own = {"python": platform.python_version(), "latticeq": __version__}
    return own | {name: _version(name) for name in LIBRARIES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _folder_bytes(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def _report(result: dict[str, Any]) -> None:
    versions = [f"{name} {number or 'missing'}" for name, number in result["versions"].items()]
    memory = [_gib(result["memory_bytes"]), f"{_gib(result['available_memory_bytes'])} available"]
    rows = {
        "python": f"{result['python']}, {result['platform']}",
        "versions": ", ".join(versions),
        "cpu": f"{result['cpu']} ({', '.join(result['cpu_features']) or 'plain'})",
        "kernels": result["kernels"],
        "threads": f"{result['threads']} (cores: {result['physical_cores']} physical, "
        f"{result['logical_cores']} logical)",
        "memory": ", ".join(memory),
        "cache": f"{result['cache_folder']} ({result['cache_bytes'] / 1e6:.1f} MB)",
    }
    for name, text in rows.items():
        say(f"{name:<10}{text}")
    for gpu in result["gpus"]:
        say(
            f"{'gpu ' + str(gpu['index']):<10}{gpu['name']}, {_gib(gpu['memory'])}, "
            f"{_gib(gpu['free_memory'])} free; driver for CUDA {gpu['driver']}, CUDA "
            f"{gpu['cuda']}, compute capability {gpu['compute_capability']}: perplexity, generate, "
            "chat and bench run there with --device gpu"
        )
    if result["gpu_missing"] is not None:
        say(f"{'gpu':<10}none: {result['gpu_missing']}")
    for extra, installed in result["extras"].items():
        state = "installed" if installed else f"not installed: pip install 'latticeq[{extra}]'"
        say(f"{'extra':<10}{extra}: {state}")


def _gib(n_bytes: int | None) -> str:
    return "unknown" if n_bytes is None else f"{n_bytes / 2**30:.1f} GiB"
