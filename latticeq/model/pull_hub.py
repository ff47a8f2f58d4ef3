"""Bring a model from the Hugging Face hub: the files that are needed, whole and checked.

What will not do is refused before its gigabytes come: the listing of the repository says which
files there are and how large, then come the small files, which say whether this package can run the
model, then the weights. Everything comes from one commit, and is compared with what the listing
says of it: the SHA-256 of large files, the git hash of small ones, the size of all. No file name
that the hub or an index gives leaves the folder.

The ``huggingface_hub`` library does the transport: it resumes what an interruption left, finds the
user's token (``HF_TOKEN``, or ``hf auth login``) and minds ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticeq.errors import FormatError, InputError, LatticeqError, MissingDependencyError, context
from latticeq.model.loader import Weights, load_config
from latticeq.storage.checkpoint import CHECKSUMS
from latticeq.storage.disk import disk_errors
from latticeq.storage.safetensors import INDEX, SINGLE, read_index

__all__ = ["ORIGIN", "check_revision", "is_hub_name", "pull_hub"]

ORIGIN = "hub.json"
"""The file of a pulled folder that says where it is from."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)  # no folder, no drive, nothing hidden

_DOCUMENTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "quantization_report.json",
    CHECKSUMS,
)
"""All that belongs to a model besides its weights; the last two to one that is quantized."""

_LICENCES = ("LICENSE", "NOTICE", "USE_POLICY")  # how their names begin
_PICKLES = (".bin", ".pt", ".pth")
_CHUNK = 1 << 20
_SPARE_BYTES = 1 << 26


@dataclass(frozen=True)
class _File:
    """What the hub's listing says of a file; None is what it does not say."""

    name: str
    size: int | None
    sha256: str | None
    git_sha1: str | None


def is_hub_name(name: str) -> bool:
    """Tell whether a name is of the form ``organization/model``."""
    return _NAME.fullmatch(name) is not None


def check_revision(revision: str) -> None:
    """Refuse what cannot be a branch, a tag or a commit.

    Raises
    ------
    InputError
        If it is none.
    """
    if not _REVISION.fullmatch(revision):
        raise InputError(
            f"revision is {revision!r}; it must be the name of a branch or a tag, or a commit"
        )


