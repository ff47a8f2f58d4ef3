"""Read and write safetensors files: memory-mapped folders in, streamed files out.

A safetensors file is ``header length u64 | JSON header | tensor data`` with the tensors back to
back, no holes, C order, little endian. The ``safetensors`` library owns the format: its Rust parser
checks every header before a byte is mapped here. What it lacks for NumPy is done here: bfloat16
(`bfloat16_to_float32`), zero-copy views, shards, and writing a model that does not fit in memory.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, InputError, context
from latticeq.storage.disk import disk_errors
from latticeq.storage.safetensors_header import check_representable, read_header

__all__ = [
    "DTYPES",
    "INDEX",
    "SINGLE",
    "SafetensorsWriter",
    "TensorFolder",
    "TensorInfo",
    "bfloat16_to_float32",
    "read_index",
]

DTYPES: Mapping[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "U8": "<u1",
        "I8": "<i1",
        "U16": "<u2",
        "I16": "<i2",
        "F16": "<f2",
        "BF16": "<u2",  # NumPy has no bfloat16: its bits, for bfloat16_to_float32
        "U32": "<u4",
        "I32": "<i4",
        "F32": "<f4",
        "U64": "<u8",
        "I64": "<i8",
        "F64": "<f8",
    }.items()
}
"""safetensors dtype name to the NumPy dtype that holds its bytes."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The weights of a folder in one file, and the list of those in several."""

