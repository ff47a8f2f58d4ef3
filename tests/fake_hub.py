"""A hub that serves local folders: as a module in the place of huggingface_hub."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

LARGE = (".safetensors", "tokenizer.json")
"""How the names of files end that are kept apart, under their SHA-256."""


def listing(folder: Path) -> list[dict[str, Any]]:
    """Return what the hub's API says of each file: its hash is git's, or SHA-256 of large ones."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        entry: dict[str, Any] = {"rfilename": str(path.relative_to(folder)), "size": len(data)}
        if path.name.endswith(LARGE):
            sha256 = hashlib.sha256(data).hexdigest()
            data = f"version 1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
            entry["lfs"] = {"sha256": sha256, "size": entry["size"], "pointerSize": len(data)}
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        found.append(entry)
    return found


def commit_of(folder: Path) -> str:
    """Return a commit that changes with the files."""
    return hashlib.sha1(repr(listing(folder)).encode()).hexdigest()


class RepositoryNotFoundError(Exception):
    """As the library's."""


class GatedRepoError(RepositoryNotFoundError):
    """As the library's."""


class RevisionNotFoundError(Exception):
    """As the library's."""


class FakeHub:
    """The parts of huggingface_hub that are used, over folders by model and revision.

    Attributes
    ----------
    downloads : list of (str, str)
        Files and commits that were asked for.
    before : callable
        Called with the name of a file before it is copied.
    after : callable
        Called with the path of a file after that.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders: dict[tuple[str, str], Path] = {}
        self.downloads: list[tuple[str, str]] = []
        self.before: Callable[[str], None] = lambda name: None
        self.after: Callable[[Path], None] = lambda path: None
        self.change: Callable[[list[dict[str, Any]]], None] = lambda entries: None
        self.shows_bars = True
        utils = ModuleType("huggingface_hub.utils")
        vars(utils).update(
            RepositoryNotFoundError=RepositoryNotFoundError,
            GatedRepoError=GatedRepoError,
            RevisionNotFoundError=RevisionNotFoundError,
            are_progress_bars_disabled=lambda: not self.shows_bars,
            disable_progress_bars=lambda: setattr(self, "shows_bars", False),
            enable_progress_bars=lambda: setattr(self, "shows_bars", True),
        )
        hub = ModuleType("huggingface_hub")
        api = SimpleNamespace(model_info=self.model_info)
        vars(hub).update(HfApi=lambda: api, hf_hub_download=self.hf_hub_download, utils=utils)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)

    def add(self, name: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder; return its commit."""
        self.folders[name, revision] = folder
        self.folders[name, commit_of(folder)] = folder
        return commit_of(folder)

    def folder(self, name: str, revision: str | None) -> Path:
        if (name, "main") not in self.folders:
            raise RepositoryNotFoundError(name)
        if (name, revision or "main") not in self.folders:
            raise RevisionNotFoundError(revision)
        return self.folders[name, revision or "main"]

    def model_info(self, name: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        folder = self.folder(name, revision)
        entries = listing(folder)
        self.change(entries)
        siblings = [
            SimpleNamespace(
                rfilename=entry["rfilename"],
                size=entry["size"],
                blob_id=entry["blobId"],
                lfs=SimpleNamespace(sha256=entry["lfs"]["sha256"]) if "lfs" in entry else None,
            )
            for entry in entries
        ]
        return SimpleNamespace(sha=commit_of(folder), siblings=siblings)

    def hf_hub_download(self, name: str, file: str, *, revision: str, local_dir: Path) -> str:
        self.downloads.append((file, revision))
        self.before(file)
        target = local_dir / file
        if not target.exists():  # the library goes by notes that it keeps beside the files
            (local_dir / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder(name, revision) / file, target)
            self.after(target)
        return str(target)
