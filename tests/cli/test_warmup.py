"""``warmup``: a model's kernels, tiny models of every format, and what is said of them."""

from pathlib import Path

import numpy as np
import pytest

from latticeq.cli import warmup
from latticeq.cli.random_matrices import RANDOM_FORMATS
from latticeq.storage.checkpoint import FORMATS
from tests.tiny_model import latticeq


def test_a_model(packed: Path) -> None:
    done = latticeq("warmup", packed)
    assert done.code == 0, done.err
    (found,) = done.result["models"]
    assert found["model"] == str(packed)
    assert 0 < found["first_token_s"] <= found["seconds"] <= done.result["seconds"] + 0.01
    assert "first token of a prompt of 16" in done.err
    again = latticeq("warmup", packed)
    assert again.result["compiled"] == 0
    assert "compiled already" in again.err


def test_tiny_models_cover_every_format_and_run() -> None:
    kinds = {kind for _, kind, _ in warmup._tiny_settings() if kind}
    formats = {RANDOM_FORMATS[kind]["format"] for kind in kinds}
    assert formats | {"int8"} == set(FORMATS)
    for name, model in warmup.tiny_models():
        logits = model.prefill([1, 2, 3], model.new_cache(4))
        assert np.isfinite(logits).all(), name
        assert np.ptp(logits) > 0 or name == "float", name


def test_without_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    few = [setting for setting in warmup._tiny_settings() if setting[0] in {"float", "d8"}]
    monkeypatch.setattr(warmup, "_tiny_settings", lambda: few)
    done = latticeq("warmup")
    assert done.code == 0, done.err
    assert [found["model"] for found in done.result["models"]] == ["float", "d8"]
    assert done.result["cache_folder"]


def test_a_missing_folder(tmp_path: Path) -> None:
    done = latticeq("warmup", tmp_path / "missing")
    assert done.code == 1
    assert "config.json: is missing" in done.err
