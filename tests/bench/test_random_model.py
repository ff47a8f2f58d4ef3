"""Models of random codewords load and run; llama.cpp's of random weights have the same shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latticeq.model.loader import load
from latticeq.model.options import REGIMES
from latticeq.storage.gguf import GGUFFile
from tests.bench.random_gguf import KINDS, peer_name, write_random_gguf
from tests.bench.random_model import CELLS, write_random_model
from tests.tiny_llama import CONFIGS, random_ids, tensor_shapes
from tests.tiny_model import latticeq

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}


@pytest.mark.parametrize("regime", REGIMES)
def test_it_runs(regime: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"] | SMALL
    write_random_model(tmp_path / "model", config, CELLS[0], regime)
    model = load(tmp_path / "model")
    logits = model.logits(random_ids(config, 5))
    assert logits.shape == (5, config["vocab_size"])
    assert np.isfinite(logits).all()
    shown = latticeq("inspect", tmp_path / "model").result
    assert shown["regime"] == regime


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpps_has_the_same_tensors(kind: str, tmp_path: Path) -> None:
    config = CONFIGS["llama"] | SMALL | {"hidden_size": 256, "head_dim": 64}
    write_random_gguf(tmp_path / "model.gguf", config, kind)
    found = GGUFFile(tmp_path / "model.gguf")
    wanted = {peer_name(name): shape for name, shape in tensor_shapes(config).items()}
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == wanted
    for name, shape in wanted.items():
        if len(shape) == 2:
            spread = np.sqrt(shape[1]) * found.float32(name).std()
            assert 0.8 < spread < 1.25  # a dot product of a row keeps the size of what it is given
