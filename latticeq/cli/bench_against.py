"""``latticeq bench DIR --against LLAMA_BENCH --gguf FILE``: llama.cpp beside us, on one machine.

Both run the same prompt length and the same number of decoded tokens after a warm-up of their own,
once a process, turn by turn: what slows the machine down for a while slows both down, and neither
ever runs while the other does. llama-bench gets none of the settings that we make for our threads.
Weights are what the two folders and files hold, which is for the reader to judge: their sizes are
shown.

llama-bench measures prefill and decoding apart and prints no time to first token. Its time here is
that of the prompt, prompt tokens / prefill speed: the logits after a prompt are part of it.
Peak memory is what the system says of the whole process, mapped weights included, for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.cli import machine
from latticeq.cli.bench_process import Finished, own_result, run_process
from latticeq.cli.bench_threads import child_words
from latticeq.cli.console import say
from latticeq.cli.env import versions
from latticeq.cli.tables import duration, folder_bytes, megabytes, short, table, thread_words
from latticeq.errors import InputError, LatticeqError

__all__ = ["MIN_ALTERNATIONS", "parse_llama_bench", "run_against"]

MIN_ALTERNATIONS = 5

FIELDS = {
    "prefill": ("prefill, tokens/s", True),
    "decode": ("decode, tokens/s", True),
    "first": ("first token, s", False),
    "peak_rss_mib": ("peak memory, MiB", False),
}
"""What is compared: its name for people, and whether more is better."""

SAID = ("model_type", "model_size", "type_k", "backends", "build_commit", "build_number")
"""What llama-bench says of itself and of the model that is kept; not all builds know all of it."""

_SHOWN_LINES = 8  # of output that is not understood


def run_against(args: argparse.Namespace) -> dict[str, Any]:
    """Run both in turn for each number of threads; report medians, spreads and ratios.

    Raises
    ------
    InputError
        If the program or the model file is missing or not what it should be.
    LatticeqError
        If one of the processes fails, or prints what is not understood.
    """
    binary, gguf = _checked_binary(args.against), _checked_gguf(args.gguf)
    alternations = max(args.repeats, MIN_ALTERNATIONS)
    # The first run of a fresh installation compiles kernels: seconds, and memory, of no interest.
    say("first, one uncounted run of each")
    counts = args.threads_list or (args.threads,)
    start = time.perf_counter()
    _run_ours(args, counts[0])
    _, build = _run_theirs(args, binary, gguf, counts[0])
    each = time.perf_counter() - start
    total = each * alternations * len(counts)
    say(
        f"{alternations} runs of each for {len(counts)} numbers of threads: {duration(total)} or so"
    )
    runs = []
    for threads in counts:
        ours: list[dict[str, float | None]] = []
        theirs: list[dict[str, float | None]] = []
        for number in range(alternations):
            theirs.append(_run_theirs(args, binary, gguf, threads)[0])
            ours.append(_run_ours(args, threads))
            done = f"{number + 1} of {alternations}"
            say(f"{thread_words(threads)}, {done}: {_progress(ours, theirs)}")
        runs.append(_compared(threads, ours, theirs))
    result = {
        "runs": runs,
        "alternations": alternations,
        "prompt_tokens": args.prompt_tokens,
        "decode_tokens": args.decode_tokens,
        "model_bytes": folder_bytes(args.folder, "*.safetensors"),
        "gguf_bytes": gguf.stat().st_size,
        "against": build,
        "cpu": machine.cpu_name(),
        "versions": versions(),
    }
    _report(result)
    return result


def _checked_binary(binary: Path) -> Path:
    if not binary.is_file():
        raise InputError(f"--against {binary}: there is no such file; give the llama-bench program")
    if not os.access(binary, os.X_OK):
        raise InputError(f"--against {binary}: it is not executable; give the llama-bench program")
    return binary.absolute()


def _checked_gguf(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"--gguf {path}: there is no such file")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"--gguf {path}: it is not a GGUF file")
    return path.absolute()


def _run_ours(args: argparse.Namespace, threads: int) -> dict[str, float | None]:
    result, done = own_result(child_words(args, threads, 1, peaks=False), show_errors=False)
    return {
        "prefill": result["prefill_tokens_per_s"],
        "decode": result["decode_tokens_per_s"],
        "first": result["time_to_first_token_s"],
        "peak_rss_mib": done.peak_rss_mib,
    }


def _run_theirs(
    args: argparse.Namespace, binary: Path, gguf: Path, threads: int
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Return the numbers of one run, and what llama-bench says of itself."""
    # Decoding begins after the prompt on both sides: its cache is part of the work.
    depths = ("-d", f"0,{args.prompt_tokens}")
    sizes = ("-p", str(args.prompt_tokens), "-n", str(args.decode_tokens), *depths)
    command = (str(binary), "-m", str(gguf), *sizes, "-t", str(threads), "-r", "1", "-o", "json")
    done = run_process(command, environment=machine.foreign_environment())
    if done.code:
        raise LatticeqError(
            f"{binary.name} ended with exit code {done.code}; it wrote\n{_first_lines(done)}"
        )
    prefill, decode, build = parse_llama_bench(done, args.prompt_tokens, args.decode_tokens)
    numbers = {"prefill": prefill, "decode": decode, "first": args.prompt_tokens / prefill}
    return {**numbers, "peak_rss_mib": done.peak_rss_mib}, build


