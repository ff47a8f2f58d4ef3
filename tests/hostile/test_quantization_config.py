"""A quantization_config that lies about what runs: an error that names the folder and the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from latticeq.errors import LatticeqError
from latticeq.model.loader import load
from latticeq.model.quantize import quantize
from tests.tiny_model import byte_config, write_byte_model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    source = write_byte_model(folder / "source", byte_config(num_hidden_layers=1))
    small = {"calibration_tokens": 64, "calibration_context": 32}
    quantize(source, folder / "out", regime="w+kv+a", feedback="none", **small)
    return folder / "out"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("activations", 7),
        ("activations", {"method": "nestquant", "q": None, "betas": [1.0], "cell": "voronoi"}),
        ("activations", {"method": "nestquant", "q": 16, "betas": [1e300], "cell": "voronoi"}),
        ("activations", {"method": "pvq", "group": 8, "pulses": 3, "levels": [0.0, 1e300]}),
        ("kv_cache", []),
        ("kv_cache", {"keys": 1}),
        ("tensors", {"model.norm.weight": {"format": "int8"}}),
    ],
)
def test_errors_name_the_folder_and_the_field(packed: Path, field: str, value: Any) -> None:
    path = packed / "config.json"
    whole = path.read_text("utf-8")
    config = json.loads(whole)
    config["quantization_config"][field] = value
    path.write_text(json.dumps(config), "utf-8")
    try:
        with pytest.raises(LatticeqError) as caught:
            load(packed)
    finally:
        path.write_text(whole, "utf-8")
    message = str(caught.value)
    assert message.startswith(str(packed))
    assert f"quantization_config.{field}" in message
    assert load(packed).config.vocab_size == 256