def pull_hub(name: str, revision: str | None, target: Path, progress: bool) -> None:
    """Download a model from the hub into a new folder.

    Parameters
    ----------
    name : str
        ``organization/model``.
    revision : str, optional
        A branch, a tag or a commit; the main branch if omitted.
    target : Path
        The folder, which must not exist; it appears when it is complete and checked. Until then,
        what has come is kept beside it.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    InputError
        If there is no such model or revision, or it is one that this package cannot run.
    FormatError
        If the model lacks a file, or a file is not what the hub says that it is.
    MissingDependencyError
        If the ``huggingface_hub`` package is missing.
    LatticeqError
        If the download fails, or the disk has no room.
    """
    hub = _Hub(name, target.with_name(f".{target.name}.download"), progress)
    commit, files = hub.listing(revision)
    documents = _documents(name, files)
    with disk_errors(hub.folder):
        hub.folder.mkdir(parents=True, exist_ok=True)
    hub.download(commit, documents)
    with context(f"{name} on the hub"):
        try:
            config = load_config(hub.folder)  # whether it can be run, before its weights are here
        except LatticeqError:
            shutil.rmtree(hub.folder, ignore_errors=True)
            raise
    weights = _weights(name, files, hub.folder)
    _check_room(name, hub.folder, weights)
    hub.download(commit, weights)
    origin = {"name": name, "revision": revision or "main", "commit": commit}
    with disk_errors(target):
        _tidy(hub.folder, {file.name for file in documents + weights})
        (hub.folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", "utf-8")
        Weights(hub.folder, config).folder.close()  # every tensor is there and in shape
        hub.folder.rename(target)


class _Hub:
    """One model on the hub, and the folder that its files come to.

    Parameters
    ----------
    name : str
    folder : Path
    progress : bool

    Raises
    ------
    MissingDependencyError
        If the ``huggingface_hub`` package is missing.
    """

    def __init__(self, name: str, folder: Path, progress: bool) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.utils
        except ImportError as error:
            raise MissingDependencyError(
                f"pulling {name} from the hub needs the huggingface_hub package; run: "
                "pip install 'latticeq[hub]'"
            ) from error
        self._library: Any = huggingface_hub
        self.name = name
        self.folder = folder
        self.progress = progress

    def listing(self, revision: str | None) -> tuple[str, dict[str, _File]]:
        """Return the commit that a revision is, and the files at the top of it."""
        with self._errors(revision):
            info = self._library.HfApi().model_info(
                self.name, revision=revision, files_metadata=True
            )
        commit = info.sha
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise FormatError(f"{self.name}: the hub gives {commit!r} for a commit; try again")
        files = {}
        for sibling in info.siblings or ():
            name = sibling.rfilename
            if isinstance(name, str) and _PLAIN.fullmatch(name):
                lfs = sibling.lfs
                sha256 = None if lfs is None else lfs.sha256
                git_sha1 = sibling.blob_id if lfs is None else None  # of a pointer otherwise
                files[name] = _File(name, sibling.size, sha256, git_sha1)
        return commit, files

    def download(self, commit: str, files: Iterable[_File]) -> None:
        """Bring files of a commit, and check them."""
        for file in files:
            with self._errors(commit), self._bars():
                self._library.hf_hub_download(
                    self.name, file.name, revision=commit, local_dir=self.folder
                )
            self._check(file)

    def _check(self, file: _File) -> None:
        """Compare a file with the listing; one that differs is deleted, or it would come back."""
        path = self.folder / file.name
        if path.is_symlink() or not path.is_file():
            raise FormatError(f"{self.name}: {file.name} did not come; pull again")
        with disk_errors(path):
            size = path.stat().st_size
            found: dict[str, object] = {"size": size, "SHA-256": None, "git hash": None}
            if file.sha256 is not None:
                found["SHA-256"] = self._digest(path, hashlib.sha256())
            if file.git_sha1 is not None:
                start = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
                found["git hash"] = self._digest(path, start)
        said: dict[str, object] = {
            "size": file.size,
            "SHA-256": file.sha256,
            "git hash": file.git_sha1,
        }
        for what, value in said.items():
            if value is not None and value != found[what]:
                path.unlink()
                raise FormatError(
                    f"{self.name}: {file.name} has {what} {found[what]}, the hub says {value}; it "
                    "was damaged on its way or changed: pull again"
                )

    def _digest(self, path: Path, digest: Any) -> str:
        from tqdm import tqdm

        size = path.stat().st_size
        is_shown = self.progress and size > 100 * _CHUNK
        bar = tqdm(
            total=size, desc=f"check {path.name}", unit="B", unit_scale=True, disable=not is_shown
        )
        with path.open("rb") as file, bar:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                bar.update(len(chunk))
        return str(digest.hexdigest())

    @contextmanager
    def _bars(self) -> Iterator[None]:
        """Show the library's bars, or not."""
        utils = self._library.utils
        if self.progress or utils.are_progress_bars_disabled():
            yield
            return
        utils.disable_progress_bars()
        try:
            yield
        finally:
            utils.enable_progress_bars()

    @contextmanager
    def _errors(self, revision: str | None) -> Iterator[None]:
        """Say what the library's errors mean here."""
        utils, name = self._library.utils, self.name
        token = "set HF_TOKEN to your token, or run: hf auth login"
        try:
            yield
        except utils.GatedRepoError as error:
            raise LatticeqError(
                f"{name} is gated: accept its conditions on its page on the hub, then {token}"
            ) from error
        except utils.RevisionNotFoundError as error:
            raise InputError(f"{name} has no revision {revision!r} on the hub") from error
        except utils.RepositoryNotFoundError as error:
            raise InputError(
                f"{name} is not on the hub, or it is private: check the name; for a private one "
                f"{token}"
            ) from error
        except Exception as error:  # HTTP, offline, disk full: the library has a class for each
            raise LatticeqError(
                f"{name} could not be downloaded to {self.folder}: {error}. What is there is kept: "
                "pull again to go on"
            ) from error


def _documents(name: str, files: Mapping[str, _File]) -> list[_File]:
    """Return the small files that are needed, or say why the model will not do."""
    if SINGLE not in files and INDEX not in files:
        raise InputError(f"{name} has no {SINGLE} and no {INDEX} on the hub{_instead(files)}")
    for needed, advice in (
        ("config.json", "it is no model for transformers"),
        ("tokenizer.json", "make one with transformers from its other tokenizer files"),
    ):
        if needed not in files:
            raise InputError(f"{name} has no {needed} on the hub: {advice}")
    wanted = _DOCUMENTS if SINGLE in files else (*_DOCUMENTS, INDEX)
    return [
        file
        for file in files.values()
        if file.name in wanted or file.name.upper().startswith(_LICENCES)
    ]


def _instead(files: Mapping[str, _File]) -> str:
    """Say what a model without safetensors weights has instead."""
    if "adapter_config.json" in files:
        return ": it is an adapter; merge it into its base model first"
    if any(file.endswith(".gguf") for file in files):
        return ": it has .gguf files; download one, and give it to latticeq quantize"
    if any(file.endswith(_PICKLES) for file in files):
        return ": it has pickled weights, which are programs and are never run here; convert them"
    return ""


def _weights(name: str, files: Mapping[str, _File], folder: Path) -> list[_File]:
    """Return the files that hold the weights; an index has come already."""
    if SINGLE in files:
        return [files[SINGLE]]
    with context(f"{name} on the hub"):
        shards = sorted(set(read_index(folder / INDEX).values()))
    for shard in shards:
        if shard not in files:
            raise FormatError(f"{name} has no {shard} on the hub, which its {INDEX} names")
    return [files[shard] for shard in shards]


def _check_room(name: str, folder: Path, files: Iterable[_File]) -> None:
    """Refuse early what the disk cannot hold."""
    with disk_errors(folder):
        # What came before an interruption may be under a hidden name; it is counted by its size.
        here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder).free
    needed = sum(file.size or 0 for file in files) - here + _SPARE_BYTES
    if free < needed:
        raise LatticeqError(
            f"{folder}: {free / 1e9:.2f} GB are free, {name} needs {needed / 1e9:.2f} GB; free "
            "some space or set LATTICEQ_CACHE_DIR to a folder on another disk"
        )


def _tidy(folder: Path, names: set[str]) -> None:
    """Delete all but the named files: the library's notes, and what another commit had."""
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
