"""Format v1: quantized tensors as named byte arrays in an HF-style folder.

docs/format-v1.md is the normative text. A quantized matrix ``NAME`` becomes the tensors
``NAME.digits``, ``NAME.scale_index``, ``NAME.row_scale`` and ``NAME.betas`` (or ``NAME.int8`` and
``NAME.row_scale``), and an entry in config.json's ``quantization_config`` that says how to read
them. Everything is checked against that entry before a byte is mapped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.voronoi import MAX_Q, VoronoiCode
from latticeq.errors import FormatError, VerificationError, context
from latticeq.quantizers.nestquant import MAX_K, NestTensor
from latticeq.quantizers.scalar import Int8Tensor
from latticeq.storage.bits import (
    bit_width,
    check_packed,
    pack_digits,
    pack_int8,
    pack_scale_index,
    unpack_digits,
    unpack_int8,
    unpack_scale_index,
)
from latticeq.storage.safetensors import TensorFolder
from latticeq.transforms.rotation import Rotation

__all__ = [
    "CHECKSUMS",
    "FORMAT_VERSION",
    "PackedInt8",
    "PackedVoronoi",
    "checksum",
    "describe",
    "header_bytes",
    "pack",
    "quantization_config",
    "read_packed",
    "stored_shapes",
    "verify",
]

FORMAT_VERSION = 1
CHECKSUMS = "checksums.json"
MAX_DIMENSION = 2**31 - 16
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, eq=False)
class PackedVoronoi:
    """A matrix M x N as the bytes of Voronoi codewords.

    Parameters
    ----------
    shape : (M, N)
    q : int
    betas : ndarray of float32, shape (k,)
    rotation : Rotation
        Of size N.
    digits : ndarray of uint8, shape (ceil(M / 16), N / 8, 16, ceil(log2 q))
    scale_index : ndarray of uint8, shape (ceil(M / 16), N / 8, 2 ceil(log2 k))
    row_scale : ndarray of float16, shape (M,)
    """

    shape: tuple[int, int]
    q: int
    betas: NDArray[np.float32]
    rotation: Rotation
    digits: NDArray[np.uint8]
    scale_index: NDArray[np.uint8]
    row_scale: NDArray[np.float16]

    @property
    def nbytes(self) -> int:
        """Bytes of all four arrays."""
        arrays = (self.digits, self.scale_index, self.row_scale, self.betas)
        return sum(array.nbytes for array in arrays)

    def unpack(self) -> NestTensor:
        """Return the digits and scales.

        Raises
        ------
        FormatError
            If a digit or a scale index is out of its range.
        """
        code = VoronoiCode(self.q, tuple(map(float, self.betas)))
        rows = self.shape[0]
        digits = unpack_digits(self.digits, self.q, rows)
        index = unpack_scale_index(self.scale_index, len(self.betas), rows)
        return NestTensor(self.shape, code, self.rotation, digits, index, self.row_scale)


@dataclass(frozen=True, eq=False)
class PackedInt8:
    """A matrix M x N as int8 rows, sixteen interleaved.

    Parameters
    ----------
    shape : (M, N)
    int8 : ndarray of uint8, shape (ceil(M / 16), N / 4, 16, 4)
        Values raised by 128.
    row_scale : ndarray of float16, shape (M,)
    """

    shape: tuple[int, int]
    int8: NDArray[np.uint8]
    row_scale: NDArray[np.float16]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.int8.nbytes + self.row_scale.nbytes

    def unpack(self) -> Int8Tensor:
        """Return the values and scales."""
        return Int8Tensor(self.shape, unpack_int8(self.int8, self.shape[0]), self.row_scale)


def pack(tensor: NestTensor | Int8Tensor) -> dict[str, NDArray[Any]]:
    """Return the byte arrays of a quantized matrix by the suffix of their names."""
    if isinstance(tensor, Int8Tensor):
        return {"int8": pack_int8(tensor.values), "row_scale": tensor.row_scale}
    return {
        "digits": pack_digits(tensor.digits, tensor.code.q),
        "scale_index": pack_scale_index(tensor.scale_index, len(tensor.code.betas)),
        "row_scale": tensor.row_scale,
        "betas": np.array(tensor.code.betas, np.float32),
    }


def describe(tensor: NestTensor | Int8Tensor) -> dict[str, Any]:
    """Return the entry of config.json that says how to read a quantized matrix."""
    if isinstance(tensor, Int8Tensor):
        return {"format": "int8", "shape": list(tensor.shape)}
    return {
        "format": "voronoi",
        "shape": list(tensor.shape),
        "q": tensor.code.q,
        "k": len(tensor.code.betas),
        "rotation": tensor.rotation.kind,
        "seed": tensor.rotation.seed,
    }


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
    if not isinstance(entry, dict) or entry.get("format") not in {"voronoi", "int8"}:
        raise FormatError(f"is {entry!r:.80}; it must be an object of format 'voronoi' or 'int8'")
    shape = entry.get("shape")
    block = 8 if entry["format"] == "voronoi" else 4
    is_pair = isinstance(shape, list) and len(shape) == 2 and all(map(_is_dimension, shape))
    if not is_pair or entry["shape"][1] % block:
        raise FormatError(
            f"shape is {shape!r:.80}; it must be two sizes, the second a multiple of {block}"
        )
    if entry["format"] == "int8":
        return
    for field, low, high in (("q", 2, MAX_Q), ("k", 1, MAX_K)):
        value = entry.get(field)
        if type(value) is not int or not low <= value <= high:
            raise FormatError(f"{field} is {value!r:.80}; it must be from {low} to {high}")
    if entry.get("rotation") not in {"hadamard", "none"}:
        raise FormatError(
            f"rotation is {entry.get('rotation')!r:.80}; it must be 'hadamard' or 'none'"
        )
    seed = entry.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise FormatError(f"seed is {seed!r:.80}; it must be null or from 0 to 2**64 - 1")
    if seed is not None and entry["rotation"] == "none":
        raise FormatError("a seed is given for rotation 'none'")


def _is_dimension(size: Any) -> bool:
    return type(size) is int and 0 < size <= MAX_DIMENSION


def stored_shapes(entry: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the dtype and shape of each stored array of an entry, by the suffix of its name."""
    m, n = entry["shape"]
    groups = -(-m // 16)
    if entry["format"] == "int8":
        return {"int8": ("U8", (groups, n // 4, 16, 4)), "row_scale": ("F16", (m,))}
    return {
        "digits": ("U8", (groups, n // 8, 16, bit_width(entry["q"]))),
        "scale_index": ("U8", (groups, n // 8, 2 * bit_width(entry["k"]))),
        "row_scale": ("F16", (m,)),
        "betas": ("F32", (entry["k"],)),
    }


def read_packed(
    folder: TensorFolder, name: str, entry: Mapping[str, Any]
) -> PackedVoronoi | PackedInt8:
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
    with context(f"{folder.folder}: tensor {name}"):
        scale = arrays["row_scale"]
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise FormatError("row_scale holds a negative, infinite or NaN number")
        size = (entry["shape"][0], entry["shape"][1])
        if entry["format"] == "int8":
            return PackedInt8(size, arrays["int8"], scale)
        betas = arrays["betas"]
        if not (np.isfinite(betas).all() and betas[0] > 0 and (np.diff(betas) > 0).all()):
            raise FormatError(f"betas are {betas}; they must be positive and increasing")
        check_packed(arrays["digits"], entry["q"], "digit")
        check_packed(arrays["scale_index"], entry["k"], "scale index")
        rotation = Rotation(size[1], entry["seed"], entry["rotation"])
        return PackedVoronoi(
            size, entry["q"], betas, rotation, arrays["digits"], arrays["scale_index"], scale
        )


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
