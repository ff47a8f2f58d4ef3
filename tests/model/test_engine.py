"""Engines: what is asked of one, and that a job keeps to the one it began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latticeq.errors import InputError
from latticeq.gpu.engine import GpuEngine
from latticeq.linear.base import Linear
from latticeq.model.engine import Engine, HostEngine, QuantizedMatrix
from latticeq.model.options import METHODS, Options
from latticeq.model.quantize import quantize
from latticeq.quantizers.calibration import Moment
from tests.model.stopped_job import stopped_before
from tests.tiny_model import byte_config, write_byte_model

SMALL: dict[str, Any] = {"calibration_tokens": 256, "calibration_context": 64}


class Watched(HostEngine):
    """The CPU under another name, which counts what it is asked for."""

    settings: Mapping[str, str] = {"device": "another"}
    software: Mapping[str, str] = {"library": "1.2"}

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("linear", "packed_linear", "moment", "quantize"), 0)

    def linear(self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None) -> Linear:
        self.counts["linear"] += 1
        return super().linear(weight, bias)

    def packed_linear(self, packed: Any, bias: NDArray[np.float32] | None) -> Any:
        self.counts["packed_linear"] += 1
        return super().packed_linear(packed, bias)

    def moment(self, n: int) -> Moment:
        self.counts["moment"] += 1
        return super().moment(n)

    def quantize(self, *arguments: Any) -> QuantizedMatrix:
        self.counts["quantize"] += 1
        return super().quantize(*arguments)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("engine") / "source", byte_config("qwen2"))


def test_an_engine_does_all_products_of_a_job(source: Path, tmp_path: Path) -> None:
    engine = Watched()
    quantize(source, tmp_path / "out", engine=engine, **SMALL)
    # Two blocks of seven matrices, in a float and in a quantized model, and four inputs each.
    assert engine.counts == {"linear": 14, "packed_linear": 14, "moment": 16, "quantize": 14}
    assert '"library": "1.2"' in (tmp_path / "out" / "config.json").read_text("utf-8")
    quantize(source, tmp_path / "plain", **SMALL)
    names = ("model.safetensors", "quantization_report.json")
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("regime", ["w", "w+kv+a"])
def test_a_job_goes_on_with_its_engine_alone(source: Path, tmp_path: Path, regime: str) -> None:
    options = SMALL | {"regime": regime}
    with stopped_before(1):
        quantize(source, tmp_path / "out", engine=Watched(), **options)
    with pytest.raises(InputError, match="was started with device = 'another'; now it is None"):
        quantize(source, tmp_path / "out", resume=True, **options)
    engine = Watched()
    quantize(source, tmp_path / "out", resume=True, engine=engine, **options)
    assert engine.counts["packed_linear"] == 14  # the finished block runs from its bytes
    assert engine.counts["quantize"] == 7
    quantize(source, tmp_path / "whole", **options)
    found, wanted = (tmp_path / name / "model.safetensors" for name in ("out", "whole"))
    assert found.read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_gpu_cannot_quantize_is_refused(method: str) -> None:
    engine: Engine = GpuEngine.__new__(GpuEngine)  # as no GPU is needed to say so
    if method == "nestquant":
        engine.check(Options())
        return
    with pytest.raises(InputError, match=rf"--method {method} cannot be .*must be nestquant"):
        engine.check(Options(method=method))
