"""What is decided on the host: stacked matrices, ranges of layers, devices by name."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from latticeq.cli.device import device_list
from latticeq.errors import InputError
from latticeq.gpu.device import missing
from latticeq.gpu.loader import split_layers
from latticeq.gpu.product import stacked, stacked_bias
from latticeq.quantizers.nestquant import NestQuant
from latticeq.storage.formats.nest import PackedNest
from tests.tiny_model import latticeq, write_byte_model


def packed(rows: int, q: int = 16, seed: int = 0) -> PackedNest:
    matrix = np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)
    tensor = NestQuant(q=q, k=4).quantize(matrix)
    return PackedNest(PackedNest.describe(tensor), PackedNest.pack(tensor))


def test_stacked_matrices_are_the_rows_of_all() -> None:
    parts = [packed(32, seed=1), packed(16, seed=2), packed(20, seed=3)]
    joined = stacked(parts)
    assert joined is not None
    assert joined.shape == (68, 32)
    wanted = np.concatenate([part.unpack().dequantize() for part in parts])
    assert (joined.unpack().dequantize() == wanted).all()
    assert stacked(parts[:1]) is parts[0]


def test_matrices_that_differ_are_not_stacked() -> None:
    assert stacked([packed(32), packed(16, q=14)]) is None
    assert stacked([packed(20), packed(16)]) is None  # the first fills no groups


def test_biases_are_stacked_with_zeros_where_there_is_none() -> None:
    assert stacked_bias([None, None], [2, 3]) is None
    found = stacked_bias([None, np.ones(3, np.float32)], [2, 3])
    assert found is not None
    assert found.tolist() == [0, 0, 1, 1, 1]


def test_layers_are_split_evenly() -> None:
    assert split_layers(30, 1) == [range(30)]
    assert split_layers(7, 3) == [range(3), range(3, 5), range(5, 7)]
    with pytest.raises(InputError, match="3 devices were given for 2 layers"):
        split_layers(2, 3)


def test_devices_are_named() -> None:
    assert [device_list(name) for name in ("cpu", "gpu", "gpu:3", "gpu:0,0,1")] == [
        (),
        (0,),
        (3,),
        (0, 0, 1),
    ]
    for name in ("cuda", "gpu:", "gpu:a", "gpu:0,", "gpu:-1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is no device; it must be cpu, gpu"):
            device_list(name)


@pytest.mark.skipif(missing() is None, reason="there is a GPU")
@pytest.mark.parametrize("verb", ["perplexity", "generate", "bench"])
def test_without_a_gpu_the_extra_is_named(verb: str, tmp_path: Path) -> None:
    folder = write_byte_model(tmp_path / "model")
    words = {
        "perplexity": ["--text", __file__, "--context", 64],
        "generate": ["--prompt", "a"],
        "bench": [],
    }[verb]
    done = latticeq(verb, folder, *words, "--device", "gpu")
    assert done.code == 1
    assert "latticeq[gpu]" in done.err
    assert "Traceback" not in done.err


def test_env_says_what_gpus_there_are() -> None:
    done = latticeq("env")
    assert (done.result["gpu_missing"] is None) == bool(done.result["gpus"])
    assert "gpu" in done.err


def test_what_belongs_to_the_cpu_is_refused_with_a_gpu(tmp_path: Path) -> None:
    folder = write_byte_model(tmp_path / "model")
    done = latticeq("bench", folder, "--device", "gpu", "--threads-list", "1")
    assert done.code != 0
    assert "--against and --threads-list measure the CPU" in done.err
    words = ["--text", __file__, "--device", "gpu", "--runtime", "int8"]
    done = latticeq("perplexity", folder, *words)
    assert "--runtime int8 is for the CPU" in done.err
