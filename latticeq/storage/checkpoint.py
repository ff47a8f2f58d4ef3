"""Format v1: quantized tensors as named byte arrays in an HF-style folder.

docs/format-v1.md is the normative text. A quantized matrix ``NAME`` becomes the tensors
``NAME.<suffix>``, such as ``NAME.digits`` and ``NAME.row_scale``, and an entry in config.json's
``quantization_config`` that names its format. `FORMATS` says which class of
`latticeq.storage.formats` reads and writes which format. Everything is checked against the entry
before a byte is mapped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, InputError, VerificationError, context
from latticeq.quantizers.base import QuantizedTensor
from latticeq.storage.formats.base import Packed, Shapes
from latticeq.storage.formats.d8 import PackedD8
from latticeq.storage.formats.grid import PackedGrid
from latticeq.storage.formats.int8 import PackedInt8
from latticeq.storage.formats.nest import PackedNest
from latticeq.storage.formats.pvq import PackedPVQ
from latticeq.storage.safetensors import TensorFolder

__all__ = [
    "CHECKSUMS",
    "FORMATS",
    "FORMAT_VERSION",
    "checksum",
    "describe",
    "header_bytes",
    "pack",
    "packed",
    "quantization_config",
    "read_packed",
    "stored_shapes",
    "verify",
]

FORMAT_VERSION = 1
CHECKSUMS = "checksums.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

_KINDS: tuple[type[Packed], ...] = (PackedNest, PackedD8, PackedPVQ, PackedGrid, PackedInt8)

FORMATS: dict[str, type[Packed]] = {name: kind for kind in _KINDS for name in kind.names}
"""The class of each format by its name in config.json."""


def _kind_of(tensor: QuantizedTensor) -> type[Packed]:
    for kind in _KINDS:
        if kind.takes(tensor):
            return kind
    raise InputError(f"a {type(tensor).__name__} has no format; formats are {', '.join(FORMATS)}")


def pack(tensor: QuantizedTensor) -> dict[str, NDArray[Any]]:
    """Return the byte arrays of a quantized matrix by the suffix of their names."""
    return _kind_of(tensor).pack(tensor)


def describe(tensor: QuantizedTensor) -> dict[str, Any]:
    """Return the entry of config.json that says how to read a quantized matrix."""
    return _kind_of(tensor).describe(tensor)


def packed(tensor: QuantizedTensor) -> Packed:
    """Return a quantized matrix as its bytes, as if it had been written and read back.

    Raises
    ------
    InputError
        If the tensor is no matrix, or has no format.
    """
    if len(tensor.shape) != 2:
        raise InputError(f"the tensor has shape {tensor.shape}; formats are for matrices")
    return _kind_of(tensor)(describe(tensor), pack(tensor))


def stored_shapes(entry: Mapping[str, Any]) -> Shapes:
    """Return the dtype and shape of each stored array of an entry, by the suffix of its name."""
    return FORMATS[entry["format"]].stored_shapes(entry)


def quantization_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``quantization_config`` of a config.json, checked as far as it names tensors.

    Raises
    ------
    FormatError
        If it is missing, another software's, of another version, or not well formed.
    """
    found = config.get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") != "latticeq":
        raise FormatError(
            "config.json has no quantization_config of latticeq's; this is not a folder that "
            "`latticeq quantize` wrote"
        )
    version = found.get("format_version")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"the checkpoint has format version {version!r}; this latticeq reads version "
            f"{FORMAT_VERSION}: install the latticeq that wrote it, or quantize again"
        )
    tensors = found.get("tensors")
    if not isinstance(tensors, dict):
        raise FormatError("quantization_config.tensors must be an object")
    for name, entry in tensors.items():
        with context(f"config.json: quantization_config.tensors[{name!r}]"):
            _check_entry(entry)
    return found


def _check_entry(entry: Any) -> None:
    # A name must be text before it is looked up: a list, say, has no hash.
    name = entry.get("format") if isinstance(entry, dict) else None
    if not isinstance(name, str) or name not in FORMATS:
        raise FormatError(
            f"is {entry!r:.80}; it must be an object whose format is one of {', '.join(FORMATS)}"
        )
    FORMATS[name].check_entry(entry)


