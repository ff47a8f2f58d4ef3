"""What can be quantized: a Hugging Face folder, or a GGUF file that becomes one meanwhile.

A GGUF file is converted into a hidden sibling of the output folder. It stays while there is an
unfinished job to resume, and goes when the job is done or was never begun.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, InputError, context
from latticeq.model.config import LlamaConfig
from latticeq.model.gguf_import import gguf_config, import_gguf
from latticeq.model.job import partial_folder
from latticeq.model.loader import Weights, expected_tensors, load_config
from latticeq.storage.checkpoint import checksum
from latticeq.storage.disk import clear_leftovers

__all__ = [
    "check_finite",
    "contents_fingerprint",
    "float_folder",
    "is_gguf",
    "model_config",
    "weights_fingerprint",
]

_CHUNK = 2**22
_PAGE = 2**12
_SAMPLES = 64  # of a file's bytes, where its contents are told by some of them
_BFLOAT16_EXPONENT = np.uint16(0x7F80)


def is_gguf(source: Path) -> bool:
    """Tell whether a source is a GGUF file rather than a folder.

    Raises
    ------
    InputError
        If it is a file of another kind.
    """
    if source.suffix.lower() == ".gguf":
        return True
    if source.is_file():
        raise InputError(f"{source} is a file; give a Hugging Face model folder or a .gguf file")
    return False


def model_config(source: Path) -> LlamaConfig:
    """Return the configuration of a folder or a GGUF file, reading no weights.

    Raises
    ------
    FormatError
        If a file is missing or damaged.
    InputError
        If the model is one that the forward pass does not do.
    """
    if not is_gguf(source):
        return load_config(source)
    values = gguf_config(source)
    with context(str(source)):
        return LlamaConfig.from_dict(values)


def weights_fingerprint(source: Path) -> str:
    """Return a digest of the names, sizes and times of a source's weight files."""
    stats = [(path.name, path.stat()) for path in _weight_files(source)]
    return checksum(repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats]).encode())


def contents_fingerprint(source: Path) -> str:
    """Return a digest of the sizes and a sample of the bytes of a source's weight files.

    A copy elsewhere has the same one. Of each file its first page is read, which for most is a good
    part of the header, and pages spread evenly over the rest: another model, or the same one after
    more training, differs in nearly all of its bytes; a single changed weight may go unseen.

    Raises
    ------
    FormatError
        If there is no such file, or one cannot be read.
    """
    parts = []
    files = _weight_files(source)
    if not files:
        raise FormatError(f"{source} has no weights: no file *.safetensors is there")
    for path in files:
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                parts.append(f"{path.name} {size}\n".encode())
                for place in np.linspace(0, max(size - _PAGE, 0), _SAMPLES, dtype=np.int64):
                    file.seek(int(place))
                    parts.append(file.read(_PAGE))
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    return checksum(b"".join(parts))


def _weight_files(source: Path) -> list[Path]:
    return [source] if is_gguf(source) else sorted(source.glob("*.safetensors"))


@contextmanager
def float_folder(source: Path, out: Path, progress: bool = False) -> Iterator[Path]:
    """Yield a Hugging Face folder with the source's weights.

    Parameters
    ----------
    source : Path
        Such a folder, which is yielded as it is, or a GGUF file.
    out : Path
        The output of the job; a converted GGUF file lies beside it meanwhile.
    progress : bool
        Show a bar on stderr while a GGUF file is converted.

    Raises
    ------
    FormatError
        If the GGUF file is damaged or holds what is not supported.
    LatticeqError
        If the disk is full or may not be written to.
    """
    if not is_gguf(source):
        yield source
        return
    with context(str(source)):
        if not source.is_file():
            raise FormatError("is missing; give a Hugging Face model folder or a .gguf file")
        name = f".{out.name}.float32-{checksum(str(source.resolve()).encode())[:8]}"
        folder = out.with_name(f"{name}{weights_fingerprint(source)[:8]}")
    clear_leftovers(folder)
    if not folder.is_dir():
        import_gguf(source, folder, progress=progress)
    try:
        yield folder
    finally:
        if not partial_folder(out).exists():  # no job that could go on with it
            shutil.rmtree(folder, ignore_errors=True)


def check_finite(
    weights: Weights, report: Callable[[str, tuple[int, int]], None] | None = None
) -> None:
    """Read every float tensor once and refuse NaN and infinities, before hours are spent.

    Parameters
    ----------
    weights : Weights
    report : callable, optional
        Called with "check" and (tensors done, of how many).

    Raises
    ------
    FormatError
        Naming the first tensor that holds one.
    """
    names = list(expected_tensors(weights.config))
    for done, name in enumerate(names, start=1):
        flat = weights.matrix(name).reshape(-1)
        for first in range(0, len(flat), _CHUNK):
            if not _all_finite(flat[first : first + _CHUNK]):
                raise FormatError(
                    f"{weights.folder.folder}: tensor {name} holds NaN or infinite numbers; the "
                    "model is damaged: download or convert it again"
                )
        if report:
            report("check", (done, len(names)))


def _all_finite(values: NDArray[Any]) -> bool:
    if values.dtype == np.uint16:  # bfloat16 bits: an exponent of all ones is NaN or infinite
        return not bool(((values & _BFLOAT16_EXPONENT) == _BFLOAT16_EXPONENT).any())
    return bool(np.isfinite(values).all())
