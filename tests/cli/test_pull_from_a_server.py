"""The verb ``pull`` with the real huggingface_hub library, against a hub on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_hub import commit_of
from tests.hub_server import HubServer, hub_server
from tests.tiny_model import byte_config, write_byte_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs the extra 'hub'"
)

NAME = "org/tiny-model"
FILES = ["config.json", "hub.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_byte_model(tmp_path / "source")
    (folder / "pytorch_model.bin").write_bytes(b"never run")
    return folder


@pytest.fixture
def server(source: Path) -> Iterator[HubServer]:
    with hub_server({NAME: source}) as running:
        yield running


def run(server: HubServer, tmp_path: Path, *words: str, **settings: str) -> Any:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LATTICEQ_CACHE_DIR": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
        **settings,
    }
    command = [sys.executable, "-m", "latticeq", "pull", NAME, *words, "--json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def result(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_model_comes_whole(server: HubServer, source: Path, tmp_path: Path) -> None:
    found = result(run(server, tmp_path, HF_TOKEN="hf_mine"))
    folder = Path(found["folder"])
    assert folder == tmp_path / "cache" / "models" / "org" / "tiny-model"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for name in FILES:
        if name != "hub.json":
            assert (folder / name).read_bytes() == (source / name).read_bytes()
    origin = {"name": NAME, "revision": "main", "commit": commit_of(source)}
    assert found["origin"] == origin
    assert {authorization for *_, authorization in server.requests} == {"Bearer hf_mine"}
    assert not any("pytorch" in path for _, path, *_ in server.requests)


def test_a_broken_connection_goes_on_where_it_broke(server: HubServer, tmp_path: Path) -> None:
    # The library writes parts of ten megabytes, so there must be more than one.
    source = write_byte_model(tmp_path / "large", byte_config(vocab_size=100_000))
    server.folders[NAME] = source
    server.cut["model.safetensors"] = 15 * 2**20
    first = run(server, tmp_path)
    if first.returncode != 0:  # the library may have gone on by itself
        assert "pull again to go on" in first.stderr
        assert "Traceback" not in first.stderr
        result(run(server, tmp_path))
    gets = [request for request in server.requests if request[1].endswith("model.safetensors")]
    assert "bytes=10485760-" in [given for _, _, given, _ in gets]
    folder = tmp_path / "cache" / "models" / "org" / "tiny-model"
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (source / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "settings", "code", "message"),
    [
        (["--revision", "v9"], {}, 2, "org/tiny-model has no revision 'v9' on the hub"),
        ([], {"HF_HUB_OFFLINE": "1"}, 1, "could not be downloaded"),
        ([], {"HF_TOKEN": "hf_other"}, 1, "is gated: accept its conditions"),
    ],
)
def test_errors_are_words(
    server: HubServer,
    tmp_path: Path,
    words: list[str],
    settings: dict[str, str],
    code: int,
    message: str,
) -> None:
    server.token = "hf_mine"
    done = run(server, tmp_path, *words, **settings)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there(server: HubServer, tmp_path: Path) -> None:
    server.folders.clear()
    done = run(server, tmp_path)
    assert done.returncode == 2
    assert "org/tiny-model is not on the hub, or it is private" in done.stderr