_ALIGNMENT = 64  # a cache line, and the widest vector load
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert bfloat16 numbers, given as their bits, to the float32 numbers they are.

    A bfloat16 is the upper half of a float32, so the conversion is a shift and exact: NaN payloads,
    infinities, subnormals and the sign of zero are kept.

    Parameters
    ----------
    bits : (...) uint16

    Returns
    -------
    (...) float32

    Examples
    --------
    >>> bfloat16_to_float32(np.array([0x3F80, 0xC000, 0x7F80], np.uint16))
    array([ 1., -2., inf], dtype=float32)
    """
    wide = np.asarray(bits, np.uint16).astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about one tensor.

    Attributes
    ----------
    name : str
    dtype : str
        The safetensors name, such as ``BF16``.
    shape : tuple of int
    nbytes : int
    path : Path
        The file that holds it.
    start : int
        Its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    start: int


class TensorFolder:
    """The tensors of a Hugging Face model folder, memory-mapped.

    Opens ``model.safetensors``, or else the shards that ``model.safetensors.index.json`` lists.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    folder : Path
    names : list of str
        Every tensor, sorted.
    metadata : dict of str to str
        The ``__metadata__`` of all files; where two disagree, the last file's.

    Raises
    ------
    FormatError
        If there are no weights, a file is truncated or invalid, a header names a tensor twice, or
        the index points outside the folder; the message names file and tensor.

    Notes
    -----
    Arrays stay valid after `close`: each keeps its file mapped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.metadata: dict[str, str] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._maps: dict[Path, NDArray[np.uint8]] = {}
        weight_map = self._weight_map()
        for path in sorted({*weight_map.values()} or {self.folder / SINGLE}):
            self._open(path, weight_map)
        for name, path in weight_map.items():
            if name not in self._infos:
                raise FormatError(
                    f"{path}: tensor {name} is missing, though {INDEX} places it here"
                )
        self.names = sorted(self._infos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def close(self) -> None:
        """Let go of the files; arrays already handed out stay valid."""
        self._maps.clear()

    def info(self, name: str) -> TensorInfo:
        """Return what the file says about a tensor.

        Raises
        ------
        FormatError
            If there is no tensor of that name.
        """
        if name not in self._infos:
            raise FormatError(
                f"{self.folder}: tensor {name} is missing; the folder has {len(self._infos)} others"
            )
        return self._infos[name]

    def raw(self, name: str) -> NDArray[Any]:
        """Return a tensor as a read-only view of the file, bfloat16 as uint16 bits.

        A tensor that the file leaves unaligned for its dtype is copied, because compiled kernels
        assume aligned numbers; writers that sort by size, as all known ones do, never cause this.

        Raises
        ------
        FormatError
            If there is no such tensor, its dtype has no NumPy counterpart, or the folder is closed.
        """
        info = self.info(name)
        if info.dtype not in DTYPES:
            raise FormatError(
                f"{info.path}: tensor {name} has dtype {info.dtype}; supported are "
                f"{', '.join(DTYPES)}"
            )
        if info.path not in self._maps:
            raise FormatError(f"{info.path}: the folder was closed; open it again")
        data = self._maps[info.path][info.start : info.start + info.nbytes]
        array = data.view(DTYPES[info.dtype]).reshape(info.shape)
        return array if array.flags.aligned else array.copy()

    def float32(self, name: str, rows: slice | None = None) -> NDArray[np.float32]:
        """Return a tensor as float32: a view of the file for F32, a converted copy otherwise.

        Parameters
        ----------
        name : str
        rows : slice, optional
            Of the first axis, where the rest is not to be converted.

        Raises
        ------
        FormatError
            As `raw`, and if the tensor does not hold floating-point numbers.
        """
        dtype, array = self.info(name).dtype, self.raw(name)
        if rows is not None:
            array = array[rows]
        if dtype == "F32":
            return array
        if dtype == "BF16":
            return bfloat16_to_float32(array)
        if dtype in ("F16", "F64"):
            with np.errstate(over="ignore"):  # too large for float32 becomes infinite, as it must
                return array.astype(np.float32)
        raise FormatError(
            f"{self.info(name).path}: tensor {name} has dtype {dtype}; a weight is one of F32, "
            "F16, BF16, F64"
        )

    def _weight_map(self) -> dict[str, Path]:
        """Return tensor name to shard, empty for a single file."""
        if (self.folder / SINGLE).exists():
            return {}
        path = self.folder / INDEX
        if not path.exists():
            raise FormatError(
                f"{self.folder} has neither {SINGLE} nor {INDEX}; give a Hugging Face model "
                "folder with safetensors weights"
            )
        return {name: self.folder / file for name, file in read_index(path).items()}

    def _open(self, path: Path, weight_map: Mapping[str, Path]) -> None:
        with context(str(path)):
            metadata, entries, data_start = read_header(path)
            self._maps[path] = np.asarray(np.memmap(path, np.uint8, "r"))
        self.metadata |= metadata
        for name, entry in entries.items():
            if weight_map and weight_map.get(name) != path:
                continue  # the index decides which file holds a tensor
            start, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            check_representable(f"{path}: tensor {name}", shape)
            self._infos[name] = TensorInfo(
                name, entry["dtype"], shape, end - start, path, data_start + start
            )


def read_index(path: Path) -> dict[str, str]:
    """Return the name of the shard that holds each tensor, from an index.

    Parameters
    ----------
    path : Path
        A ``model.safetensors.index.json``.

    Raises
    ------
    FormatError
        If it cannot be read, or names a file that is not one of the folder's own.
    """
    with context(str(path)):
        try:
            index = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"cannot be read as JSON: {error}") from error
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise FormatError("has no weight_map, which must map tensor names to files")
        for name, file in weight_map.items():
            # A plain name only: an index from elsewhere must not make us read any other folder.
            plain = isinstance(file, str) and file.endswith(".safetensors") and file[0] != "."
            if not plain or not _can_be_named(file):
                raise FormatError(
                    f"places tensor {name} in {file!r}, which is not a shard's file name"
                )
        return weight_map


def _can_be_named(file: str) -> bool:
    """Tell whether a file inside a folder can have this name on every system."""
    try:
        file.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return not any(character in file for character in "/\\:\0")


