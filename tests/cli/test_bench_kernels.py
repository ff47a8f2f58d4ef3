"""``bench kernels``: every format has its rows, sane numbers, the picture, and refusals."""

import sys
from pathlib import Path

import numpy as np
import pytest

from latticeq.cli.bench_kernels import FLOAT
from latticeq.cli.bench_roofline import limits_of, roof
from latticeq.cli.peaks import Peaks
from latticeq.cli.random_matrices import RANDOM_FORMATS, random_packed
from latticeq.linear.packed import make_packed_linear
from tests.tiny_model import Outcome, latticeq

SMALL = ("--shapes", "32x64,48x96", "--tokens", "3,1", "--repeats", 1, "--quick")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    path = tmp_path_factory.mktemp("plot") / "roofline.svg"
    return latticeq("bench", "kernels", *SMALL, "--plot", path)


@pytest.mark.parametrize("name", RANDOM_FORMATS)
def test_random_codes_are_codes(name: str) -> None:
    packed = random_packed(name, 33, 128, seed=3)
    packed.check()
    assert packed.shape == (33, 128)
    values = packed.unpack().dequantize()
    assert np.isfinite(values).all()
    assert values.std() > 1e-3
    x = np.random.default_rng(0).standard_normal((2, 128), np.float32)
    np.testing.assert_allclose(make_packed_linear(packed)(x), x @ values.T, atol=0.05, rtol=0.05)
    other = random_packed(name, 33, 128, seed=4).arrays
    assert any((packed.arrays[suffix] != other[suffix]).any() for suffix in other)


def test_every_format_has_its_rows(measured: Outcome) -> None:
    assert measured.code == 0, measured.err
    result = measured.result
    rows = result["rows"]
    assert [(row["format"], row["rows"], row["tokens"]) for row in rows] == [
        (name, m, tokens)
        for m in (32, 48)
        for name in (FLOAT, *RANDOM_FORMATS)
        for tokens in (1, 3)
    ]
    for row in rows:
        assert 0 < row["lowest"] <= row["seconds"] <= row["highest"]
        operations = 2 * row["rows"] * row["columns"] * row["tokens"]
        assert row["gop_s"] == pytest.approx(operations / row["seconds"] / 1e9)
        assert row["gb_s"] == pytest.approx(row["nbytes"] / row["seconds"] / 1e9)
        fraction = row["gb_s"] / result["read_bandwidth_gb_s"]
        assert row["bandwidth_fraction"] == pytest.approx(fraction)
        assert row["int8_fraction"] == pytest.approx(row["gop_s"] / result["int8_peak_gop_s"])
        if row["format"] == FLOAT:
            assert row["speedup"] == 1
            assert row["nbytes"] == 4 * row["rows"] * row["columns"]
        assert row["format"] in measured.err
    for words in ("this takes about", "of bandwidth", "48 x 96", "drawn in"):
        assert words in measured.err


def test_the_picture(measured: Outcome) -> None:
    drawn = Path(measured.result["plot"]).read_text()
    assert drawn.startswith("<?xml")
    peaks = Peaks(2, read=20e9, read_one=10e9, int8=400e9, int8_one=200e9)
    assert [roof(intensity, limits_of(peaks)) for intensity in (1, 20, 1000)] == [20, 400, 400]
    assert "2 threads: memory reads 20.0 GB/s" in peaks.words()


def test_few_formats_with_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latticeq.cli.peaks.READ_BYTES", 2**16)
    words = ("--shapes", "32x64", "--tokens", "1", "--repeats", 1, "--formats", "int8,k=8")
    done = latticeq("bench", "kernels", *words)
    assert done.code == 0, done.err
    names = [row["format"] for row in done.result["rows"]]
    assert names == [FLOAT, "cubic q=16 k=8", "d8 q=16 k=8", "int8 per row"]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (("--shapes", "64"), "'64' is not a list of shapes"),
        (("--shapes", "64x33"), "N a multiple of 32"),
        (("--tokens", "0"), "'0' is not a list of whole numbers"),
        (("--repeats", 0), "--repeats is 0"),
        (("--formats", "q8_0"), "--formats q8_0 names none of voronoi"),
        (("--plot", tmp_path / "plot.txt"), "the name must end in .png or .svg"),
    ):
        done = latticeq("bench", "kernels", *words)
        assert (done.code, done.out) == (2, ""), words
        assert message in done.err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = latticeq("bench", "kernels", "--plot", tmp_path / "plot.svg")
    assert done.code == 1
    assert "pip install 'latticeq[plot]'" in done.err


def test_matrices_run_as_bytes_are_read_as_bytes() -> None:
    outcome = latticeq("bench", "kernels", *SMALL, "--formats", "voronoi", "--runtime", "int8")
    assert outcome.code == 0, outcome.err
    for row in outcome.result["rows"]:
        width, scale = (4, 0) if row["format"] == FLOAT else (1, 4)
        assert row["nbytes"] == row["rows"] * (width * row["columns"] + scale)
    assert outcome.result["runtime"] == "int8"


def test_codewords_laid_out_anew_count_as_they_are_read() -> None:
    outcome = latticeq("bench", "kernels", *SMALL, "--formats", "voronoi")
    assert outcome.code == 0, outcome.err
    row = next(row for row in outcome.result["rows"] if row["format"] != FLOAT)
    assert row["nbytes"] == row["rows"] * (5.375 / 8 * row["columns"] + 4)
