"""Pulling from the hub: what is needed, nothing else, checked, and refused before it is large."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError, InputError, LatticeqError, MissingDependencyError
from latticeq.model import pull_hub as module
from latticeq.model.loader import load
from latticeq.model.pull import pull
from latticeq.storage.assemble import json_bytes
from tests.fake_hub import FakeHub, GatedRepoError, commit_of
from tests.model_families import FAMILIES
from tests.tiny_llama import random_weights, write_folder
from tests.tiny_model import write_byte_tokenizer

NAME = "org/tiny-model"
CONFIG = FAMILIES["qwen2"] | {"vocab_size": 256, "eos_token_id": 0}
NEEDED = ["LICENSE", "chat_template.jinja", "config.json", "generation_config.json"]
NEEDED += ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]
OTHERS = ["README.md", ".gitattributes", "pytorch_model.bin", "model.fp16.safetensors"]
OTHERS += ["consolidated.safetensors", "tokenizer.model", "onnx/model.onnx", "original/params.json"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as publishers have it: with the model, and with much besides."""
    folder = write_folder(tmp_path / "source", CONFIG, random_weights(CONFIG))
    write_byte_tokenizer(folder)
    for name in ("generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("as you like")
    for name in OTHERS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(source: Path, monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> FakeHub:
    fake = FakeHub(monkeypatch)
    fake.add(NAME, source)
    return fake


def get(**options: Any) -> Path:
    return pull(NAME, progress=False, **options)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def shard(folder: Path, parts: int = 3) -> list[str]:
    """Make shards of a folder's weights, with an index; return all their names."""
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(parts):
        file = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        names = sorted(arrays)[number::parts]
        save_file({name: arrays[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = folder / "model.safetensors.index.json"
    index.write_bytes(json_bytes({"metadata": {}, "weight_map": weight_map}))
    return sorted({*weight_map.values(), index.name})


def test_what_is_needed_comes_and_nothing_else(
    hub: FakeHub, source: Path, cache_folder: Path
) -> None:
    folder = get()
    assert folder == cache_folder / "models" / "org" / "tiny-model"
    assert everything(cache_folder / "models") == [
        f"org/tiny-model/{name}" for name in sorted([*NEEDED, "hub.json"])
    ]
    for name in NEEDED:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    commit = commit_of(source)
    origin = {"name": NAME, "revision": "main", "commit": commit}
    assert json.loads((folder / "hub.json").read_text()) == origin
    assert {revision for _, revision in hub.downloads} == {commit}
    ids = np.arange(20)
    np.testing.assert_array_equal(load(folder).logits(ids), load(source).logits(ids))


def test_the_weights_come_last(hub: FakeHub) -> None:
    get()
    assert hub.downloads[-1][0] == "model.safetensors"


def test_shards(hub: FakeHub, source: Path) -> None:
    files = shard(source)
    (source / "model-of-someone-else.safetensors").write_bytes(b"not needed")
    hub.add(NAME, source)
    folder = get()
    wanted = {*NEEDED, *files, "hub.json"} - {"model.safetensors"}
    assert set(everything(folder)) == wanted
    ids = np.arange(20)
    np.testing.assert_array_equal(load(folder).logits(ids), load(source).logits(ids))


def test_a_second_pull_asks_for_nothing(hub: FakeHub) -> None:
    first = get()
    hub.folders.clear()
    assert get() == first


def test_revisions_lie_side_by_side(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    other = shutil.copytree(source, tmp_path / "other")
    (other / "LICENSE").write_text("as you must")
    commit = hub.add(NAME, other, "refs/pr/1")
    assert (get() / "LICENSE").read_text() == "as you like"
    folder = get(revision="refs/pr/1")
    assert folder.name == "tiny-model@refs%2Fpr%2F1"
    assert (folder / "LICENSE").read_text() == "as you must"
    assert json.loads((folder / "hub.json").read_text())["commit"] == commit
    by_commit = get(revision=commit)
    assert (by_commit / "LICENSE").read_text() == "as you must"
    with pytest.raises(InputError, match="has no revision 'v9' on the hub"):
        get(revision="v9")


@pytest.mark.parametrize("revision", ["", "../x", "a/../b", "-x", "a b", "a\\b", "/a", "a/", "a\n"])
def test_what_is_no_revision(hub: FakeHub, revision: str, cache_folder: Path) -> None:
    with pytest.raises(InputError, match="revision is"):
        get(revision=revision)
    assert everything(cache_folder) == []


def test_the_wheel_has_no_revisions(cache_folder: Path) -> None:
    with pytest.raises(InputError, match="smollm2-135m-instruct has no revisions"):
        pull("smollm2-135m-instruct", revision="main")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_an_interruption_keeps_what_has_come(
    hub: FakeHub, source: Path, cache_folder: Path, file: str
) -> None:
    def interrupt(name: str) -> None:
        if name == file:
            raise KeyboardInterrupt

    hub.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        get()
    assert not (cache_folder / "models" / NAME).exists()
    arrived = [name for name, _ in hub.downloads][:-1]
    hidden = cache_folder / "models" / "org" / ".tiny-model.download"
    assert {path.name for path in hidden.iterdir() if path.is_file()} == set(arrived)
    hub.before, hub.after = lambda name: None, lambda path: copied.append(path.name)
    copied: list[str] = []
    assert everything(get()) == sorted([*NEEDED, "hub.json"])
    assert set(copied) == set(NEEDED) - set(arrived)
    assert not hidden.exists()


def test_what_an_older_commit_left_goes(hub: FakeHub, cache_folder: Path) -> None:
    hidden = cache_folder / "models" / "org" / ".tiny-model.download"
    (hidden / "sub").mkdir(parents=True)
    for name in ("model-00001-of-00002.safetensors", "sub/a", "malware.py"):
        (hidden / name).write_text("old")
    assert everything(get()) == sorted([*NEEDED, "hub.json"])


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "LICENSE"])
@pytest.mark.parametrize("way", ["cut", "longer", "flipped"])
def test_damage_on_the_way_is_found(hub: FakeHub, file: str, way: str) -> None:
    def damage(path: Path) -> None:
        if path.name == file:
            data = path.read_bytes()
            flipped = bytes([data[0] ^ 1]) + data[1:]
            path.write_bytes({"cut": data[:-1], "longer": data + b" ", "flipped": flipped}[way])

    hub.after = damage
    what = "size" if way != "flipped" else "SHA-256|git hash"
    with pytest.raises(FormatError, match=rf"{NAME}: {file} has ({what}) .*, the hub says .*again"):
        get()
    hub.after = lambda path: None
    assert everything(get()) == sorted([*NEEDED, "hub.json"])


def test_what_the_listing_does_not_say_is_not_asked(hub: FakeHub) -> None:
    def forget(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            entry.update(size=None, blobId=None)
            entry.pop("lfs", None)

    hub.change = forget
    assert everything(get()) == sorted([*NEEDED, "hub.json"])


def rewrite_config(**changes: Any) -> Callable[[Path], object]:
    return lambda source: (source / "config.json").write_text(json.dumps(CONFIG | changes))


def remove(*names: str) -> Callable[[Path], object]:
    return lambda source: [(source / name).unlink() for name in names]


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda source: (source / old).rename(source / new)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (rewrite_config(architectures=["MixtralForCausalLM"]), InputError, "'MixtralForCausalLM'"),
        (rewrite_config(rope_scaling={"type": "yarn", "factor": 4}), InputError, "'yarn'"),
        (
            rewrite_config(quantization_config={"quant_method": "gptq"}),
            FormatError,
            "quantized by 'gptq'",
        ),
        (remove("config.json"), InputError, r"has no config\.json on the hub"),
        (remove("tokenizer.json"), InputError, r"has no tokenizer\.json on the hub: make one"),
        (remove("model.safetensors"), InputError, r"no model\.safetensors .* pickled weights"),
        (
            remove("model.safetensors", "pytorch_model.bin"),
            InputError,
            r"no model\.safetensors\.index\.json on the hub$",
        ),
        (rename("model.safetensors", "model.gguf"), InputError, r"it has \.gguf files; download"),
        (
            rename("model.safetensors", "adapter_config.json"),
            InputError,
            "it is an adapter; merge it",
        ),
    ],
)
def test_what_will_not_do_is_refused_before_its_weights_come(
    hub: FakeHub,
    source: Path,
    cache_folder: Path,
    change: Callable[[Path], object],
    kind: type[LatticeqError],
    words: str,
) -> None:
    change(source)
    hub.add(NAME, source)
    with pytest.raises(kind, match=words) as caught:
        get()
    assert NAME in str(caught.value)
    assert not [name for name, _ in hub.downloads if name.endswith(".safetensors")]
    assert everything(cache_folder) == []


@pytest.mark.parametrize("file", ["../config.json", "/etc/passwd", "a/b.safetensors", "c:x", ""])
def test_an_index_does_not_leave_the_folder(hub: FakeHub, source: Path, file: str) -> None:
    shard(source)
    index = {"weight_map": {"model.norm.weight": file}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add(NAME, source)
    with pytest.raises(FormatError, match="which is not a shard's file name"):
        get()
    assert not [name for name, _ in hub.downloads if name.endswith(".safetensors")]


def test_a_shard_that_the_hub_has_not(hub: FakeHub, source: Path) -> None:
    files = shard(source)
    (source / files[1]).unlink()
    hub.add(NAME, source)
    with pytest.raises(FormatError, match=rf"has no {files[1]} on the hub, which its .* names"):
        get()


def test_names_of_the_hub_do_not_leave_the_folder(hub: FakeHub, cache_folder: Path) -> None:
    def lie(entries: list[dict[str, Any]]) -> None:
        for name in ("../LICENSE", "a/../../LICENSE", "LICENSE\\..\\x", "/LICENSE", ".LICENSE"):
            entries.append({"rfilename": name, "size": 1, "blobId": "0" * 40})
        entries.append({"rfilename": None, "size": 1, "blobId": "0" * 40})

    hub.change = lie
    assert everything(get()) == sorted([*NEEDED, "hub.json"])
    assert all(name in NEEDED for name, _ in hub.downloads)


def test_weights_of_another_model_are_found(hub: FakeHub, source: Path, cache_folder: Path) -> None:
    rewrite_config(intermediate_size=96)(source)
    hub.add(NAME, source)
    with pytest.raises(FormatError, match=r"has shape .*; config\.json makes it"):
        get()
    assert not (cache_folder / "models" / NAME).exists()


def test_too_little_space_is_found_before_the_weights_come(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(LatticeqError, match=r"0\.00 GB are free.*LATTICEQ_CACHE_DIR"):
        get()
    assert "model.safetensors" not in dict(hub.downloads)


def test_a_model_that_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(
        InputError, match=r"org/other is not on the hub, or it is private.*HF_TOKEN"
    ):
        pull("org/other")


def test_a_gated_model(hub: FakeHub) -> None:
    def refuse(name: str) -> None:
        raise GatedRepoError("403")

    hub.before = refuse
    with pytest.raises(LatticeqError, match=r"is gated: accept .* set HF_TOKEN .* hf auth login"):
        get()


def test_a_network_that_is_away(hub: FakeHub, cache_folder: Path) -> None:
    def refuse(name: str) -> None:
        if name == "model.safetensors":
            raise ConnectionError("no route")

    hub.before = refuse
    with pytest.raises(LatticeqError, match=r"could not be downloaded.*no route.*pull again"):
        get()
    assert not (cache_folder / "models" / NAME).exists()


def test_a_commit_that_is_none(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fake_hub.commit_of", lambda folder: "../main")
    with pytest.raises(FormatError, match=r"gives '\.\./main' for a commit"):
        get()


def test_bars_are_as_before(hub: FakeHub) -> None:
    seen = []
    hub.after = lambda path: seen.append(hub.shows_bars)
    get()
    assert not any(seen)
    assert hub.shows_bars
    pull(NAME, folder=get().with_name("shown"))
    assert seen[-1]


def test_another_pull_is_faster(hub: FakeHub, cache_folder: Path) -> None:
    def other(name: str) -> None:
        if name == "model.safetensors":
            hub.before = lambda name: None
            get()

    hub.before = other
    assert everything(get()) == sorted([*NEEDED, "hub.json"])


def test_without_the_extra(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'latticeq\[hub\]'"):
        pull("org/model")
    assert everything(cache_folder) == []
