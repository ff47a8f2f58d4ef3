"""Quantizing a whole model: through the disk to the same logits, and through any interruption."""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latticeq.errors import FormatError, InputError, LatticeqError
from latticeq.linear.packed import Int8Linear, NestLinear
from latticeq.model.loader import Weights, load, load_config
from latticeq.model.quantize import QuantizeReport, quantize
from latticeq.quantizers.calibration import Moment
from latticeq.quantizers.nestquant import NestQuant
from latticeq.quantizers.scalar import Int8
from latticeq.storage.checkpoint import verify
from latticeq.storage.safetensors import SafetensorsWriter
from tests.tiny_llama import random_weights, write_folder
from tests.tiny_model import byte_config, write_byte_model

IDS = np.random.default_rng(4).integers(0, 256, 40)
SMALL: dict[str, Any] = {"calibration_tokens": 256, "calibration_context": 64}


@dataclass
class Made:
    """A source, what became of it, and what was reported."""

    source: Path
    out: Path
    report: QuantizeReport
    events: list[tuple[str, Any]]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Quantize an untied model and a tied one with biases, under feedback."""
    folder = tmp_path_factory.mktemp("quantize")
    source = write_byte_model(folder / "source", byte_config(request.param))
    events: list[tuple[str, Any]] = []
    report = quantize(source, folder / "out", report=lambda *event: events.append(event), **SMALL)
    return Made(source, folder / "out", report, events)


def dense_twin(made: Made, folder: Path) -> Path:
    """Write the model whose weights are the dequantized ones, in float32."""
    weights = Weights(made.out, load_config(made.out))
    floats = load_file(made.source / "model.safetensors")
    for name in weights.entries:
        floats[name] = weights.packed(name).unpack().dequantize()
    config = json.loads((made.source / "config.json").read_text("utf-8"))
    return write_folder(folder, config, floats)


def test_logits_are_those_of_the_dequantized_weights(made: Made, tmp_path: Path) -> None:
    packed = load(made.out, runtime="float32")
    dense = load(dense_twin(made, tmp_path / "dense"))
    assert (packed.cache_dtype, dense.cache_dtype) == (np.float16, np.float32)
    rounded = packed.logits(IDS)
    packed.cache_dtype = dense.cache_dtype  # here it is the weights that are compared
    wanted = dense.logits(IDS)
    np.testing.assert_allclose(packed.logits(IDS), wanted, atol=2e-4 * np.abs(wanted).max())
    # A float16 cache rounds keys and values to 2**-11 of themselves.
    np.testing.assert_allclose(rounded, wanted, atol=2e-3 * np.abs(wanted).max())
    # The other runtimes round activations to int8, and one of them weights, too.
    for runtime in ("packed", "int8"):
        found = load(made.out, runtime=runtime).logits(IDS)
        assert np.abs(found - wanted).max() < 0.08 * np.abs(wanted).max()


def test_every_matrix_is_stored_packed(made: Made) -> None:
    model = load(made.out)
    assert isinstance(model.embedding, Int8Linear)
    assert isinstance(model.head, Int8Linear)
    for block in model.blocks:
        assert all(isinstance(linear, NestLinear) for linear in block.linears.values())
    assert verify(made.out)["nbytes"] < made.report.nbytes


def test_weights_are_near_and_feedback_helps(made: Made) -> None:
    assert len(made.report.layers) == 14
    for layer in made.report.layers:
        assert layer.relative_error < 0.02
        assert layer.damping == 0.01
        assert layer.proxy_loss is not None
        assert layer.proxy_loss_plain is not None
        assert layer.proxy_loss_rtn is not None
    sums = [
        sum(getattr(layer, name) for layer in made.report.layers)
        for name in ("proxy_loss", "proxy_loss_plain", "proxy_loss_rtn")
    ]
    assert sums[0] < 0.8 * sums[1] < sums[2]


def test_the_report_counts_bytes_on_disk(made: Made) -> None:
    weights = Weights(made.out, load_config(made.out))
    linears = [name for name in weights.entries if "layers" in name]
    packed = [weights.packed(name) for name in linears]
    entries = sum(p.shape[0] * p.shape[1] for p in packed)
    assert made.report.bits_per_weight == 8 * sum(p.nbytes for p in packed) / entries
    assert made.report.nbytes == (made.out / "model.safetensors").stat().st_size
    assert [layer.name for layer in made.report.layers] == linears


def test_progress_is_reported(made: Made) -> None:
    assert [value for event, value in made.events if event == "stage"] == [
        (block, stage) for block in (0, 1) for stage in range(4)
    ]
    assert [value for event, value in made.events if event == "layer"] == made.report.layers


def test_the_configuration_says_what_was_done(made: Made) -> None:
    config = json.loads((made.out / "config.json").read_text("utf-8"))
    found = config.pop("quantization_config")
    assert config == json.loads((made.source / "config.json").read_text("utf-8"))
    assert (found["quant_method"], found["format_version"]) == ("latticeq", 1)
    assert found["parameters"]["q"] == 16
    assert found["calibration"]["tokens"] == 256
    assert set(found["software"]) >= {"python", "numpy", "numba", "latticeq"}
    assert (made.out / "tokenizer.json").read_bytes() == (
        made.source / "tokenizer.json"
    ).read_bytes()


class StopError(Exception):
    """What interrupts a job here."""


def stops_at(count: int) -> Any:
    """Return a report callback that raises when it is called for the ``count``-th time."""
    calls = iter(range(count))

    def report(*_: object) -> None:
        if next(calls, None) is None:
            raise StopError

    return report


@pytest.mark.parametrize("regime", ["w", "w+kv+a"])
def test_resuming_anywhere_makes_the_same_bytes(tmp_path: Path, regime: str) -> None:
    config = byte_config("tied", num_hidden_layers=2)
    source = write_byte_model(tmp_path / "source", config)
    options = SMALL | {"regime": regime}
    quantize(source, tmp_path / "whole", **options)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    out, count = tmp_path / "out", 0
    while not out.exists():
        count += 5  # calls of one run: checks of tensors, and a block's linears and stages
        try:
            quantize(source, out, resume=True, report=stops_at(count), **options)
        except StopError:
            assert not out.exists()
    assert count > 15
    assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


@pytest.mark.parametrize("part", ["ends", "block-0000", "block-0001"])
def test_a_part_that_the_disk_lost_is_made_again(tmp_path: Path, part: str) -> None:
    source = write_byte_model(tmp_path / "source", byte_config("tied", num_hidden_layers=3))
    quantize(source, tmp_path / "whole", **SMALL)
    with pytest.raises(StopError):
        quantize(source, tmp_path / "out", report=stops_at(55), **SMALL)
    lost = tmp_path / "out.partial" / part / "model.safetensors"
    lost.write_bytes(bytes(lost.stat().st_size))
    events: list[tuple[str, Any]] = []
    report = lambda *event: events.append(event)  # noqa: E731
    quantize(source, tmp_path / "out", resume=True, report=report, **SMALL)
    assert [value for event, value in events if event == "damaged"] == [part]
    whole, out = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "out")
    )
    assert out == whole


@pytest.mark.parametrize("change", [{"q": 14}, {"calibration_tokens": 128}, {"seed": 1}])
def test_a_job_with_other_settings_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    source = write_byte_model(tmp_path / "source")
    with pytest.raises(StopError):
        quantize(source, tmp_path / "out", report=stops_at(25), **SMALL)
    with pytest.raises(InputError, match="was started with"):
        quantize(source, tmp_path / "out", resume=True, **(SMALL | change))
    with pytest.raises(InputError, match="unfinished job"):
        quantize(source, tmp_path / "out", **SMALL)


def test_changed_weights_do_not_mix_with_a_job(tmp_path: Path) -> None:
    source = write_byte_model(tmp_path / "source")
    with pytest.raises(StopError):
        quantize(source, tmp_path / "out", report=stops_at(25), **SMALL)
    weights = random_weights(byte_config(), seed=5)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(InputError, match="was started with weights"):
        quantize(source, tmp_path / "out", resume=True, **SMALL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    source = write_byte_model(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("keep me")
    for force in (False, True):
        with pytest.raises(InputError, match="out exists"):
            quantize(source, tmp_path / "out", force=force, feedback="none")
    with pytest.raises(InputError, match="is or holds the source"):
        quantize(source, tmp_path, force=True, feedback="none")
    assert names(tmp_path / "out") == ["mine"]
    assert names(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float, name: str) -> None:
    source = write_byte_model(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights[name].reshape(-1)[5] = value
    save_file(weights, source / "model.safetensors")
    for feedback in ("ldlq", "none"):
        with pytest.raises(FormatError, match=f"{name} holds NaN or infinite"):
            quantize(source, tmp_path / "out", feedback=feedback, **SMALL)
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gptq"}, "method is 'gptq'"),
        ({"regime": "w+k"}, "regime"),
        ({"feedback": "magic"}, "feedback"),
        ({"embedding": "int2"}, "embedding"),
        ({"damping": -0.5}, "damping is -0.5"),
        ({"damping": float("nan")}, "damping is nan"),
        ({"q": 2.5}, "q = 2.5"),
        ({"k": 32}, "k is 32"),
        ({"calibration_context": 1}, "at least 2 tokens"),
        ({"calibration_tokens": 63}, "at least one window"),
        ({"calibration_context": 512, "calibration_tokens": 512}, "context is 256"),
        ({"calibration": "missing.txt"}, r"missing\.txt: cannot be read"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    source = write_byte_model(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        quantize(source, tmp_path / "out", **(SMALL | options))
    assert names(tmp_path) == ["source"]


def test_texts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = write_byte_model(tmp_path / "source")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(InputError, match=r"short\.txt has 5 tokens; 256 were asked for"):
        quantize(source, tmp_path / "out", calibration=tmp_path / "short.txt", **SMALL)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe" * 500)
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        quantize(source, tmp_path / "out", calibration=tmp_path / "binary.txt", **SMALL)
    (source / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        quantize(source, tmp_path / "out", feedback="none")
    assert names(tmp_path) == ["binary.txt", "short.txt", "source"]


@pytest.mark.parametrize("feedback", ["ldlq", "qa-ldlq"])
def test_what_cannot_be_factored_names_the_matrix_and_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feedback: str
) -> None:
    source = write_byte_model(tmp_path / "source")

    def mean(self: Moment) -> np.ndarray:  # of rank 2, and no second moment of anything
        diagonal = np.zeros(self._sum.shape[0])
        diagonal[:2] = -1e6, 1
        return np.diag(diagonal)

    monkeypatch.setattr(Moment, "mean", mean)
    with pytest.raises(LatticeqError) as caught:
        quantize(source, tmp_path / "out", feedback=feedback, **SMALL)
    message = str(caught.value)
    assert "tensor model.layers.0.self_attn.q_proj.weight: calibrated on 256 tokens: " in message
    assert "of size 48" in message
    assert "rank 2" in message or feedback == "qa-ldlq"  # which solves for its target first
    assert "calibrate on more tokens" in message


def test_shapes_that_blocks_do_not_divide_are_refused(tmp_path: Path) -> None:
    source = write_byte_model(tmp_path / "source", byte_config(intermediate_size=84))
    with pytest.raises(InputError, match=r"84 columns; .* multiple of 8"):
        quantize(source, tmp_path / "out", feedback="none")


def test_a_small_disk_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_byte_model(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LatticeqError, match="0 MB free; the job needs"):
        quantize(source, tmp_path / "out", feedback="none")
    assert names(tmp_path) == ["source"]


@pytest.mark.parametrize("after", [0, 3, 20, 60])
def test_a_disk_that_fills_leaves_a_job_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    source = write_byte_model(tmp_path / "source")
    left = [after]
    write = SafetensorsWriter.write

    def fails(self: SafetensorsWriter, name: str, array: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, array)

    with monkeypatch.context() as patch:
        patch.setattr(SafetensorsWriter, "write", fails)
        with pytest.raises(LatticeqError, match="the disk is full; free some space"):
            quantize(source, tmp_path / "out", feedback="none")
    assert names(tmp_path) == ["out.partial", "source"]
    quantize(source, tmp_path / "out", feedback="none", resume=True)
    assert names(tmp_path) == ["out", "source"]
    assert verify(tmp_path / "out")["tensors"] > 20


def test_embeddings_may_be_kept_as_they_are(tmp_path: Path) -> None:
    source = write_byte_model(tmp_path / "source")
    report = quantize(source, tmp_path / "out", feedback="none", embedding="keep")
    assert report.embedding_bits_per_weight == 0
    kept = load_file(tmp_path / "out/model.safetensors")["model.embed_tokens.weight"]
    assert np.array_equal(
        kept, load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_embeddings_are_the_same_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_byte_model(tmp_path / "source", byte_config("llama", num_hidden_layers=1))
    quantize(source, tmp_path / "whole", feedback="none")
    monkeypatch.setattr("latticeq.model.quantize.TABLE_CHUNK", 7 * 48 + 5)
    quantize(source, tmp_path / "pieces", feedback="none")
    whole, pieces = (tmp_path / name / "model.safetensors" for name in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()
    wanted = Int8().quantize(load_file(source / "model.safetensors")["lm_head.weight"])
    found = Weights(tmp_path / "pieces", load_config(tmp_path / "pieces")).packed("lm_head.weight")
    assert np.array_equal(found.unpack().dequantize(), wanted.dequantize())


def test_without_feedback_rows_are_quantized_plainly(tmp_path: Path) -> None:
    source = write_byte_model(tmp_path / "source")
    quantize(source, tmp_path / "out", feedback="none", q=14, k=2, seed=3)
    name = "model.layers.1.self_attn.o_proj.weight"
    weights = load_file(source / "model.safetensors")
    packed = Weights(tmp_path / "out", load_config(tmp_path / "out")).packed(name)
    plain = NestQuant(14, 2, seed=3).quantize(weights[name])
    assert np.array_equal(packed.unpack().dequantize(), plain.dequantize())


def test_a_matrix_stored_twice_is_refused(made: Made, tmp_path: Path) -> None:
    twice = tmp_path / "twice"
    shutil.copytree(made.out, twice)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(twice / "model.safetensors")
    tensors[name] = load_file(made.source / "model.safetensors")[name]
    save_file(tensors, twice / "model.safetensors")
    with pytest.raises(FormatError, match="stored in floats"):
        load(twice)
