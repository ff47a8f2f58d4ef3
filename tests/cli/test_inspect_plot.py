"""``inspect --plot``: figures from the packed bytes and the report, drawn, and damaged reports."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.cli.contents import read_config, stored_tensors
from latticeq.cli.layer_report import REPORT
from latticeq.cli.weight_law import BINS, WIDEST, weight_laws
from latticeq.model.loader import load
from latticeq.storage.checkpoint import read_packed
from latticeq.storage.safetensors import TensorFolder
from tests.tiny_model import Outcome, latticeq

WIDTH = 2 * WIDEST / BINS
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def drawn(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Return the outcome of drawing a quantized folder."""
    pytest.importorskip("matplotlib")
    path = tmp_path_factory.mktemp("plot") / "model.svg"
    done = latticeq("inspect", packed, "--plot", path)
    assert done.code == 0, done.err
    return done


def test_the_picture_has_every_panel(drawn: Outcome) -> None:
    picture = Path(drawn.result["plot"]).read_text("utf-8")
    for words in (
        "relative error of the weights",
        "share of the output lost on the calibration text",
        "blocks that use each scale, smallest first",
        "mlp.down_proj, 2 matrices",
        "as they are coded: rotated",
        "normal law",
    ):
        assert f"<!-- {words}" in picture, words
    assert f"drawn in {drawn.result['plot']}" in drawn.err


def test_layers_are_those_of_the_quantize_job(drawn: Outcome, quantized: Outcome) -> None:
    made = {row["name"]: row for row in quantized.result["layers"]}
    assert len(drawn.result["layers"]) == len(made) == 14
    for row in drawn.result["layers"]:
        assert row == {field: made[row["name"]][field] for field in row}
        assert 0 < row["proxy_loss"] < row["proxy_loss_rtn"] < 1


def test_weights_are_those_that_the_bytes_stand_for(drawn: Outcome, packed: Path) -> None:
    entries = json.loads((packed / "config.json").read_text("utf-8"))["quantization_config"]
    rows = {row["kind"]: row for row in drawn.result["weights"]}
    assert len(rows) == 7
    for row in rows.values():
        for field in ("density", "density_coded"):
            assert sum(row[field]) * WIDTH == pytest.approx(1)
    names = [UP, UP.replace(".0.", ".1.")]
    with TensorFolder(packed) as folder:
        matrices = [read_packed(folder, name, entries["tensors"][name]).unpack() for name in names]
    values = np.concatenate([matrix.dequantize().astype(np.float64) for matrix in matrices])
    values /= np.sqrt(np.square(values).mean(axis=1, keepdims=True))
    row = rows["layers.*.mlp.up_proj"]
    assert (row["matrices"], row["weights"]) == (2, values.size)
    assert row["largest"] == pytest.approx(np.abs(values).max(), rel=1e-5)
    counts, _ = np.histogram(values, BINS, (-WIDEST, WIDEST))
    assert np.abs(np.array(row["density"]) * WIDTH * values.size - counts).sum() <= 4