class SafetensorsWriter:
    """Write a safetensors file tensor by tensor, none of them kept in memory.

    Declare every tensor, then write each once, in any order. The file appears under its name when
    the writer closes with everything written; until then, and after an error, it does not exist.

    Parameters
    ----------
    path : Path
        The file. An existing one is replaced when the writer closes.
    metadata : dict of str to str
        The file's ``__metadata__``.

    Raises
    ------
    InputError
        If a tensor is declared twice or never written, or differs from its declaration.
    LatticeqError
        If the disk is full or the folder may not be written to, naming the path.

    Notes
    -----
    The data begins at a multiple of 64 bytes, and so does every tensor whose size and those before
    it are multiples of 64. The format forbids holes, so tensors are laid out by how many powers of
    two divide their size, most first: every tensor is then aligned at least to its own numbers.
    Equal declarations and data give equal bytes.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with SafetensorsWriter(folder / "model.safetensors", {"format": "pt"}) as writer:
    ...     writer.declare("weight", "F32", (2, 3))
    ...     writer.write("weight", np.ones((2, 3), np.float32))
    >>> TensorFolder(folder).raw("weight").sum()
    np.float32(6.0)
    """

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._metadata = dict(metadata)
        self._declared: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._offsets: dict[str, int] = {}
        self._written: set[str] = set()
        with disk_errors(self.path):
            self._file = self._partial.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def declare(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Announce a tensor; every tensor is declared before the first is written.

        Parameters
        ----------
        name : str
        dtype : str
            A name of `DTYPES`, such as ``F32``.
        shape : tuple of int

        Raises
        ------
        InputError
            If the name is taken, the dtype is not known, a dimension is negative, or writing began.
        """
        if self._offsets:
            self._fail(name, "is declared after the first tensor was written")
        if name in self._declared or name == "__metadata__":
            self._fail(name, "is declared twice, or is the format's own name")
        if dtype not in DTYPES:
            self._fail(name, f"has dtype {dtype}; allowed are {', '.join(DTYPES)}")
        if any(size < 0 for size in shape):
            self._fail(name, f"has shape {shape}; dimensions must not be negative")
        self._declared[name] = (dtype, tuple(int(size) for size in shape))

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write a declared tensor.

        Parameters
        ----------
        name : str
        array : array
            Of the declared shape and dtype (uint16 bits for ``BF16``); any strides.

        Raises
        ------
        InputError
            If the tensor was not declared, was written before, or is not what was declared.
        """
        if name not in self._declared or name in self._written:
            self._fail(name, "was not declared, or is written twice")
        dtype, shape = self._declared[name]
        if array.shape != shape or array.dtype != DTYPES[dtype]:
            self._fail(name, f"is {array.dtype} {array.shape}; declared was {dtype} {shape}")
        with disk_errors(self.path):
            if not self._offsets:
                self._write_header()
            self._file.seek(self._offsets[name])
            self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self._written.add(name)

    def close(self) -> None:
        """Flush everything to the disk and give the file its name."""
        if missing := sorted(self._declared.keys() - self._written):
            self.abort()
            self._fail(missing[0], f"was declared but never written ({len(missing)} in all)")
        with disk_errors(self.path):
            try:
                if not self._offsets:
                    self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._partial.replace(self.path)
            except OSError:
                self.abort()
                raise

    def abort(self) -> None:
        """Delete what was written so far."""
        with suppress(OSError):  # closing flushes, which a full disk refuses once more
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def _write_header(self) -> None:
        sizes = {
            name: prod(shape) * DTYPES[dtype].itemsize
            for name, (dtype, shape) in self._declared.items()
        }
        # size & -size is the largest power of two that divides size; an empty tensor fits anywhere.
        ordered = sorted(sizes, key=lambda name: -min(_ALIGNMENT, sizes[name] & -sizes[name] or 64))
        header: dict[str, Any] = {"__metadata__": self._metadata} if self._metadata else {}
        offset = 0
        for name in ordered:
            dtype, shape = self._declared[name]
            end = offset + sizes[name]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            self._offsets[name] = offset
            offset = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        if len(text) > _MAX_HEADER_BYTES:
            raise InputError(f"{self.path}: the header takes {len(text)} bytes; 100 MB are allowed")
        for name in ordered:
            self._offsets[name] += 8 + len(text)
        self._file.write(struct.pack("<Q", len(text)) + text)

    def _fail(self, name: str, reason: str) -> NoReturn:
        raise InputError(f"{self.path}: tensor {name} {reason}")
