"""Quantization on a device against the CPU's: digits, factors, losses, jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.errors import InputError, LatticeqError
from latticeq.gpu.device import cupy
from latticeq.gpu.engine import GpuEngine
from latticeq.gpu.feedback import GpuFactor, GpuMoment, factor, rotate_double, rotated_moment
from latticeq.gpu.nestquant import GpuNestQuant
from latticeq.model.engine import HostEngine
from latticeq.model.loader import load
from latticeq.model.quantize import quantize
from latticeq.quantizers.calibration import Moment
from latticeq.quantizers.feedback import factor as host_factor
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.objective import general, isotropic_noise, plain, with_noise
from latticeq.storage.checkpoint import verify
from latticeq.transforms.rotation import Rotation
from tests.model.stopped_job import stopped_before
from tests.tiny_model import byte_config, latticeq, write_byte_model

pytestmark = pytest.mark.gpu

QUANTIZERS = [
    NestQuant(),
    NestQuant(q=14, k=3, betas=(0.2, 0.3, 0.5), selection="first", seed=3),
    NestQuant(q=14, k=4, shaping="nestquantm", packing="radix"),
    NestQuant(q=16, k=8, shaping="cubic"),
    NestQuant(q=16, k=8, shaping="d8", rotate="none"),
    NestQuant(q=16, k=16, betas=tuple(np.geomspace(0.15, 1, 16))),
]


def short(quantizer: NestQuant) -> str:
    return f"{quantizer.shaping} q={quantizer.q} k={quantizer.k}"


SHAPES = [(1, 8), (5, 48), (37, 136), (64, 576), (130, 1024)]
"""Rows that fill no group of sixteen, columns that fill no panel, and more than one of each."""

SMALL: dict[str, Any] = {"calibration_tokens": 256, "calibration_context": 64}

JOBS = [
    ("w", "none"),
    ("w", "ldlq"),
    ("w", "qa-ldlq"),
    ("w+kv", "ldlq"),
    ("w+kv+a", "none"),
    ("w+kv+a", "qa-ldlq"),
]


def matrix(m: int, n: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((m, n)) * 10.0 ** rng.uniform(-3, 2, (m, 1))
    rows[m // 2] = 0
    return rows.astype(np.float32)


def moment(n: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((3 * n, n)) * np.exp(rng.standard_normal(n))
    x += rng.standard_normal((3 * n, 1)) * rng.standard_normal(n)
    return x.T @ x / len(x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=short)
def test_without_feedback_bytes_are_the_cpus(
    quantizer: NestQuant, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    x = matrix(*shape, rng)
    found = GpuNestQuant(quantizer).quantize(cupy().asarray(x))
    wanted = quantizer.quantize(x)
    np.testing.assert_array_equal(found.row_scale, wanted.row_scale)
    np.testing.assert_array_equal(cupy().asnumpy(found.digits), wanted.digits)
    np.testing.assert_array_equal(cupy().asnumpy(found.scale_index), wanted.scale_index)
    np.testing.assert_array_equal(cupy().asnumpy(found.rotated()), wanted.rotated())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=short)
def test_under_feedback_digits_are_the_cpus(
    quantizer: NestQuant, shape: tuple[int, int], rng: np.random.Generator
) -> None:
    """From one factor nothing differs here: a tie that rounding breaks is one in many millions."""
    x, wanted_factor = matrix(*shape, rng), quantizer.factor(moment(shape[1], rng))
    lower = GpuFactor(cupy().asarray(wanted_factor.lower), wanted_factor.damping)
    found = GpuNestQuant(quantizer).quantize(cupy().asarray(x, "float64"), lower).to_host()
    wanted = quantizer.quantize(x.astype(np.float64), wanted_factor)
    np.testing.assert_array_equal(found.digits, wanted.digits)
    np.testing.assert_array_equal(found.scale_index, wanted.scale_index)
    assert found.damping == wanted.damping


@pytest.mark.parametrize(
    "rotation",
    [Rotation(8), Rotation(576, seed=7), Rotation(92), Rotation(4096), Rotation(1536, block=32)],
    ids=str,
)
def test_rotations_in_float64(rotation: Rotation, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, rotation.n))
    found = cupy().asnumpy(rotate_double(rotation, cupy().asarray(x)))
    np.testing.assert_allclose(found, rotation.apply(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "rotation", [Rotation(8), Rotation(192, seed=7), Rotation(92), Rotation(256, block=32)], ids=str
)
def test_moments_are_rotated_on_both_sides(rotation: Rotation, rng: np.random.Generator) -> None:
    x = rng.standard_normal((rotation.n, rotation.n))
    both = cupy().asnumpy(rotated_moment(rotation, cupy().asarray(x)))
    np.testing.assert_allclose(both, rotation.apply_both_sides(x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_factors(damping: float, rng: np.random.Generator) -> None:
    hessian = moment(264, rng)
    found = factor(cupy().asarray(hessian), damping)
    wanted = host_factor(hessian, damping=damping)
    lower = cupy().asnumpy(found.lower)
    for at in range(0, 264, 8):
        below = slice(at + 8, None), slice(at, at + 8)
        np.testing.assert_allclose(lower[below], wanted.lower[below], rtol=1e-9, atol=1e-11)
    assert found.damping == wanted.damping


def test_damping_is_raised_and_given_up_as_on_the_cpu(rng: np.random.Generator) -> None:
    x = rng.standard_normal((16, 64))
    singular = x.T @ x - 0.01 * np.eye(64)
    found = factor(cupy().asarray(singular), 0.0)
    assert found.damping == host_factor(singular, damping=0.0).damping > 0
    with pytest.raises(LatticeqError, match="size 64 and rank 64 has no Cholesky factor even"):
        factor(cupy().asarray(-np.eye(64)), 0.0)
    with pytest.raises(InputError, match="the Hessian is not finite"):
        factor(cupy().full((8, 8), np.nan), 0.0)


def test_moments(rng: np.random.Generator) -> None:
    x, y = (rng.standard_normal((2500, 48)).astype(np.float32) for _ in range(2))
    found, wanted = GpuMoment(48), Moment(48)
    with pytest.raises(LatticeqError, match="no token was given"):
        found.mean()
    for some in (found, wanted):
        some.update(x)
        some.update(x, y)
    np.testing.assert_allclose(cupy().asnumpy(found.mean()), wanted.mean(), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="must be"):
        found.update(x[:, :8])
    with pytest.raises(LatticeqError, match="NaN or infinite"):
        found.update(np.full_like(x, np.inf))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(wrong: float, rng: np.random.Generator) -> None:
    x = matrix(5, 48, rng)
    x[3, 7] = wrong
    with pytest.raises(InputError, match=r"entry \(3, 7\) is"):
        GpuNestQuant(NestQuant()).quantize(cupy().asarray(x))


@pytest.mark.parametrize("form", ["plain", "general", "noise"])
def test_an_engine_finds_what_the_cpu_does(form: str, rng: np.random.Generator) -> None:
    weights, quantizer = matrix(48, 136, rng), NestQuant()
    metric = moment(136, rng)
    cross = 1.1 * metric
    objective = {
        "plain": plain(metric),
        "general": general(metric, cross, 0.5),
        "noise": with_noise(metric, isotropic_noise(metric, 0.01)),
    }[form]
    wanted = HostEngine().quantize(quantizer, weights, objective, 0.01)
    found = GpuEngine().quantize(quantizer, weights, objective, 0.01)
    wanted_digits: Any = wanted.tensor
    found_digits: Any = found.tensor
    assert (wanted_digits.digits != found_digits.digits).mean() < 1e-3
    assert found.relative_error == pytest.approx(wanted.relative_error, rel=1e-3)
    assert found.losses == pytest.approx(wanted.losses, rel=2e-3)
    bare = GpuEngine().quantize(quantizer, weights, None, 0.01)
    assert not bare.losses
    assert bare.relative_error == pytest.approx(
        HostEngine().quantize(quantizer, weights, None, 0.01).relative_error, rel=1e-5
    )


def test_factors_are_shared_and_die_with_their_objective(rng: np.random.Generator) -> None:
    engine, objective = GpuEngine(), plain(moment(64, rng))
    for _ in range(2):
        engine.quantize(NestQuant(), matrix(8, 64, rng), objective, 0.01)
        assert len(engine._prepared) == 1
    del objective
    assert len(engine._prepared) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = byte_config("qwen2", num_hidden_layers=2)  # with biases
    return write_byte_model(tmp_path_factory.mktemp("device") / "source", config)


@pytest.mark.parametrize(("regime", "feedback"), JOBS)
def test_jobs_end_as_on_the_cpu(source: Path, tmp_path: Path, regime: str, feedback: str) -> None:
    options = SMALL | {"regime": regime, "feedback": feedback}
    on_cpu = quantize(source, tmp_path / "cpu", **options)
    report = quantize(source, tmp_path / "gpu", engine=GpuEngine(), **options)
    verify(tmp_path / "gpu")
    assert report.bits_per_weight == on_cpu.bits_per_weight
    for found, wanted in zip(report.layers, on_cpu.layers, strict=True):
        assert found.name == wanted.name
        assert found.relative_error == pytest.approx(wanted.relative_error, rel=0.05)
        if feedback != "none":
            assert found.proxy_loss == pytest.approx(wanted.proxy_loss, rel=0.3)
    if (regime, feedback) == ("w", "none"):
        names = ("model.safetensors",)
        for name in names:
            assert (tmp_path / "gpu" / name).read_bytes() == (tmp_path / "cpu" / name).read_bytes()
    logits = [load(tmp_path / kind).logits(np.arange(20)) for kind in ("cpu", "gpu")]
    assert np.abs(logits[0] - logits[1]).max() < 0.3 * np.abs(logits[0]).max()


def test_a_resumed_job_ends_with_the_same_bytes(source: Path, tmp_path: Path) -> None:
    options = SMALL | {"regime": "w+kv+a"}
    quantize(source, tmp_path / "whole", engine=GpuEngine(), **options)
    with stopped_before(1):
        quantize(source, tmp_path / "out", engine=GpuEngine(), **options)
    with pytest.raises(InputError, match="was started with device = 'gpu'; now it is None"):
        quantize(source, tmp_path / "out", resume=True, **options)
    quantize(source, tmp_path / "out", resume=True, engine=GpuEngine(), **options)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("In eight dimensions nothing packs as well. " * 30, "utf-8")
    words = ("--calibration", text, "--calibration-tokens", 512, "--device", "gpu")
    done = latticeq("quantize", source, tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert done.result["bits_per_weight"] > 4
    assert latticeq("verify", tmp_path / "out").code == 0
    refused = latticeq("quantize", source, tmp_path / "no", *words, "--method", "pvq")
    assert refused.code == 2
    assert "--method pvq cannot be quantized on a GPU" in refused.err


def test_the_measurement() -> None:
    done = latticeq("bench", "quantize", "--shape", "tiny", "--device", "gpu", "--check")
    assert done.code == 0, done.err
    assert done.result["differing_digits"] == 0
    assert done.result["differing_scales"] == 0
    is_pooled = cupy().cuda.get_allocator() == cupy().get_default_memory_pool().malloc
    assert (done.result["device_memory_mib"] > 0) == is_pooled
    assert {row["name"] for row in done.result["rows"]} >= {"mlp.down_proj", "self_attn.k_proj"}
    for row in done.result["rows"]:
        assert 0 < row["proxy_loss"] < row["proxy_loss_plain"]
