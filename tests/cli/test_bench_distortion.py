"""``bench distortion``: every method in the table, its numbers, the picture, and refusals."""

import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from latticeq import NestQuant, Scalar, matmul
from latticeq.cli import bench_distortion, bench_plot
from latticeq.quantizers.limits import distortion_limit, product_limit
from tests.tiny_model import Outcome, latticeq

SIZE = 256


@pytest.fixture(scope="module")
def measured() -> Outcome:
    return latticeq("bench", "distortion", "--size", SIZE)


@pytest.fixture
def two_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the table be short where it is not what is tested."""
    few = [("NestQuant", "NestQuant", NestQuant()), ("int4", "int4", Scalar("int4", group=128))]
    monkeypatch.setattr(bench_distortion, "methods", lambda: few)


def test_every_method_has_its_row(measured: Outcome) -> None:
    assert measured.code == 0, measured.err
    rows = {row["method"]: row for row in measured.result["rows"]}
    assert list(rows) == [name for name, _, _ in bench_distortion.methods()]
    for name, row in rows.items():
        rate = row["bits_per_entry"]
        assert row["mse_limit"] == distortion_limit(rate)
        assert row["product_limit"] == product_limit(rate)
        assert row["mse_ratio"] == pytest.approx(row["mse"] / row["mse_limit"])
        assert row["product_ratio"] == pytest.approx(row["product_error"] / row["product_limit"])
        assert 1 < row["mse_ratio"] < 6, name
        # The error of a product of independent matrices is that of both operands.
        assert row["product_error"] == pytest.approx(2 * row["mse"], rel=0.05), name
        assert name in measured.err
    assert "this takes about" in measured.err


def test_what_the_paper_promises_shows(measured: Outcome) -> None:
    rows = {row["method"]: row for row in measured.result["rows"]}
    assert rows["NestQuant q=16 k=4"]["mse"] < 0.0043
    ratios = {name: row["product_ratio"] for name, row in rows.items()}
    lattices = ("NestQuant", "PVQ")
    best_grid = min(ratio for name, ratio in ratios.items() if not name.startswith(lattices))
    assert ratios["NestQuant q=16 k=4"] < 0.65 * best_grid
    assert ratios["PVQ groups of 16, 4.25 bits"] < 0.7 * best_grid
    digits, radix = (rows[f"NestQuant q=14 k=4 published, {way}"] for way in ("digits", "radix"))
    assert digits["mse"] == radix["mse"]
    # Sixteen digits in 61 bits instead of 64.
    assert digits["bits_per_entry"] - radix["bits_per_entry"] == pytest.approx(3 / 16)


@pytest.mark.usefixtures("two_methods")
def test_the_numbers_are_what_they_are_said_to_be() -> None:
    first, again = (
        latticeq("bench", "distortion", "--size", 128, "--seed", 5).result["rows"] for _ in range(2)
    )
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal((128, 128), np.float32) for _ in range(2))
    for row, quantizer in zip(first, (NestQuant(), Scalar("int4", group=128)), strict=True):
        x, y = quantizer.quantize(a), quantizer.quantize(b)
        errors = a - x.dequantize(), b - y.dequantize()
        assert row["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
        lost = a.astype(np.float64) @ b.T - matmul(x, y)
        assert row["product_error"] == pytest.approx(np.mean(lost**2) / 128, rel=1e-5)
        assert row["bits_per_entry"] == 8 * x.nbytes / 128**2
    measured = ("mse", "product_error", "bits_per_entry")
    assert [[row[key] for key in measured] for row in first] == [
        [row[key] for key in measured] for row in again
    ]


def some_rows() -> list[dict[str, Any]]:
    families = list(bench_plot.MARKS)
    return [
        {
            "method": f"method {i}",
            "family": families[i % len(families)],
            "bits_per_entry": 3 + i / 10,
            "mse": 0.02 / (i // 2 + 1),
            "product_error": 0.04 / (i // 2 + 1),
        }
        for i in range(12)
    ]


@pytest.mark.usefixtures("two_methods")
def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    done = latticeq("bench", "distortion", "--size", 128, "--plot", path)
    assert done.code == 0, done.err
    assert done.result["plot"] == str(path)
    drawn = path.read_text("utf-8")
    for words in ("NestQuant", "int4", "bits an entry R", "limit Γ(R)", "limit 2^(−2R)", "over N"):
        assert f"<!-- {words}" in drawn or f"{words} -->" in drawn, words
    bench_plot.draw_distortion(some_rows(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_every_family_has_a_mark() -> None:
    assert {family for _, family, _ in bench_distortion.methods()} == set(bench_plot.MARKS)


@given(st.lists(st.floats(0, 10), max_size=20))
def test_names_do_not_cover_each_other(wanted: list[float]) -> None:
    wanted.sort()
    heights = bench_plot.spread(wanted, 0.0, 10.0, 0.4)
    assert len(heights) == len(wanted)
    assert all(0.2 - 1e-9 <= height <= 9.8 + 1e-9 for height in heights)
    assert (np.diff(heights) >= 0.4 - 1e-9).all()


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = latticeq("bench", "distortion", "--plot", tmp_path / "plot.png")
    assert (done.code, done.out) == (1, "")
    assert "pip install 'latticeq[plot]'" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", 100), "--size is 100; it must be a positive multiple of 128"),
        (("--size", 0), "--size is 0"),
        (("--size", 128, "--quick"), "give one of them"),
        (("--plot", "plot.pdf"), "must end in .png or .svg"),
        (("--plot", "no-such-folder/plot.png"), "there is no folder no-such-folder"),
        (("--prompt-tokens", 3), "unrecognized arguments: --prompt-tokens"),
    ],
)
def test_refusals(words: tuple[object, ...], message: str) -> None:
    done = latticeq("bench", "distortion", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_help_names_the_subjects() -> None:
    done = latticeq("bench", "--help")
    assert done.code == 0
    assert "'latticeq bench distortion --help'" in " ".join(done.out.split())
    done = latticeq("bench", "distortion", "--help")
    assert done.code == 0
    assert "usage: latticeq bench distortion" in done.out
    assert "--plot" in done.out
    assert "--prompt-tokens" not in done.out
