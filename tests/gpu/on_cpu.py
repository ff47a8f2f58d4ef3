"""CUDA text of the package as a library for the CPU: g++ and a header instead of a device."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from latticeq.gpu import device

SHIM = Path(__file__).with_name("shim.h")


@cache
def compiler() -> str | None:
    return shutil.which("g++")


needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no g++ to compile with")


_BUILT: dict[str, ctypes.CDLL] = {}


def build(
    folder: Path, name: str, extra: str = "", *, neighbours: bool = False, **constants: int
) -> ctypes.CDLL:
    """Compile a CUDA file or header, with `extra` after it, and load it: the same text once.

    With neighbours, `extra` runs the threads of a block together (``neighbours.h``).
    """
    defines = "".join(f"#define {key} {value}\n" for key, value in constants.items())
    # The shim has its own halves: that header is left out.
    text = device._written_in(device._text(name), {"halves.cuh"})
    first = "#define NEIGHBOURS\n" if neighbours else ""
    whole = f'{first}#include "{SHIM}"\n{defines}{text}\n{extra}'
    if whole in _BUILT:
        return _BUILT[whole]
    source = folder / f"{name}.cpp"
    source.write_text(whole, encoding="utf-8")
    library = source.with_suffix(".so")
    options = ["-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    command = [str(compiler()), *options, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return _BUILT.setdefault(whole, ctypes.CDLL(str(library)))


def address(array: NDArray[Any] | None) -> ctypes.c_void_p:
    """Return where an array begins, with a reference that keeps it."""
    return ctypes.c_void_p(0) if array is None else array.ctypes.data_as(ctypes.c_void_p)
