"""The choice of ``--runtime``: by format, cores, memory and what else is coded."""

from pathlib import Path
from typing import Any

import pytest

from latticeq.cli import machine
from latticeq.cli.runtime import chosen_runtime

HERE = Path("model")


def config(format_: str, k: int = 8, **more: Any) -> dict[str, Any]:
    """Return a config of one linear of 64 x 64 weights, of k scales, and embeddings."""
    tensors = {
        "model.embed_tokens.weight": {"format": "int8", "shape": [99, 64]},
        "model.layers.0.mlp.up_proj.weight": {"format": format_, "shape": [64, 64], "k": k},
    }
    return {"quantization_config": {"tensors": tensors, **more}}


@pytest.mark.parametrize(
    ("format_", "cores", "runtime"),
    [
        ("voronoi", 2, "int8"),
        ("voronoi", 8, "packed"),
        ("d8", 2, "int8"),
        ("d8", 4, "packed"),
        ("cubic", 1, "packed"),
        ("int4", 64, "int8"),
    ],
)
def test_auto_goes_by_format_and_cores(
    format_: str,
    cores: int,
    runtime: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: cores)
    assert chosen_runtime(HERE, "auto", config(format_)) == runtime
    assert ("runtime int8" in capsys.readouterr().err) == (runtime == "int8")


def test_voronoi_that_can_be_unfolded_runs_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: 1)
    assert chosen_runtime(HERE, "auto", config("voronoi", k=4)) == "packed"


def test_auto_minds_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 2 * 64 * 64 - 1)
    assert chosen_runtime(HERE, "auto", config("int4")) == "packed"
    assert "free memory" in capsys.readouterr().err


def test_a_choice_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    for choice in ("packed", "int8", "float32"):
        assert chosen_runtime(HERE, choice, config("voronoi")) == choice
    assert chosen_runtime(HERE, "int8", {}) == "packed"  # a float model has no packed weights
    assert capsys.readouterr().err == ""


def test_weights_that_meet_coded_inputs_run_as_stored(capsys: pytest.CaptureFixture[str]) -> None:
    coded = config("voronoi", activations={"method": "nestquant"})
    assert chosen_runtime(HERE, "auto", coded) == "packed"
    assert capsys.readouterr().err == ""
    assert chosen_runtime(HERE, "int8", coded) == "packed"
    assert "runtime packed" in capsys.readouterr().err
    assert chosen_runtime(HERE, "float32", coded) == "float32"
