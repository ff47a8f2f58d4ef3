"""Estimates follow the shapes and the measured speeds."""

from dataclasses import replace

import pytest

from latticeq.model.config import LlamaConfig
from latticeq.model.engine import HostEngine
from latticeq.model.estimate import Speeds, estimate, measure_speeds
from latticeq.model.options import Options
from latticeq.model.plan import PlannedTensor
from tests.tiny_llama import CONFIGS, tensor_shapes

CONFIG = LlamaConfig.from_dict(CONFIGS["llama"])
PLANNED = [
    PlannedTensor(name, (shape[0], shape[1]), "nestquant", 4.27, 100, "")
    for name, shape in tensor_shapes(CONFIGS["llama"]).items()
    if len(shape) == 2
]
OPTIONS = Options(calibration_tokens=4096, calibration_context=256)
SPEEDS = Speeds(float32=1e9, moment=1e9, float64=1e9, encoded=1e6)


def test_a_machine_of_twice_the_speed_takes_half_the_time() -> None:
    options = replace(OPTIONS, feedback="none", embedding="keep")
    once = estimate(CONFIG, PLANNED, options, SPEEDS)
    twice = estimate(CONFIG, PLANNED, options, replace(SPEEDS, encoded=2e6))
    assert twice.seconds == pytest.approx(once.seconds / 2)
    n_weights = sum(r.shape[0] * r.shape[1] for r in PLANNED if ".layers." in r.name)
    assert once.seconds == pytest.approx(n_weights / SPEEDS.encoded)


def test_more_work_costs_more() -> None:
    usual = estimate(CONFIG, PLANNED, OPTIONS, SPEEDS)
    longer = estimate(CONFIG, PLANNED, replace(OPTIONS, calibration_tokens=8192), SPEEDS)
    assert longer.seconds > usual.seconds
    # Two streams keep the residual stream and the widest input, as it was and as it is.
    width, wide = CONFIG.hidden_size, CONFIG.intermediate_size
    assert longer.memory_bytes - usual.memory_bytes == 2 * 4 * 4096 * (width + 2 * wide)
    plain = estimate(CONFIG, PLANNED, replace(OPTIONS, feedback="none"), SPEEDS)
    assert plain.seconds < usual.seconds
    assert plain.memory_bytes < usual.memory_bytes
    kept = estimate(CONFIG, PLANNED, replace(OPTIONS, embedding="keep"), SPEEDS)
    assert kept.seconds < usual.seconds


def test_speeds_are_measured() -> None:
    speeds = measure_speeds(OPTIONS, CONFIG, HostEngine())
    assert speeds.float32 > 1e7
    assert speeds.float64 > 1e7
    assert speeds.encoded > 1e3


def test_what_lies_on_a_device_takes_no_memory_here() -> None:
    usual = estimate(CONFIG, PLANNED, OPTIONS, SPEEDS)
    device = estimate(CONFIG, PLANNED, OPTIONS, SPEEDS, on_device=True)
    assert device.seconds == usual.seconds
    assert device.memory_bytes < usual.memory_bytes
    # The states of the text stay.
    assert device.memory_bytes > 2 * 4 * 4096 * (CONFIG.hidden_size + 2 * CONFIG.intermediate_size)
