"""A tiny model, and what the command line makes of it, once for all tests of the verbs."""

from pathlib import Path

import pytest

from tests.tiny_model import Outcome, latticeq, write_byte_model

TEXT = "The quick brown fox jumps over the lazy dog; 日本語 too. " * 20


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text file of more than 1000 bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a float model folder, not to be changed."""
    return write_byte_model(tmp_path_factory.mktemp("float") / "model")


@pytest.fixture(scope="session")
def quantized(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Return the outcome of quantizing `source`; its result's "out" is not to be changed."""
    out = tmp_path_factory.mktemp("packed") / "model"
    words = ("--calibration", text, "--calibration-tokens", 512)
    return latticeq("quantize", source, out, *words)


@pytest.fixture(scope="session")
def packed(quantized: Outcome) -> Path:
    """Return the quantized folder, not to be changed."""
    assert quantized.code == 0, quantized.err
    return Path(quantized.result["out"])