def parse_llama_bench(
    done: Finished, prompt_tokens: int, decode_tokens: int
) -> tuple[float, float, dict[str, Any]]:
    """Read what ``llama-bench -o json`` printed.

    Parameters
    ----------
    done : Finished
    prompt_tokens, decode_tokens : int
        What it was asked for.

    Returns
    -------
    prefill, decode : float
        Tokens a second: from an empty cache, and after a prompt.
    build : dict
        The model's type and the build, as far as it says.

    Raises
    ------
    LatticeqError
        With the first lines of the output, if they lack one of the tests.
    """
    try:
        # Some builds write of their devices before the list.
        tests = json.loads(done.out[done.out.index("[\n") if "[\n" in done.out else 0 :])
        speeds = {
            (test["n_prompt"], test["n_gen"], test["n_depth"]): float(test["avg_ts"])
            for test in tests
        }
        prefill = speeds[prompt_tokens, 0, 0]
        decode = speeds[0, decode_tokens, prompt_tokens]
        if not (prefill > 0 and decode > 0):
            raise ValueError("speeds of zero")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LatticeqError(
            f"the output of llama-bench is not understood ({type(error).__name__}: {error}); "
            f"expected was its JSON of a prompt of {prompt_tokens} and {decode_tokens} decoded. It "
            f"wrote\n{_first_lines(done)}"
        ) from error
    said = {name: tests[0].get(name) for name in SAID}
    return prefill, decode, {name: v for name, v in said.items() if v not in {None, 0, "unknown"}}


def _first_lines(done: Finished) -> str:
    lines = [line[:200] for line in f"{done.out}\n{done.err}".splitlines() if line.strip()]
    return "\n".join(lines[:_SHOWN_LINES]) or "(nothing)"


def _compared(
    threads: int,
    ours: Sequence[Mapping[str, float | None]],
    theirs: Sequence[Mapping[str, float | None]],
) -> dict[str, Any]:
    """Return medians, spreads and the ratio of medians, ours over theirs."""
    result: dict[str, Any] = {"threads": threads, "ours": {}, "theirs": {}, "ratios": {}}
    for field in FIELDS:
        for name, runs in (("ours", ours), ("theirs", theirs)):
            values = [run[field] for run in runs]
            known = [value for value in values if value is not None]
            if len(known) == len(values):
                result[name][field] = {
                    "median": statistics.median(known),
                    "lowest": min(known),
                    "highest": max(known),
                    "runs": known,
                }
        if field in result["ours"] and field in result["theirs"]:
            medians = [result[name][field]["median"] for name in ("ours", "theirs")]
            result["ratios"][field] = medians[0] / medians[1]
    return result


def _progress(
    ours: Sequence[Mapping[str, float | None]], theirs: Sequence[Mapping[str, float | None]]
) -> str:
    """Return the speeds of the last runs."""
    pairs = [
        f"{field} {short(ours[-1][field] or 0)} and {short(theirs[-1][field] or 0)}"
        for field in ("prefill", "decode")
    ]
    return ", ".join(pairs) + " tokens/s"


def _report(result: Mapping[str, Any]) -> None:
    build = result["against"]
    about = ", ".join(f"{name} {value}" for name, value in build.items())
    say(f"\n{result['cpu']}; llama-bench: {about or 'says nothing of itself'}")
    say(
        f"weights: ours {megabytes(result['model_bytes'])}, the GGUF file "
        f"{megabytes(result['gguf_bytes'])}; {result['prompt_tokens']} prompt tokens, "
        f"{result['decode_tokens']} decoded, medians of {result['alternations']} runs in turn"
    )
    for run in result["runs"]:
        rows: list[tuple[object, ...]] = [
            (thread_words(run["threads"]), "ours", "lowest-highest", "llama.cpp", "", "ratio")
        ]
        for field, (name, more_is_better) in FIELDS.items():
            if field in run["ratios"]:
                cells = [*_cells(run["ours"][field]), *_cells(run["theirs"][field])]
                better = (run["ratios"][field] > 1) == more_is_better
                rows.append((name, *cells, f"{run['ratios'][field]:.2f}" + " *" * better))
        say(f"\n{table(rows)}")
    say("\nratio: ours over theirs; * marks where ours is better")


def _cells(numbers: Mapping[str, Any]) -> tuple[str, str]:
    low, high = short(numbers["lowest"]), short(numbers["highest"])
    return short(numbers["median"]), f"{low}-{high}"
