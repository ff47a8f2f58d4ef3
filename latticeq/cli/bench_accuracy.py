"""What ``latticeq bench accuracy`` measures: the perplexity that every method leaves of a model.

Each row of the grid (`latticeq.cli.accuracy_grid`) is quantized into a checkpoint, verified, read
back from disk and measured; its figures are kept as a file of their own, so that the same command
goes on where it was stopped, and several may share the work (``--rows``). The report is written
from those files alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli import machine
from latticeq.cli.accuracy_grid import FLOAT, GRID, QUICK, Row, chosen_rows
from latticeq.cli.console import on_interrupt, say
from latticeq.cli.contents import read_config, run_bits
from latticeq.cli.device import add_device_argument, load_model
from latticeq.cli.env import versions
from latticeq.cli.tables import duration
from latticeq.errors import FormatError, InputError, LatticeqError, context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure the perplexity that every method leaves of a model, and write the report"

_ROW_S = 480  # a row that is calibrated takes about so long on two cores, for SmolLM2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", metavar="SRC", type=Path, help="a float model folder")
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        default=None,
        help="what perplexity is measured on (default: the held-out part of the built-in text)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE|builtin",
        default="builtin",
        help="what quantization is calibrated on (default: the built-in text)",
    )
    parser.add_argument("--calibration-tokens", metavar="N", type=int, default=32768)
    parser.add_argument("--context", metavar="N", type=int, default=2048)
    parser.add_argument(
        "--windows",
        metavar="N",
        type=int,
        default=10,
        help="windows that every row is measured on (default %(default)s)",
    )
    parser.add_argument(
        "--full", action="store_true", help="measure the headline rows on the whole text"
    )
    parser.add_argument(
        "--rows",
        metavar="PATTERN,..",
        type=lambda text: text.split(","),
        default=["*"],
        help="names of rows, with * and ?: commands with different rows can share a folder and run "
        f"at once ({len(GRID)} rows; default all, which takes hours)",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"only {', '.join(QUICK)}, on 2 windows: minutes"
    )
    parser.add_argument(
        "--work",
        metavar="DIR",
        type=Path,
        default=Path("accuracy"),
        help="where figures are kept, and packed models meanwhile (default ./%(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the packed models there, too")
    add_device_argument(parser)
    parser.add_argument(
        "--report",
        metavar="FILE.md",
        type=Path,
        default=None,
        help="write the report of all figures in the folder, with plots beside it (needs the extra "
        "latticeq[plot])",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the rows that are not measured yet, and write the report if asked to."""
    from latticeq.cli.accuracy_report import write_report
    from latticeq.cli.bench_plot import check_plot
    from latticeq.cli.progress import compile_notice

    rows = chosen_rows(list(QUICK) if args.quick else args.rows)
    if args.quick:
        args.windows = min(args.windows, 2)
    if args.report is not None:
        check_plot(args.report.with_suffix(".svg"))
    devices = _devices(args)
    settings = _settings(args)
    folder = args.work / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for row in _measured(folder):
        _check_same(folder, row, {"model": settings["model"]})
    tokens = _tokens(args)
    left = [row for row in rows if not _is_done(folder, row, settings, _windows(row, tokens, args))]
    if devices:
        _check_rows(left, args)
    on_interrupt(f"Figures are kept in {args.work}: run the same command to go on.")
    if left:
        compile_notice()
        say(f"{len(left)} of {len(rows)} rows to measure, about {duration(_ROW_S * len(left))}")
    for number, row in enumerate(left, start=1):
        say(f"\n[{number} of {len(left)}] {row.name}: {row.label}")
        _keep(folder / f"{row.name}.json", _measure(row, args, settings, tokens, devices))
    results = {row.name: _read(folder / f"{row.name}.json") for row in _measured(folder)}
    if args.report is not None:
        write_report(results, args.report, args.work)
        say(f"report written to {args.report}")
    return {"work": args.work, "rows": {row.name: results[row.name] for row in rows}}


def _devices(args: argparse.Namespace) -> list[str]:
    """Return the names of the GPUs that perplexity is measured on, none for the CPU."""
    if not args.device:
        return []
    from latticeq.gpu.device import describe

    return [describe(device).name for device in args.device]


