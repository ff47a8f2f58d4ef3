"""``latticeq bench DIR --threads-list``: the same measurement with several numbers of threads.

Each is made in a fresh process, so that start-up and peak memory are those of that number alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from latticeq.cli import machine
from latticeq.cli.bench_process import own_result
from latticeq.cli.console import say
from latticeq.cli.tables import short, table, thread_words

__all__ = ["child_words", "run_threads"]


def child_words(args: argparse.Namespace, threads: int, repeats: int, peaks: bool) -> list[str]:
    """Return the words of a ``latticeq bench`` that measures this model in another process."""
    words = ["bench", str(args.folder.absolute())]
    for name, value in (
        ("threads", threads),
        ("repeats", repeats),
        ("prompt-tokens", args.prompt_tokens),
        ("decode-tokens", args.decode_tokens),
        ("runtime", args.runtime),
        ("seed", args.seed),
    ):
        words += [f"--{name}", str(value)]
    if not peaks:
        words.append("--no-peaks")
    return words


def run_threads(args: argparse.Namespace) -> dict[str, Any]:
    """Measure with each number of threads, and show a table.

    Raises
    ------
    LatticeqError
        If one of the processes fails.
    """
    runs = []
    for threads in args.threads_list:
        say(f"\n{thread_words(threads)}:")
        words = child_words(args, threads, args.repeats, not args.no_peaks)
        if args.contexts:
            words += ["--contexts", ",".join(map(str, args.contexts))]
        runs.append(own_result(words)[0])
    say(f"\n{machine.cpu_name()}, {machine.physical_cores()} cores\n")
    say(table(_rows(runs)))
    return {"runs": runs}


def _rows(runs: Sequence[dict[str, Any]]) -> list[tuple[object, ...]]:
    contexts = [found["context"] for found in runs[0]["contexts"]]
    peaks = ("of bandwidth", "of int8 peak") if "bandwidth_fraction" in runs[0] else ()
    after = (f"after {context}" for context in contexts)
    heading = ("threads", "prefill", "decode", *after, "first token, s", "load, s", "MiB", *peaks)
    rows: list[tuple[object, ...]] = [heading]
    for run in runs:
        memory = run["peak_rss_mib"]
        row = [str(run["threads"]), short(run["prefill_tokens_per_s"])]
        row.append(short(run["decode_tokens_per_s"]))
        row += [short(found["decode_tokens_per_s"]) for found in run["contexts"]]
        row += [short(run["time_to_first_token_s"]), short(run["load_s"])]
        row.append("unknown" if memory is None else f"{memory:.0f}")
        if peaks:
            row += [f"{run['bandwidth_fraction']:.0%}", f"{run['int8_fraction']:.0%}"]
        rows.append(tuple(row))
    return rows
