"""Models on devices give what they give on the CPU, however the layers are spread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latticeq.errors import InputError, LatticeqError
from latticeq.gpu.device import device_count
from latticeq.gpu.loader import load_gpu
from latticeq.model.loader import load
from latticeq.model.perplexity import perplexity
from latticeq.model.quantize import quantize
from latticeq.model.sampling import Sampling, choose
from tests.tiny_llama import random_ids
from tests.tiny_model import byte_config, latticeq, write_byte_model

pytestmark = pytest.mark.gpu

CONFIG = byte_config(
    "tied", hidden_size=96, intermediate_size=192, num_attention_heads=6, head_dim=16
) | {"num_key_value_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 400}
IDS = random_ids(CONFIG, 132)
START = 124  # what follows comes one by one, across the border of a chunk
REGIMES = ("float", "w", "w+kv", "w+kv+a")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("forward")
    found = {"float": write_byte_model(top / "float", CONFIG)}
    for regime in REGIMES[1:]:
        found[regime] = top / regime
        small = {"calibration_tokens": 256, "calibration_context": 64, "feedback": "none"}
        quantize(found["float"], found[regime], regime=regime, **small)
    return found


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("regime", REGIMES)
def test_exact_logits_are_the_cpus(folders: dict[str, Path], regime: str) -> None:
    # One digit that differs moves coded regimes by a hundred times the bound.
    wanted = load(folders[regime], runtime="float32").logits(IDS)
    assert relative(load_gpu(folders[regime], runtime="float32").logits(IDS), wanted) < 3e-4


def test_packed_logits_are_within_the_rounding_of_float16(folders: dict[str, Path]) -> None:
    wanted = load(folders["w"], runtime="float32").logits(IDS)
    assert relative(load_gpu(folders["w"]).logits(IDS), wanted) < 1e-2


@pytest.mark.parametrize("runtime", ["packed", "float32"])
@pytest.mark.parametrize("regime", REGIMES)
def test_tokens_one_by_one_meet_those_at_once(
    folders: dict[str, Path], regime: str, runtime: str
) -> None:
    model = load_gpu(folders[regime], runtime=runtime)
    wanted = model.logits(IDS)
    cache = model.new_cache(len(IDS))
    model.hidden(IDS[:START], cache)
    steps = np.stack([model.decode_step(int(token), cache) for token in IDS[START:]])
    is_coded = regime not in {"float", "w"} and runtime == "packed"
    assert relative(steps, wanted[START:]) < (0.5 if is_coded else 3e-3)
    # The graph that was captured serves another cache, and one that was cut back.
    other = model.new_cache(len(IDS))
    model.hidden(IDS[:START], other)
    assert (model.decode_step(int(IDS[START]), other) == steps[0]).all()
    cache.truncate(START)
    assert (model.decode_step(int(IDS[START]), cache) == steps[0]).all()
    # It holds no address of a cache that is gone, whatever became of that memory.
    del cache, other
    with model.stages[0].use() as cp:
        spoilt = [cp.full(size, 0xFF, "uint8") for size in range(512, 2**16, 512)]
    again = model.new_cache(len(IDS))
    model.hidden(IDS[:START], again)
    assert (model.decode_step(int(IDS[START]), again) == steps[0]).all()
    del spoilt


@pytest.mark.parametrize("regime", REGIMES)
def test_layers_spread_over_devices_change_nothing(folders: dict[str, Path], regime: str) -> None:
    wanted = load_gpu(folders[regime])
    logits = wanted.logits(IDS)
    greedy = wanted.generate(IDS[:20].tolist(), max_tokens=4)
    spreads = [(0, 0), (0, 0, 0)] + ([(0, 1), (1, 0, 1)] if device_count() > 1 else [])
    for devices in spreads:
        model = load_gpu(folders[regime], devices=devices)
        assert (model.logits(IDS) == logits).all()
        assert model.generate(IDS[:20].tolist(), max_tokens=4) == greedy


LAWS = {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 3}}


@pytest.mark.parametrize("devices", [(0,), (0, 0, 0)])
@pytest.mark.parametrize("law", LAWS)
def test_tokens_chosen_on_the_device_are_those_of_the_hosts_choice(
    folders: dict[str, Path], law: str, devices: tuple[int, ...]
) -> None:
    model, prompt, options = load_gpu(folders["w"], devices=devices), IDS[:20].tolist(), LAWS[law]
    found = model.generate(prompt, max_tokens=30, **options)
    seed = options.get("seed")
    sampling = Sampling(
        options.get("temperature", 0.0), options.get("top_p", 1.0), np.random.default_rng(seed)
    )
    cache, wanted = model.new_cache(60), []
    logits = model.prefill(prompt, cache)
    for _ in found:
        wanted.append(choose(logits, sampling))
        logits = model.decode_step(wanted[-1], cache)
    assert found == wanted
    assert len(set(found)) > 1
    assert model.generate(prompt, max_tokens=30, **options) == found


def test_logits_that_are_not_numbers_are_an_error(folders: dict[str, Path]) -> None:
    model = load_gpu(folders["float"])
    with model.stages[-1].use():
        model.norm[...] = np.nan
    with pytest.raises(LatticeqError, match="NaN or infinite numbers"):
        model.generate([1, 2, 3], max_tokens=1)
    with pytest.raises(LatticeqError, match="NaN or infinite numbers"):
        model.generate([1], max_tokens=1, temperature=1.0)


def test_perplexity_is_the_cpus(folders: dict[str, Path]) -> None:
    for regime in ("float", "w"):
        wanted = perplexity(load(folders[regime], runtime="float32"), IDS, context=50)
        found = perplexity(load_gpu(folders[regime], runtime="float32"), IDS, context=50)
        assert found.perplexity == pytest.approx(wanted.perplexity, rel=1e-3)
        assert (found.tokens, found.bits_per_weight) == (wanted.tokens, wanted.bits_per_weight)


def test_the_verbs_run_on_a_device(folders: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 9, encoding="utf-8")
    words = ["--text", text, "--context", 64, "--windows", 2, "--device", "gpu"]
    result = latticeq("perplexity", folders["w"], *words).result
    assert result["windows"] == 2
    result = latticeq(
        "generate", folders["w"], "--prompt", "the", "--max-tokens", 5, "--device", "gpu"
    ).result
    assert result["tokens"] + (result["finish_reason"] == "stop") >= 1
    words = ["--device", "gpu:0,0", "--prompt-tokens", 20, "--decode-tokens", 8, "--repeats", 2]
    result = latticeq("bench", folders["w+kv"], *words).result
    assert result["devices"] == [0, 0]
    assert 0 < result["bandwidth_fraction"] < 1
    assert latticeq("env").result["gpus"][0]["memory"] > 2**30


def test_what_a_device_does_not_run_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="device 99 does not exist"):
        load_gpu(folders["w"], devices=(99,))
    with pytest.raises(InputError, match="4 devices were given for 3 layers"):
        load_gpu(folders["w"], devices=(0,) * 4)
    with pytest.raises(InputError, match="runtime is 'int8'"):
        load_gpu(folders["w"], runtime="int8")
    model = load_gpu(folders["w"])
    with pytest.raises(InputError, match="the cache is of another model"):
        model.decode_step(0, load(folders["w"]).new_cache(10))
    assert latticeq("perplexity", folders["w"], "--text", __file__, "--device", "gpu:99").code == 2
