"""The report of ``latticeq bench accuracy``: tables and plots of figures that are on disk.

Nothing is measured here: measured figures come from the files, sentences say how to read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latticeq.cli.accuracy_grid import FLOAT, GRID, RATES, Row
from latticeq.cli.comparison import Results, compare
from latticeq.errors import FormatError

__all__ = ["write_report"]

_HEADLINES = (
    ("w-nest-qa-ldlq", "kv-nest-qa-ldlq", "a-nest"),
    ("w-published-ldlq", "kv-published-ldlq", "a-published"),
    ("w-pvq-qa-ldlq", "kv-pvq-qa-ldlq", "a-pvq-general"),
    ("w-pvq-ldlq", "kv-pvq-ldlq", "a-pvq-ldlq"),
    ("w-int4-ldlq", "kv-int4-ldlq", "a-int4-ldlq"),
    ("w-int4-g64-ldlq", None, "a-int4-g64-ldlq"),
)
_FORMS = {
    "none": "no feedback",
    "ldlq": "LDLQ",
    "isotropic": "QA, isotropic",
    "diagonal": "QA, diagonal",
    "full": "QA, full",
    "general": "QA, general",
}
_STEPS = (
    ("a-nest-plain-none", "weights, cache and activations coded, no feedback"),
    ("a-nest-plain-ldlq", "LDLQ"),
    ("a-nest-plain-isotropic", "QA-LDLQ, isotropic, on the partly quantized model"),
    ("a-nest-plain-general", "QA-LDLQ, general form, half a step"),
    ("a-nest", "channels smoothed, keys centred"),
)


_PICTURES = ("perplexity", "distortion", "lengths")

Pair = tuple[str, str, str]
"""A row, another that differs from it in one thing, and what both are called."""

_PAIRS: tuple[tuple[str, str, tuple[str, str], tuple[Pair, ...]], ...] = (
    (
        "What fitted scales gain",
        "Tuned scales are those of Gaussian numbers. Fitted ones are fitted, before anything is\n"
        "quantized, to rows of the model: a set for each kind of linear, and for keys, values and\n"
        "activations where they are coded.",
        ("tuned", "fitted"),
        (
            ("w-nest-qa-ldlq", "w-nest-fitted-qa-ldlq", "weights"),
            ("a-nest", "a-nest-fitted", "weights, cache and activations"),
        ),
    ),
    (
        "Rotating values",
        "Rotating over the head spreads large channels over all of it. The cache codes values so\n"
        "unless it is told not to.",
        ("rotated", "not rotated"),
        (("kv-nest-ldlq", "kv-nest-ldlq-values-plain", "weights and cache"),),
    ),
)


def write_report(results: Results, path: Path, work: Path) -> None:
    """Write the report, and its plots beside it.

    Parameters
    ----------
    results : mapping
        Figures by the names of rows.
    path : Path
        A Markdown file; replaced if it is there.
    work : Path
        Where ``distortion.json`` and ``lengths.json`` are, if the report is to have them: the
        output of ``latticeq bench distortion --json`` and ``latticeq bench lengths SRC --json``.

    Raises
    ------
    FormatError
        If the float model was not measured.
    """
    from latticeq.cli.accuracy_plot import draw_perplexity
    from latticeq.cli.bench_lengths import WIDEST
    from latticeq.cli.bench_plot import draw_distortion
    from latticeq.cli.lengths_plot import draw_lengths

    if FLOAT not in results:
        raise FormatError(f"{work} has no figures of {FLOAT}: measure that row first")
    windows = _common_windows(results)
    parts = [_introduction(results, windows), _headlines(results, windows)]
    pictures = {name: path.with_name(f"{path.stem}-{name}.svg") for name in _PICTURES}
    draw_perplexity(results, windows, pictures["perplexity"])
    parts.append(f"![Perplexity lost against bits]({pictures['perplexity'].name})\n")
    titles = {
        "w": "Weights",
        "w+kv": "Weights and cache",
        "w+kv+a": "Weights, cache and activations",
    }
    parts += [_table_of(results, regime, title, windows) for regime, title in titles.items()]
    parts += [_forms(results, windows), _steps(results, windows)]
    parts += [_pairs(results, windows, *section) for section in _PAIRS]
    parts.append(_whole_text(results))
    parts.append(_rates(results, windows))
    if (found := _measured(work, "lengths", "rows", "group")) is not None:
        draw_lengths(found["rows"], found["group"], WIDEST, pictures["lengths"])
        parts.append(_lengths(found, pictures["lengths"].name))
    if (found := _measured(work, "distortion", "rows", "pvq_splits")) is not None:
        draw_distortion(found["rows"], pictures["distortion"])
        parts += [_distortion(found, pictures["distortion"].name), _splits(found["pvq_splits"])]
    path.write_text("\n".join(part for part in parts if part), "utf-8")


def _measured(work: Path, subject: str, *needed: str) -> Any:
    """Return what ``latticeq bench SUBJECT --json`` printed into a file, if there is the file.

    Raises
    ------
    FormatError
        If it lacks a field, as that of an older version may.
    """
    path = work / f"{subject}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8").splitlines()[-1])
        missing = [name for name in needed if name not in found]
    except (ValueError, IndexError, TypeError):
        missing = list(needed)
    if missing:
        raise FormatError(
            f"{path} has no {', '.join(missing)}; make it again: latticeq bench {subject} --json"
        )
    return found


def _common_windows(results: Results) -> int:
    return min(len(found["perplexity"]["window_losses"]) for found in results.values())


def _lines(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _introduction(results: Results, windows: int) -> str:
    settings = results[FLOAT]["settings"]
    machines = sorted(
        {"+".join(found.get("devices") or [found["cpu"]]) for found in results.values()}
    )
    software = sorted({_software(found["versions"]) for found in results.values()})
    return f"""# Accuracy

