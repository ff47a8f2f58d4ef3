"""The verb ``latticeq demo``: everything once, on a small real model.

All it makes lies in the cache folder and is used again by the next run: the model, the packed
model, and the perplexities, as long as the files they were measured on are the same. An interrupted
demo goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli import machine
from latticeq.cli.bench_model import Speed, measure
from latticeq.cli.console import on_interrupt, say
from latticeq.cli.contents import read_config, size_table
from latticeq.cli.progress import QuantizeProgress, compile_notice, verify_bar
from latticeq.cli.runtime import chosen_runtime
from latticeq.cli.streaming import stream
from latticeq.cli.tables import duration, folder_bytes, megabytes, table
from latticeq.errors import InputError, LatticeqError

if TYPE_CHECKING:
    from latticeq.model.llama import Llama
    from latticeq.model.options import Options
    from latticeq.model.quantize import QuantizeReport

__all__ = ["HELP", "add_arguments", "run"]

HELP = "pull, quantize, verify, measure and run a small model"

MODEL = "smollm2-135m-instruct"
CONTEXT = 2048
MAX_TOKENS = 160
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWrite a short paragraph about honey bees.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""A question as the model's own chat template would put it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments: it has none of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Take all steps, reusing what an earlier run left in the cache folder."""
    from latticeq.model.loader import load
    from latticeq.model.options import Options
    from latticeq.model.pull import pull
    from latticeq.storage.checkpoint import verify

    start = time.perf_counter()
    on_interrupt("Run the same command to go on: what is finished is kept.")
    say(f"1/6 pull {MODEL}: a real Llama of 135 million weights")
    source = pull(MODEL)
    say(f"    {source} ({megabytes(folder_bytes(source))})")

    options = Options(feedback="ldlq")  # qa-ldlq loses less and would take minutes more
    out = source.with_name(f"{MODEL}-nestquant")
    say(f"2/6 quantize at 4.25 bits, minding {options.calibration_tokens} tokens of built-in text")
    quantized = _quantize(source, out, options)

    say("3/6 verify: read everything back and compare checksums")
    verified = verify(out, verify_bar(out))
    say(f"    {verified['tensors']} tensors and {verified['files']} files are as written")

    original = load(source)
    packed = load(out, runtime=chosen_runtime(out, "auto", read_config(out)))
    say("4/6 perplexity on held-out built-in text (lower is better)")
    compile_notice()
    scores = _perplexities(source, out, {"float32": original, "packed": packed})

    say("5/6 size and speed")
    say(size_table(out))
    speeds = {
        "float32": measure(original, 256, 32, 3, args.seed, progress=True),
        "packed": measure(packed, 256, 64, 3, args.seed, progress=True),
    }
    say(f"\n{_speed_table(speeds)}")

    say("6/6 the packed model is asked to write a short paragraph about honey bees\n")
    text = _answer(out, packed)
    seconds = time.perf_counter() - start
    say(f"\nall done in {duration(seconds)}; try: latticeq chat {out}")
    return {
        "source": str(source),
        "out": str(out),
        "seconds": round(seconds, 1),
        "quantize": quantized,
        "verify": verified,
        "perplexity": scores,
        "perplexity_gap": scores["packed"]["perplexity"] - scores["float32"]["perplexity"],
        "bits_per_weight": packed.bits_per_weight,
        "nbytes": folder_bytes(out, "*.safetensors"),
        "source_nbytes": folder_bytes(source, "*.safetensors"),
        "speed": {name: _medians(speed) for name, speed in speeds.items()},
        "peak_rss_mib": machine.peak_rss_mib(),
        "threads": args.threads,
        "text": text,
    }


def _quantize(source: Path, out: Path, options: Options) -> dict[str, Any]:
    """Quantize, unless the result is there; go on with a job that is."""
    from latticeq.model.engine import HostEngine
    from latticeq.model.estimate import estimate, measure_speeds
    from latticeq.model.loader import load_config
    from latticeq.model.plan import plan
    from latticeq.model.quantize import quantize

    if _is_there(out, options):
        say(f"    {out} is there from an earlier run")
        return {"reused": True}
    compile_notice()
    config = load_config(source)
    speeds = measure_speeds(options, config, HostEngine())
    expected = estimate(config, plan(source, options), options, speeds)
    say(f"    about {duration(expected.seconds)} for all of it, from a measurement just now")

    def work(force: bool) -> QuantizeReport:
        with QuantizeProgress(config.num_hidden_layers) as progress:
            return quantize(
                source, out, resume=True, force=force, report=progress, **asdict(options)
            )

    if out.exists():  # damaged, or made with other options
        shutil.rmtree(out)
    try:
        report = work(force=False)
    except InputError:  # an unfinished job of other options: nothing of it can be used
        report = work(force=True)
    say(
        f"    {out}: {report.bits_per_weight:.3f} bits a weight, {megabytes(report.nbytes)}, in "
        f"{duration(report.seconds)}"
    )
    return {
        "reused": False,
        "seconds": report.seconds,
        "bits_per_weight": report.bits_per_weight,
        "nbytes": report.nbytes,
    }


