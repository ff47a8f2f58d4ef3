"""Memory does not grow with the number of layers: all but one block stays in the file."""

import sys
from pathlib import Path

import pytest

from tests.anonymous_memory import SMAPS, Measured, measure
from tests.bench.streaming import TEXT, write_large_model

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
LAYER = 256 * 256 * 3 + 3 * 256 * 512  # weights

pytestmark = pytest.mark.skipif(not SMAPS.exists(), reason="needs Linux's smaps_rollup")


def quantized(folder: Path, layers: int, *words: str) -> Measured:
    source = folder / "source"
    config = write_large_model(source, 2 * LAYER * layers + 2 * 2 * 256 * 256 + 20_000, **SHAPE)
    assert config["num_hidden_layers"] == layers
    (folder / "text.txt").write_text(TEXT * 20, "utf-8")
    command = [sys.executable, "-m", "latticeq", "quantize", str(source), str(folder / "out")]
    return measure([*command, "--calibration", str(folder / "text.txt"), *words])


def test_memory_does_not_grow_with_layers(tmp_path: Path) -> None:
    words = ["--feedback", "ldlq", "--calibration-tokens", "64"]
    few, many = (quantized(tmp_path / str(n), n, *words) for n in (3, 12))
    assert (few.code, many.code) == (0, 0), few.error + many.error
    # Nine layers more have 21 MB in float32, and 11 MB in the bfloat16 of the file.
    assert many.anonymous < few.anonymous + 6 * 2**20
    assert few.anonymous > 30 * 2**20


def test_a_process_that_says_much_comes_to_its_end() -> None:
    done = measure([sys.executable, "-c", "import sys; sys.stderr.write('x' * 2**20)"])
    assert (done.code, len(done.error)) == (0, 2**20)