Every figure here is measured on packed bytes that were written to disk, verified and read back:
weights, and where a regime codes them the cache of keys and values and the inputs of all linears.
Token embeddings and the tied head are int8 in all rows but float32's. Products are those of
`--runtime float32`: what the bytes say, without the rounding of activations to int8 that makes the
other runtimes fast ([performance](performance.md) says what it costs).

- text: `{settings["text"]}`, windows of {settings["context"]} tokens that do not overlap, the first
  {windows} of them unless a table says otherwise; perplexity is the exponential of the mean over
  all targets. The float32 model has {compare(results, FLOAT, windows).perplexity:.3f};
- calibration: {settings["calibration_tokens"]} tokens of `{settings["calibration"].split()[0]}`;
- the gap is what a row loses against float32, with its paired standard error over windows;
- bits count every byte: digits, scales, scale indices, norms, padding;
- share lost is the mean over all linears of the share of a layer's output that quantizing its
  weights loses on the calibration text, under the metric of the row's feedback;
- {len(results)} of the grid's {len(GRID)} rows are measured; seconds are those of quantizing, with
  the threads that the row's run was given;
- the figures as they were measured, window by window, are in the report's working folder;
- machines: {"; ".join(machines)};
- software: {"; ".join(software)}.

```sh
latticeq bench distortion --json > docs/accuracy/distortion.json
latticeq bench lengths SRC --json > docs/accuracy/lengths.json
latticeq bench accuracy SRC --text test.txt --calibration valid.txt --windows {windows} --full \\
  --work docs/accuracy --report docs/accuracy.md
```
"""


def _software(versions: Mapping[str, str]) -> str:
    names = ("python", "numpy", "numba", "scipy")
    return ", ".join(f"{name} {versions[name]}" for name in names if name in versions)


def _headlines(results: Results, windows: int) -> str:
    rows = []
    for names in _HEADLINES:
        known = [name for name in names if name in results]
        if not known:
            continue
        cells = [_gap_cell(results, name, windows) for name in names]
        first = next(row for row in GRID if row.name == known[0])
        rows.append([f"{first.label}, {_feedback(first)}", *cells])
    heading = ("gap of perplexity", "weights", "and cache", "and activations")
    return f"## In one table\n\n{_lines(heading, rows)}"


def _gap_cell(results: Results, name: str | None, windows: int | None) -> str:
    if name is None or name not in results:
        return ""
    found = compare(results, name, windows)
    return f"{found.gap:.3f} ± {found.stderr:.3f}"


def _bits(value: float) -> str:
    return "32" if value == 32 else f"{value:.3f}"


def _table_of(results: Results, regime: str, title: str, windows: int) -> str:
    rows = []
    for row in GRID:
        if row.regime != regime or row.name not in results:
            continue
        found, beside = results[row.name], compare(results, row.name, windows)
        loss = found["quantize"]["proxy_loss"]
        rows.append(
            (
                row.label,
                _feedback(row),
                _bits(found["bits_per_weight"]),
                _bits(found["cache_bits"]),
                _bits(found["activation_bits"]),
                f"{beside.perplexity:.3f}",
                f"{beside.gap:.3f} ± {beside.stderr:.3f}",
                "" if loss is None else f"{loss:.5f}",
                f"{found['quantize']['seconds']:.0f}",
                f"`{row.name}`",
            )
        )
    heading = (
        "method",
        "feedback",
        "bits W",
        "bits KV",
        "bits A",
        "perplexity",
        "gap",
        "share lost",
        "seconds",
        "row",
    )
    return f"## {title}\n\n{_lines(heading, rows)}" if rows else ""


def _feedback(row: Row) -> str:
    feedback = str(row.options.get("feedback", "qa-ldlq"))
    if feedback != "qa-ldlq":
        return feedback
    return f"qa-ldlq, {row.options.get('qa_form', 'general')}"


def _forms(results: Results, windows: int) -> str:
    keys = {
        "nest-plain": "NestQuant q=16 k=4",
        "mxfp4": "MXFP4",
        "nvfp4": "NVFP4",
        "int4": "int4 per row",
    }
    rows = []
    for form, label in _FORMS.items():
        cells = [_gap_cell(results, f"a-{key}-{form}", windows) for key in keys]
        if any(cells):
            rows.append((label, *cells))
    if not rows:
        return ""
    return f"""## Does QA-LDLQ carry over to MXFP4 and NVFP4?

