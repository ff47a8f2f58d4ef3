"""What ``latticeq bench DIR`` measures: how fast a model runs here, and how fast it could.

Prefill, taking in a prompt, multiplies many tokens at once and is bound by arithmetic: its speed is
shown beside the peak of int8 products. Decoding reads every weight for each token and is bound by
memory: its speed is shown beside the bandwidth. Both limits are measured in the same run. The first
run compiles kernels, or loads them from the cache, and brings the weights into memory; its time is
shown apart.

Several numbers of threads, and llama.cpp's ``llama-bench`` beside it, are measured in processes of
their own (`latticeq.cli.bench_threads`, `latticeq.cli.bench_against`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latticeq.cli import machine
from latticeq.cli.bench_speed import (
    DecodeSpeed,
    Speed,
    block_weights,
    bytes_per_token,
    measure,
    measure_contexts,
)
from latticeq.cli.console import say
from latticeq.cli.contents import read_config, run_bits, run_words
from latticeq.cli.device import add_device_argument, load_model
from latticeq.cli.env import versions
from latticeq.cli.runtime import add_runtime_argument
from latticeq.cli.tables import duration, megabytes, short, table, thread_words
from latticeq.errors import InputError

__all__ = ["Speed", "add_arguments", "measure", "number_list", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder, packed or float")
    parser.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=int,
        default=512,
        help="length of the prompt (default %(default)s: a page)",
    )
    parser.add_argument(
        "--decode-tokens",
        metavar="N",
        type=int,
        default=64,
        help="tokens to generate after it (default %(default)s: a few seconds)",
    )
    parser.add_argument(
        "--repeats",
        metavar="N",
        type=int,
        default=5,
        help="how often (default %(default)s: enough for a median and a spread)",
    )
    parser.add_argument(
        "--contexts",
        metavar="N,N,...",
        type=number_list,
        default=(),
        help="also measure decoding with so many tokens in the cache, such as 128,1024,4096,8192; "
        "contexts take turns, so their ratios hold where the machine's speed changes",
    )
    parser.add_argument(
        "--threads-list",
        metavar="N,N,...",
        type=number_list,
        help="measure with each of these numbers of threads, each in a fresh process",
    )
    parser.add_argument(
        "--no-peaks",
        action="store_true",
        help="leave out the machine's limits, which take two seconds to measure",
    )
    add_runtime_argument(parser)
    add_device_argument(parser)
    against = parser.add_argument_group("beside llama.cpp")
    against.add_argument(
        "--against",
        metavar="LLAMA_BENCH",
        type=Path,
        help="run this llama-bench too, in turn with us and never at the same time, as often as "
        "--repeats says (at least 5 times)",
    )
    against.add_argument(
        "--gguf", metavar="FILE", type=Path, help="the model that llama-bench is to run"
    )


def number_list(text: str) -> tuple[int, ...]:
    """Read an argument such as ``1,2,4``.

    Raises
    ------
    ArgumentTypeError
        If it is no list of whole numbers from 1.
    """
    words = text.split(",")
    if not all(word.isdecimal() and 1 <= int(word) < 10**7 for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,2,4")
    return tuple(map(int, words))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure in this process, or in several of their own."""
    if (args.against is None) != (args.gguf is None):
        given, missing = ("against", "gguf") if args.gguf is None else ("gguf", "against")
        raise InputError(f"--{given} is given without --{missing}; the two belong together")
    if args.device and (args.against is not None or args.threads_list is not None):
        raise InputError(
            "--against and --threads-list measure the CPU; leave them out, or leave out --device"
        )
    if args.against is not None:
        from latticeq.cli.bench_against import run_against

        return run_against(args)
    if args.threads_list is not None:
        from latticeq.cli.bench_threads import run_threads

        return run_threads(args)
    return _run_here(args)


