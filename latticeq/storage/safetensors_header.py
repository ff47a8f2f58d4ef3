"""The header of a safetensors file, read and checked before anything is mapped."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from latticeq.errors import FormatError

__all__ = ["check_representable", "read_header"]

_MAX_DIMS = 32  # NumPy has 64 at most, before version 2 it had 32
_MAX_ENTRIES = 2**48


def read_header(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]], int]:
    """Return metadata, header entries and where the data starts, after the library's checks.

    Raises
    ------
    FormatError
        If the file is no whole safetensors file, or its header has a tensor twice.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # Checks lengths, dtypes, shapes against offsets, holes and overlaps; reads no data.
        with safe_open(path, "numpy"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise FormatError(
            f"is not a whole safetensors file ({reason}); it is truncated or damaged: get it again"
        ) from error
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}") from error
    return header.pop("__metadata__", None) or {}, header, 8 + length


def check_representable(where: str, shape: tuple[int, ...]) -> None:
    """Refuse shapes that fit their bytes and that NumPy has no arrays of.

    Raises
    ------
    FormatError
        Beginning with `where`, which names file and tensor.
    """
    if len(shape) > _MAX_DIMS:
        raise FormatError(f"{where} has {len(shape)} dimensions; at most {_MAX_DIMS} are supported")
    if prod(max(1, size) for size in shape) > _MAX_ENTRIES:  # empty: another dimension is 0
        raise FormatError(f"{where} has shape {shape}, which is out of range")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"the header has tensor {twice} twice")
    return unique
