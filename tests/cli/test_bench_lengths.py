"""``bench lengths``: the law of lengths on weights that keep it, and on weights that do not."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta, kstest

from latticeq.cli.bench_lengths import BINS, WIDEST, distance, shares
from tests.tiny_llama import random_weights, write_folder
from tests.tiny_model import byte_config, latticeq

CONFIG = byte_config(hidden_size=48, intermediate_size=80)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose o_proj has all its energy in a few columns."""
    folder = tmp_path_factory.mktemp("lengths") / "model"
    weights = random_weights(CONFIG)
    for name, values in weights.items():
        if "o_proj" in name:
            values[:, 5:] *= 1e-3
    write_folder(folder, CONFIG, weights)
    return folder


def test_the_distance_is_that_of_kolmogorov_and_smirnov(rng: np.random.Generator) -> None:
    values = shares(rng.normal(size=(200, 96)), 16)
    assert values.shape == (1200,)
    wanted = kstest(values, beta(8, 40).cdf).statistic
    assert distance(values, 16, 96) == pytest.approx(wanted, rel=1e-12)
    assert wanted < 0.05
    assert shares(np.eye(2, 32), 16).tolist() == [1, 0, 1, 0]
    assert shares(np.zeros((2, 32)), 16).size == 0


def test_every_kind_is_measured(source: Path) -> None:
    done = latticeq("bench", "lengths", source, "--group", "8")
    assert done.code == 0, done.err
    rows = {row["kind"]: row for row in done.result["rows"]}
    assert len(rows) == 7
    for kind, row in rows.items():
        assert kind in done.err
        assert row["columns"] == (80 if kind == "mlp.down_proj" else 48)
        assert sum(row["density"]) * WIDEST / BINS == pytest.approx(1, abs=0.05)
    spread = rows["self_attn.o_proj"]
    assert spread["distance_unrotated"] > 0.5
    assert spread["distance"] < 0.6 * spread["distance_unrotated"]
    assert rows["mlp.up_proj"]["distance_unrotated"] < 0.1


def test_the_picture_is_drawn(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = latticeq("bench", "lengths", source, "--plot", tmp_path / "lengths.svg")
    assert done.code == 0, done.err
    assert "mlp.down_proj, rows of 80" in (tmp_path / "lengths.svg").read_text("utf-8")


def test_what_cannot_be_measured_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in ("7", "48", "1"):
        done = latticeq("bench", "lengths", source, "--group", group)
        assert (done.code, done.out) == (2, "")
        assert f"--group is {group}; rows of self_attn.q_proj have 48 weights" in done.err
    done = latticeq("bench", "lengths", tmp_path)
    assert done.code == 1
    assert "config.json: is missing" in done.err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = latticeq("bench", "lengths", source, "--plot", tmp_path / "lengths.svg")
    assert (done.code, done.out) == (1, "")
    assert "latticeq[plot]" in done.err