Weights, cache and activations coded, neither smoothed nor centred; the gap of perplexity by what
the feedback knows of the inputs. LDLQ takes inputs for exact. "Isotropic", "diagonal" and "full"
take the error of the activations' code for noise that is independent of them, measured on the
partly quantized model. "General" measures both moments beside the float model and takes half a step
to their target.

{_lines(("feedback", *keys.values()), rows)}"""


def _steps(results: Results, windows: int) -> str:
    rows, before = [], None
    for name, label in _STEPS:
        if name not in results:
            continue
        found = compare(results, name, windows)
        gain = ""
        if before is not None:
            step = compare(results, name, windows, before)
            gain = f"{step.gap:+.3f} ± {step.stderr:.3f}"
        rows.append((label, f"{found.perplexity:.3f}", f"{found.gap:.3f}", gain))
        before = name
    if not rows:
        return ""
    heading = ("each with the ones before", "perplexity", "gap", "change, paired")
    return f"## What each step gained, all coded with NestQuant q=16 k=4\n\n{_lines(heading, rows)}"


def _pairs(
    results: Results, windows: int, title: str, words: str, ways: tuple[str, str], pairs: Any
) -> str:
    """Return a section of rows beside others that differ in one thing, where both are measured."""
    rows = []
    for name, other, label in pairs:
        if name in results and other in results:
            change = compare(results, other, windows, name)
            cells = [f"{compare(results, one, windows).perplexity:.3f}" for one in (name, other)]
            rows.append((label, *cells, f"{change.gap:+.3f} ± {change.stderr:.3f}"))
    if not rows:
        return ""
    return f"## {title}\n\n{words}\n\n{_lines(('', *ways, 'change, paired'), rows)}"


def _whole_text(results: Results) -> str:
    whole = len(results[FLOAT]["perplexity"]["window_losses"])
    rows = []
    for row in GRID:
        found = results.get(row.name)
        if found is None or len(found["perplexity"]["window_losses"]) < whole:
            continue
        beside = compare(results, row.name)
        label = f"{row.label}, {row.regime or 'the model'}"
        gap = "" if row.name == FLOAT else f"{beside.gap:.3f} ± {beside.stderr:.3f}"
        half = found["perplexity"]["perplexity_second_half"]
        stderr = found["perplexity"]["stderr"]
        where = "+".join(found.get("devices") or ["CPU"])
        rows.append((label, f"{beside.perplexity:.3f} ± {stderr:.3f}", gap, f"{half:.3f}", where))
    if len(rows) < 2 or whole == _common_windows(results):
        return ""
    heading = ("method", "perplexity ± stderr", "gap, paired", "second half of windows", "run on")
    return f"## The whole text: {whole} windows\n\n{_lines(heading, rows)}"


def _rates(results: Results, windows: int) -> str:
    rows = []
    for name in ("w-pvq-ldlq", *(f"w-pvq{bits:g}-ldlq" for bits in RATES)):
        if name in results:
            found = compare(results, name, windows)
            cells = (f"{found.perplexity:.3f}", f"{found.gap:.3f} ± {found.stderr:.3f}")
            rows.append((results[name]["bits_per_weight"], *cells))
    if not rows:
        return ""
    lines = [(f"{bits:.3f}", *cells) for bits, *cells in sorted(rows)]
    return f"""## PVQ at any rate

