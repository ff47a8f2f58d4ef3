"""Read GGUF files: metadata, and tensors as float32.

A GGUF file (version 2 or 3, little endian) is a header and then tensor data::

    "GGUF" | version u32 | n_tensors u64 | n_pairs u64
    n_pairs   x  key string | value type u32 | value
    n_tensors x  name string | n_dims u32 | dims u64... | type u32 | offset u64
    padding to general.alignment (32) | tensor data, each at its offset from here

with strings as a u64 length and UTF-8 bytes, and dims listed fastest axis first. The header is
parsed here, every length checked against the file before it is used: the ``gguf`` package's own
reader follows a hostile array length without end, and makes three arrays for each of the hundred
thousand strings of a vocabulary (4.5 s against 0.1 s for SmolLM2). The tables of types and the
dequantization of blocks are the package's.
"""

from __future__ import annotations

import reprlib
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, MissingDependencyError, context

__all__ = ["GGUFFile", "GGUFTensor", "gguf_package"]

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_NAME_BYTES = 64  # GGML_MAX_NAME
_CHUNK_ENTRIES = 1 << 22  # dequantize 16 MiB of float32 at a time: its temporaries stay small


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in the file and how it is stored.

    Attributes
    ----------
    name : str
        llama.cpp's name, such as ``blk.0.attn_q.weight``.
    type : str
        ggml's name of the block format, such as ``Q4_1``.
    shape : tuple of int
        Row-major as NumPy has it, so a weight is (out, in).
    start : int
        First byte in the file.
    nbytes : int
        Bytes in the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


class _Header:
    """A cursor over the file's bytes that never moves past their end."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.bytes = data.data
        self.position = 0

    def skip(self, n_bytes: int, what: str) -> int:
        """Move on by `n_bytes` and return where they began."""
        start = self.position
        left = len(self.bytes) - start
        if n_bytes > left:
            raise FormatError(
                f"{what} takes {n_bytes} bytes at offset {start}, but the file ends after {left}; "
                f"it is truncated or damaged: download it again"
            )
        self.position += n_bytes
        return start

    def u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.bytes, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.bytes, self.skip(8, what))[0])

    def string(self, what: str, limit: int | None = None) -> str:
        n_bytes = self.u64(what)
        if limit is not None and n_bytes > limit:
            raise FormatError(f"{what} takes {n_bytes} bytes; {limit} are allowed")
        start = self.skip(n_bytes, what)
        try:
            return str(self.bytes[start : start + n_bytes], "utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(f"{what} at offset {start} is not UTF-8") from error

    def scalars(self, type_id: int, count: int, what: str) -> NDArray[Any]:
        dtype = np.dtype(_SCALARS[type_id])
        start = self.skip(count * dtype.itemsize, what)
        return np.frombuffer(self.bytes, dtype, count, start)

    def value(self, what: str) -> Any:
        """Read one typed value: a Python scalar, a string, an array of scalars or list of str."""
        type_id = self.u32(what)
        if type_id in _SCALARS:
            return self.scalars(type_id, 1, what)[0].item()
        if type_id == _STRING:
            return self.string(what)
        if type_id != _ARRAY:
            raise FormatError(f"{what} has the unknown value type {type_id}")
        item_id, count = self.u32(what), self.u64(what)
        if item_id in _SCALARS:
            return self.scalars(item_id, count, what)
        if item_id == _STRING:
            # Each string begins with its length, so the file's size bounds the loop.
            return [self.string(what) for _ in range(count)]
        raise FormatError(f"{what} is an array of the unsupported value type {item_id}")


def gguf_package() -> ModuleType:
    """Import the optional ``gguf`` package.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise MissingDependencyError(
            "reading a GGUF file needs the gguf package; run: pip install 'latticeq[gguf]'"
        ) from error
    return gguf  # type: ignore[no-any-return, unused-ignore]