def _check_rows(rows: list[Row], args: argparse.Namespace) -> None:
    """Refuse rows that no GPU runs before any is quantized."""
    from latticeq.gpu.cache import check_cache
    from latticeq.model.loader import load_config
    from latticeq.model.options import Options

    config, refused = load_config(args.source), []
    for row in rows:
        cache = Options(**row.options).run_coding().cache
        try:
            check_cache(config, None if cache is None else cache.coding(config.head_dim, None))
        except InputError as error:
            refused.append((row.name, error))
    if refused:
        names = ", ".join(name for name, _ in refused)
        raise InputError(
            f"--device gpu cannot measure the rows {names} ({refused[0][1]}); leave them out of "
            "--rows and measure them by a command without --device"
        )


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what two figures must share to be compared."""
    from latticeq.model.source import contents_fingerprint
    from latticeq.storage.checkpoint import checksum

    calibration = str(args.calibration)
    if calibration != "builtin":
        with context("--calibration"):
            calibration = Path(calibration).name + " " + checksum(_bytes(Path(calibration)))[:16]
    return {
        "model": contents_fingerprint(args.source)[:16],
        "text": "builtin" if args.text is None else args.text.name,
        "text_sha256": None if args.text is None else checksum(_bytes(args.text)),
        "calibration": calibration,
        "calibration_tokens": args.calibration_tokens,
        "context": args.context,
    }


def _tokens(args: argparse.Namespace) -> NDArray[np.int64]:
    """Return the token ids of the text that perplexity is measured on."""
    import numpy as np

    from latticeq.model.builtin_text import heldout_text
    from latticeq.model.tokenizer import Tokenizer

    text = heldout_text() if args.text is None else args.text.read_text("utf-8")
    return np.array(Tokenizer.from_folder(args.source).tokenize(text), np.int64)


def _windows(row: Row, tokens: NDArray[np.int64], args: argparse.Namespace) -> int:
    """Return how many windows a row is to be measured on; one if the text has not even that."""
    whole: int = max(1, len(tokens) // max(args.context, 1))
    return whole if args.full and row.is_headline else min(args.windows, whole)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _measured(folder: Path) -> list[Row]:
    return [row for row in GRID if (folder / f"{row.name}.json").is_file()]


def _is_done(folder: Path, row: Row, settings: dict[str, Any], windows: int) -> bool:
    """Tell whether a row was measured with these settings, on as many windows at least."""
    if not _path(folder, row).is_file():
        return False
    found = _check_same(folder, row, settings)
    return len(found["perplexity"]["window_losses"]) >= windows


def _check_same(folder: Path, row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a row's figures, refusing those of other settings."""
    path = _path(folder, row)
    found = _read(path)
    for name, value in settings.items():
        before = found["settings"].get(name)
        if name == "model" and before is None:
            continue  # written when the times of files told models apart, which no copy keeps
        if before != value:
            raise InputError(
                f"{path} was measured with {name} = {before!r}; now it is {value!r}: choose "
                "another --work, or remove the file"
            )
    return found


def _path(folder: Path, row: Row) -> Path:
    return folder / f"{row.name}.json"


def _read(path: Path) -> dict[str, Any]:
    with context(str(path)):
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise FormatError(f"is no JSON: {error}; remove it") from error
    return found


def _keep(path: Path, figures: dict[str, Any]) -> None:
    """Write a file that is whole or not there."""
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    fresh.replace(path)


def _measure(
    row: Row,
    args: argparse.Namespace,
    settings: dict[str, Any],
    tokens: NDArray[np.int64],
    devices: list[str],
) -> dict[str, Any]:
    from latticeq.model.perplexity import perplexity

    figures: dict[str, Any] = {"label": row.label, "regime": row.regime, "settings": settings}
    folder = args.source
    begun = _Begun(args.work / "models" / f"{row.name}.json", settings, devices)
    if row.name != FLOAT:
        folder = args.work / "models" / row.name
        quantized = _kept(row, folder, args, begun)
        figures["quantize"] = _quantize(row, folder, args) if quantized is None else quantized
        if quantized is None:
            begun.start(figures["quantize"], args.keep)
    # What the bytes say, not what rounding inputs adds.
    where = argparse.Namespace(folder=folder, runtime="float32", device=args.device)
    model, _ = load_model(where)
    start = time.perf_counter()
    found = perplexity(
        model,
        tokens,
        context=args.context,
        windows=_windows(row, tokens, args),
        progress=True,
        measured=begun.windows,
        report=begun.add,
    )
    figures["perplexity"] = found.as_dict()
    figures["perplexity_s"] = round(time.perf_counter() - start, 1)
    figures |= {"bits_per_weight": model.bits_per_weight, **run_bits(read_config(folder))}
    figures |= {"cpu": machine.cpu_name(), "devices": devices, "versions": versions()}
    say(f"perplexity {figures['perplexity']['perplexity']:.3f}")
    if not (args.keep or begun.keep):
        del model  # its weights are mapped
        begun.forget()
        if row.name != FLOAT:
            shutil.rmtree(folder)
    return figures