def test_a_rotation_takes_heavy_tails_away(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = tmp_path / "model"
    shutil.copytree(source, model)
    from safetensors.numpy import load_file, save_file

    arrays = load_file(model / "model.safetensors")
    arrays[UP][:, 5] *= 30
    save_file(arrays, model / "model.safetensors")
    done = latticeq("inspect", model, "--plot", tmp_path / "model.png")
    assert done.code == 0, done.err
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")
    assert done.result["layers"] == []
    assert "quantization_report" not in done.err  # a float folder has none
    row = next(row for row in done.result["weights"] if row["kind"].endswith("up_proj"))
    assert row["largest"] > 6
    assert row["largest_coded"] < 4
    arrays[UP][3, 3] = np.nan
    save_file(arrays, model / "model.safetensors")
    done = latticeq("inspect", model, "--plot", tmp_path / "model.png")
    assert (done.code, done.out) == (2, "")
    assert f"tensor {UP} holds NaN or infinity" in done.err


def test_of_a_large_model_not_every_layer_is_read(packed: Path) -> None:
    config = read_config(packed)
    entries = config["quantization_config"]["tensors"]
    with TensorFolder(packed) as folder:
        tensors = stored_tensors(folder, config)
        half = weight_laws(folder, tensors, entries, most_weights=20_000)
        few = weight_laws(folder, tensors, entries, most_weights=1)
    numbers = sum(np.prod(tensor.shape) for tensor in tensors if tensor.is_linear)
    assert 20_000 < numbers <= 40_000
    assert {law.matrices for law in half} == {law.matrices for law in few} == {1}


@pytest.mark.parametrize("method", ["pvq", "int4"])
def test_other_formats(source: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("matplotlib")
    out, words = tmp_path / "out", ("--method", method, "--group", 16, "--feedback", "none")
    assert latticeq("quantize", source, out, *words).code == 0
    done = latticeq("inspect", out, "--plot", tmp_path / "out.svg")
    assert done.code == 0, done.err
    assert len(done.result["weights"]) == 7
    assert all(row["proxy_loss"] is None for row in done.result["layers"])
    picture = (tmp_path / "out.svg").read_text("utf-8")
    assert "relative error of the weights" in picture
    assert "share of the output lost" not in picture
    shares = done.result["scale_shares"]
    assert ("blocks that use each scale" in picture) == bool(shares) == (method == "pvq")
    if method == "pvq":
        gains = [matrix.gain_index for matrix in _unpacked(out, "mlp.up_proj")]
        levels = len(shares["layers.*.mlp.up_proj"])
        counts = np.bincount(np.concatenate(gains).ravel(), minlength=levels)
        assert shares["layers.*.mlp.up_proj"] == pytest.approx(counts / counts.sum())
        assert "an entropy code" not in done.err


def _unpacked(folder: Path, kind: str) -> list[Any]:
    entries = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    with TensorFolder(folder) as opened:
        return [
            read_packed(opened, name, entry).unpack()
            for name, entry in entries["tensors"].items()
            if kind in name
        ]


def test_layers_may_have_different_numbers_of_scales(source: Path, tmp_path: Path) -> None:
    parts = []
    for k in (2, 4):
        out = tmp_path / str(k)
        assert latticeq("quantize", source, out, "--k", k, "--feedback", "none").code == 0
        parts.append(out)
    from safetensors.numpy import load_file, save_file

    mixed, other = (load_file(out / "model.safetensors") for out in parts)
    mixed |= {name: array for name, array in other.items() if ".layers.1." in name}
    save_file(mixed, parts[0] / "model.safetensors")
    config, from_other = (json.loads((out / "config.json").read_text("utf-8")) for out in parts)
    entries = config["quantization_config"]["tensors"]
    more = from_other["quantization_config"]["tensors"]
    entries |= {name: entry for name, entry in more.items() if ".layers.1." in name}
    (parts[0] / "config.json").write_text(json.dumps(config), "utf-8")
    assert load(parts[0]).bits_per_weight > 4
    done = latticeq("inspect", parts[0])
    assert done.code == 0, done.err
    assert all(len(found) == 4 for found in done.result["scale_shares"].values())


def _without(rows: list[Any]) -> Any:
    del rows[0]["relative_error"]
    return rows


DAMAGE: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "object": (lambda rows: {"rows": rows}, "is not a JSON list"),
    "row": (lambda rows: [*rows, 3], "holds 3, which is not a JSON object"),
    "name": (lambda rows: [{**rows[0], "name": "w"}], "reports of 'w', which the folder does not"),
    "nan": (
        lambda rows: [{**rows[0], "proxy_loss": float("nan")}],
        f"matrix {UP.replace('mlp.up', 'self_attn.q')}: proxy_loss is nan; it must be a finite",
    ),
    "huge": (lambda rows: [{**rows[0], "proxy_loss": 10**400}], "it must be a finite number"),
    "flag": (lambda rows: [{**rows[0], "relative_error": True}], "relative_error is True"),
    "missing": (_without, "relative_error is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_report_is_refused(packed: Path, tmp_path: Path, case: str) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "folder"
    shutil.copytree(packed, folder)
    change, message = DAMAGE[case]
    rows = json.loads((folder / REPORT).read_text("utf-8"))
    (folder / REPORT).write_text(json.dumps(change(rows)), "utf-8")
    done = latticeq("inspect", folder, "--plot", tmp_path / "out.svg")
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert str(folder / REPORT) in done.err
    assert not (tmp_path / "out.svg").exists()


def test_a_missing_report_is_said(packed: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "folder"
    shutil.copytree(packed, folder)
    (folder / REPORT).write_text("[" * 100_000, "utf-8")
    done = latticeq("inspect", folder, "--plot", tmp_path / "out.svg")
    assert (done.code, done.out) == (1, "")
    assert "cannot be read as JSON" in done.err
    (folder / REPORT).unlink()
    done = latticeq("inspect", folder, "--plot", tmp_path / "out.svg")
    assert done.code == 0, done.err
    assert f"there is no {REPORT} in {folder}" in done.err
    assert done.result["layers"] == []


def test_without_matplotlib(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = latticeq("inspect", packed, "--plot", tmp_path / "plot.png")
    assert (done.code, done.out) == (1, "")
    assert "pip install 'latticeq[plot]'" in done.err
    done = latticeq("inspect", packed, "--plot", tmp_path / "plot.pdf")
    assert (done.code, done.out) == (2, "")
    assert "must end in .png or .svg" in done.err
