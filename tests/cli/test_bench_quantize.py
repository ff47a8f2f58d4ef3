"""``bench quantize``: its figures add up, and what cannot be measured is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from latticeq.cli.bench_quantize import SHAPES
from latticeq.gpu.device import missing
from latticeq.model.llama import BLOCK_LINEARS
from tests.tiny_model import latticeq


@pytest.mark.parametrize("words", [("ldlq",), ("qa-ldlq", "--shaping", "d8", "--k", 8)])
def test_the_figures_add_up(words: tuple[object, ...]) -> None:
    done = latticeq("bench", "quantize", "--shape", "tiny", "--check", "--feedback", *words)
    assert done.code == 0, done.err
    result, shape = done.result, SHAPES["tiny"]
    assert result["layers"] == shape.layers == 2
    assert [row["name"] for row in result["rows"]] == list(BLOCK_LINEARS)
    assert sum(row["rows"] * row["columns"] for row in result["rows"]) * 2 == result["weights"]
    assert sum(row["lowest"] for row in result["rows"]) * 2 <= result["seconds"]
    assert 0 < result["first_layer_s"] <= result["seconds"]
    assert result["weights_s"] == pytest.approx(result["weights"] / result["seconds"], rel=1e-2)
    assert result["device"] == "the CPU"
    assert result["differing_digits"] == 0 < result["checked_digits"]
    for row in result["rows"]:
        assert 0 < row["lowest"] <= row["seconds"] <= row["highest"]
        size = row["rows"] * row["columns"]
        assert row["weights_s"] == pytest.approx(size / row["seconds"])
        assert 0 < row["proxy_loss"] < row["proxy_loss_plain"] < 1
        assert row["name"] in done.err
    assert "0 of 2048 digits differ" in done.err


def test_shapes_are_those_of_the_models() -> None:
    """Llama 3 8B has 6.98 billion weights in its blocks, SmolLM2 135M 106 million."""
    for name, weights in (("8b", 6_979_321_856), ("135m", 106_168_320)):
        shape = SHAPES[name]
        sizes = [width * rows for width, names in shape.stages() for rows in names.values()]
        assert shape.layers * sum(sizes) == weights


@pytest.mark.parametrize("words", [("--layers", 0), ("--shape", "70b"), ("--device", "tpu")])
def test_what_cannot_be_measured_is_refused(words: tuple[object, ...]) -> None:
    done = latticeq("bench", "quantize", "--shape", "tiny", *words)
    assert (done.code, done.out) == (2, "")


@pytest.mark.skipif(missing() is None, reason="there is a GPU")
def test_without_a_gpu_the_extra_is_named(source: Path, tmp_path: Path) -> None:
    for words in (("bench", "quantize"), ("quantize", source, tmp_path / "out")):
        done = latticeq(*words, "--device", "gpu")
        assert (done.code, done.out) == (1, "")
        assert "latticeq[gpu]" in done.err
    assert list(tmp_path.iterdir()) == []