def _run_here(args: argparse.Namespace) -> dict[str, Any]:
    """Load, warm up, measure, and compare with the machine's limits."""
    from latticeq.cli.progress import compile_notice

    start = time.perf_counter()
    model, runtime = load_model(args)
    load_s = time.perf_counter() - start
    if not args.device:
        compile_notice()
    speed = measure(
        model, args.prompt_tokens, args.decode_tokens, args.repeats, args.seed, progress=True
    )
    peak = machine.peak_rss_mib()  # before longer contexts and limits take memory of their own
    contexts = []
    if args.contexts:
        contexts = measure_contexts(model, args.contexts, args.repeats, args.seed, speed)
    decode, prefill = statistics.median(speed.decode), statistics.median(speed.prefill)
    result = {
        "load_s": round(load_s, 3),
        "warmup_s": round(speed.warmup_s, 3),
        "prefill_tokens_per_s": prefill,
        "decode_tokens_per_s": decode,
        "time_to_first_token_s": statistics.median(speed.first),
        "prefill_spread": [min(speed.prefill), max(speed.prefill)],
        "decode_spread": [min(speed.decode), max(speed.decode)],
        "peak_rss_mib": peak,
        "threads": args.threads,
        "steps_on_fewer_threads": model.thread_share.steps_on_fewer,
        "bytes_per_token": bytes_per_token(model),
        "prefill_weights": block_weights(model),
        "contexts": [_context_result(found, contexts[0]) for found in contexts],
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        "repeats": args.repeats,
        "dtype": model.dtype,
        "runtime": runtime,
        "bits_per_weight": model.bits_per_weight,
        **run_bits(read_config(args.folder)),
        "cpu": machine.cpu_name(),
        "versions": versions(),
    }
    if args.device:
        from latticeq.cli.bench_device import device_result

        result |= device_result(args.device)
    _report(result, speed, contexts)
    if args.no_peaks:
        return result
    if args.device:
        from latticeq.cli.bench_device import beside_bandwidth

        return result | beside_bandwidth(result, args.device)
    return result | _beside_peaks(result)


def _context_result(found: DecodeSpeed, shortest: DecodeSpeed) -> dict[str, Any]:
    return {
        "context": found.context,
        "decode_tokens_per_s": statistics.median(found.decode),
        "decode_spread": [min(found.decode), max(found.decode)],
        "of_shortest": statistics.median(found.of(shortest)),
    }


def _beside_peaks(result: dict[str, Any]) -> dict[str, Any]:
    """Measure the machine's limits, and say how far the model comes."""
    from latticeq.cli.peaks import measure_peaks

    peaks = measure_peaks()
    read, operations = result["bytes_per_token"], 2 * result["prefill_weights"]
    fractions = {
        "bandwidth_fraction": read * result["decode_tokens_per_s"] / peaks.read,
        "int8_fraction": operations * result["prefill_tokens_per_s"] / peaks.int8,
    }
    say(f"limits, {peaks.words()}")
    say(
        f"decoding reads {megabytes(read)} of weights a token: "
        f"{fractions['bandwidth_fraction']:.0%} of the bandwidth; prefill does "
        f"{operations / 1e6:.0f} million operations a token: {fractions['int8_fraction']:.0%} of "
        "the int8 peak"
    )
    return peaks.result() | fractions


def _report(result: dict[str, Any], speed: Speed, contexts: Sequence[DecodeSpeed]) -> None:
    where = result["device"] if "device" in result else thread_words(result["threads"])
    say(f"{result['cpu']}, {where}")
    say(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    say(
        f"weights {result['dtype']}, {result['bits_per_weight']:.3f} bits in the linears, runtime "
        f"{result['runtime']}; "
        f"{result['prompt_tokens']} prompt tokens, {result['decode_tokens']} decoded, "
        f"{result['repeats']} repeats"
    )
    say(f"{run_words(result)}\n")
    rows: list[tuple[object, ...]] = [("", "median", "lowest", "highest")]
    lines = [
        ("prefill, tokens/s", speed.prefill),
        ("decode, tokens/s", speed.decode),
        ("first token, s", speed.first),
    ]
    lines += [(f"decode after {found.context}, tokens/s", found.decode) for found in contexts]
    lines += [
        (f"after {found.context} / after {contexts[0].context}", found.of(contexts[0]))
        for found in contexts[1:]
    ]
    for name, values in lines:
        rows.append((name, *map(short, (statistics.median(values), min(values), max(values)))))
    say(table(rows))
    if fewer := result["steps_on_fewer_threads"]:
        say(
            f"\n{fewer} tokens were decoded on fewer threads, as other programs held cores "
            "meanwhile: measure again on a machine that does nothing else"
        )
    say(
        f"\nload {duration(result['load_s'])}; first run, with compiling and reading the weights, "
        f"{duration(result['warmup_s'])}"
    )
    if result["peak_rss_mib"] is not None:
        say(f"peak memory {result['peak_rss_mib']:.0f} MiB, the mapped weights included")