class GGUFFile:
    """A GGUF file, memory-mapped; tensors are converted to float32 when asked for.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    metadata : dict
        Key to int, float, bool, str, one-dimensional array, or list of str.
    tensors : dict of str to GGUFTensor
        In the file's order.

    Raises
    ------
    FormatError
        If the file is missing, truncated, damaged, of an unsupported version or byte order, or has
        a tensor of an unknown type; the message names the file and the key or tensor.
    MissingDependencyError
        If the ``gguf`` package is not installed.

    References
    ----------
    .. [1] ggml-org/ggml, docs/gguf.md.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._gguf = gguf_package()
        with context(str(path)):
            try:
                self._data = np.asarray(np.memmap(path, np.uint8, "r"))
            except (OSError, ValueError) as error:  # ValueError: the file is empty
                reason = getattr(error, "strerror", None) or "the file is empty"
                raise FormatError(f"cannot be read: {reason}") from error
            header = _Header(self._data)
            n_tensors, n_pairs = self._read_preamble(header)
            self.metadata = self._read_metadata(header, n_pairs)
            self.tensors = self._read_tensors(header, n_tensors)

    def float32(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as a float32 array of its shape.

        Raises
        ------
        FormatError
            If there is no such tensor, or its type cannot be dequantized.
        """
        with context(f"{self.path}: tensor {name}"):
            if name not in self.tensors:
                raise FormatError(f"is missing; the file has {len(self.tensors)} other tensors")
            tensor = self.tensors[name]
            n_rows, width = prod(tensor.shape[:-1]), tensor.shape[-1]
            rows = self._data[tensor.start : tensor.start + tensor.nbytes].reshape(n_rows, -1)
            out = np.empty((n_rows, width), np.float32)
            step = max(1, _CHUNK_ENTRIES // width)
            for first in range(0, n_rows, step):
                out[first : first + step] = self._dequantize(rows[first : first + step], tensor)
            return out.reshape(tensor.shape)

    def _dequantize(self, rows: NDArray[np.uint8], tensor: GGUFTensor) -> NDArray[np.float32]:
        kind = self._gguf.GGMLQuantizationType[tensor.type]
        if tensor.type == "F32":
            return rows.view("<f4")
        if tensor.type == "F16":
            return rows.view("<f2").astype(np.float32)
        try:
            # Random bytes hold infinite scales: their products may overflow or be NaN here; whoever
            # uses the weights refuses those by name.
            with np.errstate(all="ignore"):
                return np.asarray(self._gguf.quants.dequantize(rows, kind), np.float32)
        except RuntimeError as error:  # what the package raises for a type it only knows by name
            raise FormatError(
                f"has the type {tensor.type}, which the installed gguf package cannot dequantize; "
                "convert the model from its float weights instead"
            ) from error

    def _read_preamble(self, header: _Header) -> tuple[int, int]:
        if bytes(self._data[:4]) != b"GGUF":
            raise FormatError("is not a GGUF file: it does not begin with 'GGUF'")
        header.skip(4, "the magic number")
        version = header.u32("the version")
        if version in (2 << 24, 3 << 24):
            raise FormatError("is a big-endian GGUF file; only little-endian ones are supported")
        if version not in (2, 3):
            raise FormatError(f"is GGUF version {version}; versions 2 and 3 are supported")
        return header.u64("the tensor count"), header.u64("the metadata count")

    def _read_metadata(self, header: _Header, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = header.string(f"metadata key {index} of {count}", _MAX_KEY_BYTES)
            if key in metadata:
                raise FormatError(f"metadata key {reprlib.repr(key)} occurs twice")
            metadata[key] = header.value(f"metadata {reprlib.repr(key)}")
        return metadata

    def _read_tensors(self, header: _Header, count: int) -> dict[str, GGUFTensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise FormatError(f"general.alignment is {alignment!r}; it must be a small integer")
        described = []
        for index in range(count):
            name = header.string(f"the name of tensor {index} of {count}", _MAX_NAME_BYTES)
            with context(f"tensor {name!r}"):
                described.append((name, *self._read_description(header)))
        data_start = -(-header.position // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset, nbytes in described:
            start = data_start + offset
            with context(f"tensor {name!r}"):
                if name in tensors:
                    raise FormatError("occurs twice")
                if start + nbytes > len(self._data):
                    raise FormatError(
                        f"ends at byte {start + nbytes}, but the file has {len(self._data)}; it is "
                        "truncated: download it again"
                    )
            tensors[name] = GGUFTensor(name, kind, shape, start, nbytes)
        self._refuse_overlaps(tensors)
        return tensors

    def _read_description(self, header: _Header) -> tuple[str, tuple[int, ...], int, int]:
        """Read type, shape, offset and size of the tensor whose name was just read."""
        n_dims = header.u32("the number of dimensions")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise FormatError(f"has {n_dims} dimensions; 1 to {_MAX_DIMS} are allowed")
        shape = tuple(header.u64("the shape") for _ in range(n_dims))[::-1]
        type_id, offset = header.u32("the type"), header.u64("the offset")
        try:
            kind = self._gguf.GGMLQuantizationType(type_id)
            block, block_bytes = self._gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise FormatError(f"has the type number {type_id}, which is not known") from error
        if min(shape) < 1 or shape[-1] % block:
            raise FormatError(
                f"has shape {shape}; every dimension must be positive and, for {kind.name}, the "
                f"last a multiple of {block}"
            )
        return kind.name, shape, offset, prod(shape) // block * block_bytes

    def _refuse_overlaps(self, tensors: dict[str, GGUFTensor]) -> None:
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.start)
        for before, after in pairwise(ordered):
            if before.start + before.nbytes > after.start:
                raise FormatError(f"tensors {before.name!r} and {after.name!r} overlap")
