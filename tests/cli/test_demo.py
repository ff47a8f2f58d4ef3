"""The verb ``demo``, with a tiny model in place of the one that is pulled."""

import shutil
from functools import partial
from pathlib import Path

import pytest

from latticeq.cli import demo
from latticeq.errors import LatticeqError
from latticeq.model.options import Options
from tests.tiny_model import byte_config, latticeq, write_byte_model


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache folder with a model that has room for the demo's windows."""
    cache = tmp_path_factory.mktemp("cache")
    config = byte_config(num_hidden_layers=1, max_position_embeddings=4096)
    write_byte_model(cache / "models" / demo.MODEL, config)
    return cache


@pytest.fixture
def cache(pulled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("latticeq.model.pull.pull", lambda name: pulled / "models" / name)
    monkeypatch.setattr("latticeq.model.builtin_text.heldout_text", lambda: "some text " * 500)
    few = partial(Options, calibration_tokens=4096)
    monkeypatch.setattr("latticeq.model.options.Options", few)
    return pulled


def test_all_steps_and_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = latticeq("demo")
    assert first.code == 0, first.err
    result = first.result
    headings = [line for line in first.err.splitlines() if line[1:3] == "/6"]
    assert [line[0] for line in headings] == list("123456")
    out = Path(result["out"])
    assert "for all of it, from a measurement just now" in first.err
    assert f"try: latticeq chat {out}" in first.err
    assert sorted(path.name for path in (cache / "models").iterdir()) == [
        demo.MODEL,
        out.name,
        f"{out.name}.perplexity.json",
    ]
    assert result["quantize"]["reused"] is False
    scores = result["perplexity"]
    gap = scores["packed"]["perplexity"] - scores["float32"]["perplexity"]
    assert result["perplexity_gap"] == pytest.approx(gap)
    assert scores["float32"]["windows"] == 2
    assert all(speed["decode_tokens_per_s"] > 0 for speed in result["speed"].values())
    assert result["nbytes"] < result["source_nbytes"]
    assert first.out.startswith(result["text"])

    monkeypatch.setattr("latticeq.model.quantize.quantize", None)  # not called again
    monkeypatch.setattr("latticeq.model.perplexity.perplexity", None)
    second = latticeq("demo")
    assert second.code == 0, second.err
    assert second.result["quantize"] == {"reused": True}
    assert second.result["perplexity"] == scores
    assert second.result["text"] == result["text"]


def test_a_damaged_model_is_made_again(cache: Path) -> None:
    out = cache / "models" / f"{demo.MODEL}-nestquant"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / "config.json").write_text("{}")
    done = latticeq("demo")
    assert done.code == 0, done.err
    assert done.result["quantize"]["reused"] is False


def test_a_failed_pull_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(_: str) -> Path:
        raise LatticeqError("the index is away")

    monkeypatch.setattr("latticeq.model.pull.pull", pull)
    done = latticeq("demo")
    assert (done.code, done.out) == (1, "")
    assert "the index is away" in done.err