def _is_there(out: Path, options: Options) -> bool:
    """Tell whether a folder holds an undamaged model of these options."""
    from latticeq.storage.checkpoint import quantization_config, verify

    try:
        config = json.loads((out / "config.json").read_text("utf-8"))
        made_with = quantization_config(config).get("parameters")
        verify(out)
    except (OSError, ValueError, LatticeqError):
        return False
    return bool(made_with == json.loads(json.dumps(asdict(options))))


def _perplexities(source: Path, out: Path, models: dict[str, Llama]) -> dict[str, Any]:
    """Measure both models, or take what was measured on the same files and text before."""
    from latticeq.model.builtin_text import heldout_text
    from latticeq.model.perplexity import perplexity
    from latticeq.model.source import weights_fingerprint
    from latticeq.model.tokenizer import Tokenizer
    from latticeq.storage.checkpoint import CHECKSUMS, checksum

    text = heldout_text()
    parts = (weights_fingerprint(source).encode(), (out / CHECKSUMS).read_bytes(), text.encode())
    key = checksum(b"".join(parts) + str(CONTEXT).encode())

    def compute() -> dict[str, Any]:
        ids = Tokenizer.from_folder(source).tokenize(text)
        return {
            name: perplexity(model, ids, context=CONTEXT, progress=True).as_dict()
            for name, model in models.items()
        }

    scores = _remembered(out.with_name(f"{out.name}.perplexity.json"), key, compute)
    rows: list[tuple[object, ...]] = [("weights", "bits", "perplexity", "standard error")]
    for name, score in scores.items():
        error = "?" if score["stderr"] is None else f"{score['stderr']:.3f}"
        bits = f"{score['bits_per_weight']:.3f}"
        rows.append((name, bits, f"{score['perplexity']:.3f}", error))
    say(table(rows))
    gap = scores["packed"]["perplexity"] - scores["float32"]["perplexity"]
    say(
        f"gap {gap:+.3f}, over {scores['packed']['windows']} windows of {CONTEXT} tokens; the "
        "standard error is over texts, and both models read the same one"
    )
    return scores


def _remembered(path: Path, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file holds under this key; compute it and write the file if it holds none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict) and found.get("key") == key and isinstance(found.get("value"), dict):
        say(f"    measured by an earlier run ({path.name})")
        value: dict[str, Any] = found["value"]
        return value
    value = compute()
    partial_path = path.with_name(f".{path.name}.partial")
    partial_path.write_text(json.dumps({"key": key, "value": value}, indent=2) + "\n", "utf-8")
    partial_path.replace(path)
    return value


def _medians(speed: Speed) -> dict[str, float]:
    return {
        "prefill_tokens_per_s": statistics.median(speed.prefill),
        "decode_tokens_per_s": statistics.median(speed.decode),
        "time_to_first_token_s": statistics.median(speed.first),
        "warmup_s": speed.warmup_s,
    }


def _speed_table(speeds: dict[str, Speed]) -> str:
    rows: list[tuple[object, ...]] = [("weights", "prefill, tokens/s", "decode, tokens/s")]
    for name, speed in speeds.items():
        medians = _medians(speed)
        prefill, decode = medians["prefill_tokens_per_s"], medians["decode_tokens_per_s"]
        rows.append((name, f"{prefill:.0f}", f"{decode:.1f}"))
    return table(rows)


def _answer(folder: Path, model: Llama) -> str:
    """Stream the model's answer to stdout and return it."""
    from latticeq.model.generate import generate
    from latticeq.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    prompt = tokenizer.tokenize(PROMPT)
    tokens = generate(model, prompt, max_tokens=MAX_TOKENS, stop_ids=tokenizer.stop_ids)
    text, _, _ = stream(tokens, tokenizer.stream())
    return text