def read_packed(folder: TensorFolder, name: str, entry: Mapping[str, Any]) -> Packed:
    """Map a quantized matrix.

    Parameters
    ----------
    folder : TensorFolder
    name : str
        Of the matrix, such as ``model.layers.0.mlp.up_proj.weight``.
    entry : mapping
        Its entry in a checked ``quantization_config``.

    Raises
    ------
    FormatError
        If an array is missing, has another dtype or shape than the entry makes it, or holds values
        that no quantizer writes.
    """
    arrays = {}
    for suffix, (dtype, shape) in stored_shapes(entry).items():
        stored = f"{name}.{suffix}"
        if stored not in folder:
            raise FormatError(f"{folder.folder}: tensor {stored} is missing")
        info = folder.info(stored)
        if (info.dtype, info.shape) != (dtype, shape):
            raise FormatError(
                f"{info.path}: tensor {stored} is {info.dtype} {info.shape}; config.json makes it "
                f"{dtype} {shape}"
            )
        arrays[suffix] = folder.raw(stored)
    found = FORMATS[entry["format"]](entry, arrays)
    with context(f"{folder.folder}: tensor {name}"):
        found.check()
    return found


def checksum(data: Any) -> str:
    """Return the SHA-256 of an array's or a buffer's bytes, in hexadecimal."""
    raw: Any = data
    if isinstance(data, np.ndarray):
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return hashlib.sha256(raw).hexdigest()


def header_bytes(path: Path) -> bytes:
    """Return the first part of a safetensors file, all that is not tensor data.

    That is the length of the header, eight bytes, and the header.
    """
    with path.open("rb") as file:
        start = file.read(8)
        return start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES))


def verify(
    folder: Path, progress: Callable[[Iterator[str]], Iterator[str]] | None = None
) -> dict[str, int]:
    """Read every byte of a checkpoint again and compare it with its checksum.

    Parameters
    ----------
    folder : Path
    progress : callable, optional
        Wraps the iteration over names, to show progress.

    Returns
    -------
    dict
        ``tensors``, ``files`` and ``nbytes``: how much was verified.

    Raises
    ------
    FormatError
        If a file is missing or cannot be read.
    VerificationError
        If bytes differ; the message names every file that does, or else every tensor.
    """
    path = Path(folder) / CHECKSUMS
    with context(str(path)):
        try:
            expected = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise FormatError("is missing; give a folder that `latticeq quantize` wrote") from error
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"cannot be read as JSON: {error}") from error
        is_table = isinstance(expected, dict) and all(
            isinstance(expected.get(part), dict) for part in ("tensors", "headers", "files")
        )
        if not is_table:
            raise FormatError("must be an object with 'tensors', 'headers' and 'files'")
        if expected.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"has format version {expected.get('format_version')!r}; this latticeq reads "
                f"version {FORMAT_VERSION}: install the latticeq that wrote it"
            )
    wrong = _wrong_files(Path(folder), expected["files"], Path.read_bytes)
    wrong += _wrong_files(Path(folder), expected["headers"], header_bytes)
    if wrong:  # an index or a header that differs says nothing reliable about tensors
        _refuse(Path(folder), wrong)
    nbytes = 0
    with TensorFolder(Path(folder)) as tensors:
        for name in tensors.names:
            if name not in expected["tensors"]:
                wrong.append(f"tensor {name} (no checksum)")
        names = iter(expected["tensors"])
        for name in progress(names) if progress else names:
            if name not in tensors:
                wrong.append(f"tensor {name} (missing)")
                continue
            raw = tensors.raw(name)
            nbytes += raw.nbytes
            if checksum(raw) != expected["tensors"][name]:
                wrong.append(f"tensor {name}")
    if wrong:
        _refuse(Path(folder), wrong)
    return {"tensors": len(expected["tensors"]), "files": len(expected["files"]), "nbytes": nbytes}


def _wrong_files(
    folder: Path, digests: Mapping[str, Any], read: Callable[[Path], bytes]
) -> list[str]:
    """Return which files are missing, or differ in the part of them that `read` returns."""
    wrong = []
    for name, digest in digests.items():
        if Path(name).name != name or not (folder / name).is_file():
            wrong.append(f"file {name} (missing)")
        elif checksum(read(folder / name)) != digest:
            wrong.append(f"file {name}")
    return wrong


def _refuse(folder: Path, wrong: list[str]) -> None:
    shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
    raise VerificationError(
        f"{folder}: {len(wrong)} of the checkpoint's parts differ from their checksums: {shown}. "
        "The files were damaged or edited: copy or quantize them again"
    )
