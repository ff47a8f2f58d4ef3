"""A quantization job on disk: finished parts beside the output folder, resumable at any time.

``OUT.partial/`` holds ``job.json``, the settings that decide the bytes, and one folder a finished
part. A part appears under its name only when it is whole, so whatever stops the job, a Ctrl-C, a
full disk or a power cut, `open_job` goes on with what is there. It refuses settings that would give
other bytes. Each part has checksums: one that differs from them, on a disk that lost what it had
promised to keep, is made again.

The checkpoint is put together in the job's folder, too. ``made.json`` is a copy of its checksums,
there before it gets its final name: an output that has the same ones is this job's, finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, InputError, context
from latticeq.storage.assemble import json_bytes
from latticeq.storage.checkpoint import CHECKSUMS
from latticeq.storage.disk import clear_leftovers, disk_errors, flush, move_folder, new_folder
from latticeq.storage.safetensors import SafetensorsWriter, TensorFolder

__all__ = ["Job", "check_output", "open_job", "partial_folder"]

_WEIGHTS, _RECORD, _MADE = "model.safetensors", "record.json", "made.json"
_CHECKPOINT = "checkpoint"
_DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "uint16": "BF16"}


class Job:
    """The parts of one job.

    Parameters
    ----------
    folder : Path
        ``OUT.partial``; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Tell whether a part is finished."""
        return (self.folder / name).is_dir()

    def write(
        self, name: str, tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any]
    ) -> None:
        """Keep a finished part: its arrays (bfloat16 as uint16) and a JSON record about them."""
        with new_folder(self.folder / name) as part:
            with SafetensorsWriter(part / _WEIGHTS, {}) as writer:
                for tensor, array in tensors.items():
                    writer.declare(tensor, _DTYPES[np.dtype(array.dtype).name], array.shape)
                for tensor, array in tensors.items():
                    writer.write(tensor, array)
            (part / _RECORD).write_bytes(json_bytes(record))
            (part / CHECKSUMS).write_bytes(json_bytes(_digests(part)))

    def clear(self) -> None:
        """Delete what was being written when the job stopped."""
        for path in self.folder.iterdir():
            if path.name.startswith(".") or path.name == _CHECKPOINT:
                shutil.rmtree(path, ignore_errors=True)

    def drop_damaged(self) -> list[str]:
        """Delete the parts that differ from their checksums, and return their names."""
        damaged = [
            part.name
            for part in sorted(self.folder.iterdir())
            if part.is_dir() and not _is_whole(part)
        ]
        for name in damaged:
            shutil.rmtree(self.folder / name)
        return damaged

    def finish(self, out: Path, write: Callable[[Path], None], *, replace: bool) -> None:
        """Make the output under its final name, and delete the job.

        Parameters
        ----------
        out : Path
        write : callable
            Writes the checkpoint into an empty folder and verifies it.
        replace : bool
            Delete an output that is there, once the new one is whole.
        """
        made = self.folder / _CHECKPOINT
        with disk_errors(out):
            if not _is_made(out):
                shutil.rmtree(made, ignore_errors=True)
                with new_folder(made) as fresh:
                    write(fresh)
                (self.folder / _MADE).write_bytes((made / CHECKSUMS).read_bytes())
                flush(self.folder / _MADE)
                if replace and out.exists():
                    shutil.rmtree(out)
                move_folder(made, out)
            # Under a hidden name first: half a job is none to resume.
            clear_leftovers(self.folder)
            done = self.folder.with_name(f".{self.folder.name}.partial-done")
            self.folder.rename(done)
        shutil.rmtree(done, ignore_errors=True)

    def record(self, name: str) -> dict[str, Any]:
        """Return the record of a finished part."""
        return _read_object(self.folder / name / _RECORD)

    @contextmanager
    def tensors(self, names: list[str]) -> Iterator[list[TensorFolder]]:
        """Open the arrays of some parts."""
        opened = [TensorFolder(self.folder / name) for name in names]
        try:
            yield opened
        finally:
            for part in opened:
                part.close()


def _digests(part: Path) -> dict[str, str]:
    digests = {}
    for name in (_WEIGHTS, _RECORD):
        with (part / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _is_whole(part: Path) -> bool:
    try:
        expected = json.loads((part / CHECKSUMS).read_text("utf-8"))
        return bool(expected == _digests(part))
    except (OSError, ValueError, RecursionError):
        return False


def _is_made(out: Path) -> bool:
    """Tell whether an output is the one that the job beside it finished."""
    try:
        sums = (partial_folder(out) / _MADE).read_bytes()
        return sums == (out / CHECKSUMS).read_bytes()
    except OSError:
        return False


def partial_folder(out: Path) -> Path:
    """Return where the job of an output folder keeps its parts."""
    return out.with_name(out.name + ".partial")


def check_output(out: Path, *, resume: bool, force: bool) -> None:
    """Refuse an output folder or a job that is there, unless a flag says what to do.

    If one says so, what killed processes left half-written beside them is deleted.

    Raises
    ------
    InputError
        Naming the folder and the flags; even with `force` if what is there is no model.
    """
    if resume or force:
        clear_leftovers(partial_folder(out))
    if force:
        if out.exists() and not (out / "config.json").is_file():
            raise InputError(
                f"{out} exists and is no model folder, so not even --force replaces it; choose "
                "another folder or remove it yourself"
            )
        return
    if out.exists() and not (resume and _is_made(out)):
        raise InputError(f"{out} exists already; choose another folder or give --force")
    if partial_folder(out).exists() and not resume:
        raise InputError(
            f"{partial_folder(out)} holds an unfinished job; give --resume to go on with it or "
            "--force to start over"
        )


def open_job(out: Path, settings: Mapping[str, Any], *, resume: bool, force: bool) -> Job:
    """Start a job, or go on with the one that stands beside the output folder.

    Parameters
    ----------
    out : Path
        The checkpoint that the job will make.
    settings : mapping
        All that decides its bytes, as JSON values.
    resume : bool
        Go on with a job that is there, if there is one. Its damaged parts are deleted.
    force : bool
        Replace an output folder that is there; delete a job, unless it is to be resumed.

    Raises
    ------
    InputError
        If the output or a job exists and neither flag says what to do, or if the job to resume had
        other settings; the message names them.
    """
    folder = partial_folder(out)
    check_output(out, resume=resume, force=force)
    with disk_errors(folder):
        if force and not resume:
            shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            _check_same(folder / "job.json", settings)
            job = Job(folder)
            job.clear()
            return job
        with new_folder(folder) as fresh:
            (fresh / "job.json").write_bytes(json_bytes(dict(settings)))
    return Job(folder)


def _check_same(path: Path, settings: Mapping[str, Any]) -> None:
    before = _read_object(path)
    now = json.loads(json_bytes(dict(settings)))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{path.parent} was started with {name} = {before.get(name)!r}; now it is "
                f"{now.get(name)!r}. Give the same settings, or --force to start over"
            )


def _read_object(path: Path) -> dict[str, Any]:
    with context(str(path)):
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"cannot be read: {error}; start over with --force") from error
        if not isinstance(found, dict):
            raise FormatError("is not a JSON object; start over with --force")
    return found