Weights in groups of 16, LDLQ. The bits are any number: pulses and levels fill them.

{_lines(("bits W", "perplexity", "gap"), lines)}"""


def _lengths(found: Mapping[str, Any], picture: str) -> str:
    rows = [
        (
            f"`{row['kind']}`",
            row["columns"],
            row["groups"],
            f"{row['distance']:.4f}",
            f"{row['distance_unrotated']:.4f}",
        )
        for row in found["rows"]
    ]
    heading = ("matrices", "columns D", "groups", "distance, rotated", "not rotated")
    group = found["group"]
    return f"""## Do lengths keep the Beta law?

PVQ's levels are the best ones if the share of a row's energy that a group of g weights has follows
Beta(g/2, (D - g)/2), as it does for a row that points in a uniform direction. All groups of {group}
weights of the model (`latticeq bench lengths`), by the Kolmogorov-Smirnov distance from that law:
the largest difference between the distribution functions.

{_lines(heading, rows)}
![Energy of groups of weights, and the Beta law]({picture})
"""


def _splits(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    most = max(way["gain_bits"] for row in ways.values() for way in row)
    rows = []
    for bits, row in ways.items():
        best = min(row, key=lambda way: float(way["error"]))
        errors = {way["gain_bits"]: f"{way['error']:.5f}" for way in row}
        errors[best["gain_bits"]] = f"**{errors[best['gain_bits']]}**"
        cells = [errors.get(gain, "") for gain in range(most + 1)]
        rows.append((bits, best["pulses"], *cells))
    heading = ("bits", "pulses", *(f"{gain} for the gain" for gain in range(most + 1)))
    return f"""## How PVQ splits its bits

What an entry of N(0, 1) is expected to lose in groups of 16, by the bits that a group spends on its
gain; the others name its word. The best is taken, with so many pulses.

{_lines(heading, rows)}"""


def _distortion(found: Mapping[str, Any], picture: str) -> str:
    rows = [
        (
            row["method"],
            f"{row['bits_per_entry']:.3f}",
            f"{row['mse']:.5f}",
            f"{row['mse_ratio']:.2f}",
            f"{row['product_error']:.5f}",
            f"{row['product_ratio']:.3f}",
        )
        for row in found["rows"]
    ]
    heading = ("method", "bits R", "error", "over 2^(-2R)", "product error", "over Γ(R)")
    return f"""## Distortion of Gaussian matrices

Two {found["size"]} x {found["size"]} matrices of N(0, 1), quantized by each method and multiplied
from their codes (`latticeq bench distortion`). No code of R bits has a ratio below 1. The product
carries the errors of both operands, and Γ(R) = 2·2^(-2R) - 2^(-4R), so its ratio is nearly that of
one matrix. A ratio of 1.5 is 1.8 dB. Of these 0.88 dB are the cells of E8: 0.65 of the 1.53 dB that
rounder cells can gain over cubes. The Leech lattice, with 1.03 dB, would give a ratio of 1.4 here,
and a trellis code of 1.3 dB one of 1.3. The other 0.9 dB are spent on being a fixed number of bits
a block, in a union of few scales; a single fine scale under an entropy code would save most of it.

{_lines(heading, rows)}
![Distortion against rate]({picture})
"""
