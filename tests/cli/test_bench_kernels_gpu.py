"""``bench kernels --device gpu``: what is refused, the table, and the measurement where it runs."""

from __future__ import annotations

import argparse

import pytest

from latticeq.cli import bench_kernels_gpu
from latticeq.cli.bench_kernels_gpu import FLOAT, ROTATION, chosen_device, report
from latticeq.cli.product_row import ProductRow
from latticeq.gpu.device import missing
from tests.tiny_model import latticeq


@pytest.mark.parametrize("text", ["tpu", "gpu:", "gpu:x", "gpux", "cuda", "cpu:1"])
def test_what_is_no_device_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="use cpu, gpu or gpu:N"):
        chosen_device(text)


@pytest.mark.skipif(missing() is None, reason="there is a GPU")
def test_without_a_gpu_the_extra_is_named() -> None:
    done = latticeq("bench", "kernels", "--device", "gpu", "--quick")
    assert (done.code, done.out) == (1, "")
    assert "latticeq[gpu]" in done.err


def row(name: str, tokens: int, seconds: float) -> ProductRow:
    nbytes = 31_000_000
    rate = nbytes / seconds
    times = (seconds, 0.9 * seconds, 1.1 * seconds, 9)
    return ProductRow(
        name, 4096, 14336, tokens, nbytes, *times, rate / 1e9, 1.0, rate / 3e12, 45e-6 / seconds
    )


def test_the_table_says_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    report([row(FLOAT, 1, 45e-6), row(ROTATION, 1, 5e-6), row("cubic q=16 k=4", 1, 13.5e-6)])
    lines = capsys.readouterr().err.splitlines()
    assert "4096 x 14336" in lines
    cubic = next(line for line in lines if line.startswith("cubic"))
    for word in ("31.0 MB", "13.5 (12.2-14.8)", "2296", "77%", "3.33"):
        assert word in cubic
    rotation = next(line for line in lines if line.startswith(ROTATION))
    assert "MB" not in rotation
    assert "%" not in rotation


@pytest.mark.gpu
@pytest.mark.skipif(missing() is not None, reason="there is no GPU")
def test_every_format_has_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels_gpu, "CACHES", 0)  # few copies: the times are no matter here
    words = ("--shapes", "512x1024", "--tokens", "1,16,200", "--repeats", 2)
    done = latticeq("bench", "kernels", "--device", "gpu", *words)
    assert done.code == 0, done.err
    rows = done.result["rows"]
    formats = list(dict.fromkeys(found["format"] for found in rows))
    assert formats[:2] == [FLOAT, ROTATION]
    assert {"voronoi q=16 k=4", "cubic q=16 k=4", "int8 per row"} <= set(formats)
    for found in rows:
        assert 0 < found["lowest"] <= found["seconds"] <= found["highest"]
        assert found["gb_s"] == pytest.approx(found["nbytes"] / found["seconds"] / 1e9)
        fraction = found["gb_s"] / done.result["copy_bandwidth_gb_s"]
        assert found["bandwidth_fraction"] == pytest.approx(fraction)