class _Begun:
    """What is known of a row that is being measured, in a file: a row may take half an hour.

    Parameters
    ----------
    path : Path
    settings : dict
        What is found there of other settings is as good as nothing.
    devices : list of str
        Where windows are measured; those of other devices are measured again.

    Attributes
    ----------
    quantize : dict, or None
        What `_quantize` returned.
    windows : list of (float, float)
        The windows that are measured, as `perplexity` reports them.
    keep : bool
        Whether the model was quantized to be kept.
    """

    def __init__(self, path: Path, settings: dict[str, Any], devices: list[str]) -> None:
        self.path, self.settings, self.devices = path, settings, devices
        found = _read(path) if path.is_file() else {}
        is_same = found.get("settings") == settings
        self.quantize: dict[str, Any] | None = found.get("quantize") if is_same else None
        self.keep = bool(is_same and found.get("keep"))
        self.windows: list[tuple[float, float]] = (
            [(whole, later) for whole, later in found["windows"]]
            if is_same and found.get("devices", []) == devices
            else []
        )

    def start(self, quantize: dict[str, Any], keep: bool) -> None:
        """Begin anew, with a model that was just quantized."""
        self.quantize, self.windows, self.keep = quantize, [], keep
        self._write()

    def add(self, window: tuple[float, float]) -> None:
        """Keep a window."""
        self.windows.append(window)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = ("settings", "devices", "quantize", "windows", "keep")
        _keep(self.path, {name: getattr(self, name) for name in names})

    def forget(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _options(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a row is quantized with."""
    calibration = {
        "calibration_tokens": args.calibration_tokens,
        "calibration_context": args.context,
    }
    return {**calibration, **row.options}


def _kept(row: Row, folder: Path, args: argparse.Namespace, begun: _Begun) -> dict[str, Any] | None:
    """Return what is known of quantizing a row, if that can be measured which was kept of it.

    The packed model must say the same of itself, and be whole.
    """
    from latticeq.model.options import Options
    from latticeq.storage.checkpoint import verify

    if begun.quantize is None or not folder.is_dir():
        return None
    try:
        found = read_config(folder)["quantization_config"]
        verify(folder)
    except LatticeqError as error:
        say(f"{folder} is made again: {error}")
        return None
    defaults = asdict(Options())  # what an older version did not know, it did by default
    wanted = json.loads(json.dumps(asdict(Options(**_options(row, args)))))
    text = found["calibration"]
    if text is not None and text["text"] != "builtin":
        is_same = f"{text['text']} {text['sha256'][:16]}" == begun.settings["calibration"]
    else:
        is_same = text is None or begun.settings["calibration"] == "builtin"
    if not is_same or {**defaults, **found["parameters"]} != wanted:
        return None
    say(f"measured from {folder}, which was kept")
    return begun.quantize


def _quantize(row: Row, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    from latticeq.cli.progress import QuantizeProgress
    from latticeq.model.loader import load_config
    from latticeq.model.quantize import quantize

    if out.exists():  # measured no further than this before
        shutil.rmtree(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with QuantizeProgress(load_config(args.source).num_hidden_layers, lines=False) as progress:
        report = quantize(
            args.source,
            out,
            calibration=args.calibration,
            resume=True,
            report=progress,
            **_options(row, args),
        )
    losses = [layer.proxy_loss for layer in report.layers if layer.proxy_loss is not None]
    return {
        "options": row.options,
        "seconds": report.seconds,
        "bits_per_weight": report.bits_per_weight,
        "nbytes": report.nbytes,
        "proxy_loss": sum(losses) / len(losses) if losses else None,
        "relative_error": sum(layer.relative_error for layer in report.layers) / len(report.layers),
    }
