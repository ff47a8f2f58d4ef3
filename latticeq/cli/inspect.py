"""The verb ``latticeq inspect``: what a model folder holds, counted from its bytes."""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

from latticeq.cli.console import say
from latticeq.cli.contents import (
    Stored,
    bits_per_weight,
    read_config,
    run_bits,
    run_words,
    stored_tensors,
)
from latticeq.cli.tables import folder_bytes, kind, megabytes, sparkline, table

__all__ = ["HELP", "add_arguments", "run"]

HELP = "show what a quantized model holds, from its bytes"

_MINDED_BY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("q", "k", "shaping", "betas", "selection", "packing"), ("nestquant",)),
    **dict.fromkeys(("bits", "gain_bits"), ("pvq",)),
    "group": ("pvq", "int4", "nf4"),
}
"""The methods that mind a parameter; the others are of all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder, packed or float")
    parser.add_argument(
        "--tensors",
        action="store_true",
        help="list every tensor (default: one line for all layers' tensors of a kind)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="draw into a .png or .svg file what each layer lost, the use of the scales, and the "
        "weights beside the normal law; reads all weights (needs the extra latticeq[plot]; a file "
        "of that name is replaced)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Report provenance, tensors, the use of the scales, and sizes."""
    from latticeq.cli.bench_plot import check_plot
    from latticeq.cli.scale_use import scale_use
    from latticeq.storage.safetensors import TensorFolder

    if args.plot is not None:
        check_plot(args.plot)
    config = read_config(args.folder)
    quantized: dict[str, Any] = config.get("quantization_config", {})
    with TensorFolder(args.folder) as folder:
        tensors = stored_tensors(folder, config)
        shares, saved = scale_use(folder, quantized.get("tensors", {}))
    bits = bits_per_weight(tensor for tensor in tensors if tensor.is_linear)
    weight_bytes = folder_bytes(args.folder, "*.safetensors")
    _say_provenance(config, quantized)
    say(_tensor_table(tensors) if args.tensors else _kind_table(tensors))
    if shares:
        say()
        say(_scale_table(shares))
    say()
    linears = [tensor for tensor in tensors if tensor.is_linear]
    coded_bits = bits - 8 * saved / sum(prod(tensor.shape) for tensor in linears)
    say(
        f"linears: {bits:.3f} bits a weight; weights {megabytes(weight_bytes)}, the folder "
        f"{megabytes(folder_bytes(args.folder))}"
    )
    if saved:
        say(
            f"an entropy code for scale indices would make that {coded_bits:.3f} bits; none is used"
        )
    running = run_bits(config)
    say(run_words(running))
    drawn = {} if args.plot is None else _draw(args, tensors, quantized, shares)
    return {
        **running,
        "bits_per_weight": bits,
        "nbytes": weight_bytes,
        "folder_bytes": folder_bytes(args.folder),
        "method": quantized.get("method"),
        "regime": quantized.get("regime"),
        "parameters": quantized.get("parameters"),
        "calibration": quantized.get("calibration"),
        "software": quantized.get("software"),
        "scale_shares": shares,
        "entropy_coded_bits_per_weight": coded_bits,
        "tensors": [
            vars(tensor) | {"bits_per_weight": tensor.bits_per_weight} for tensor in tensors
        ],
        "plot": args.plot,
        **drawn,
    }


def _draw(
    args: argparse.Namespace,
    tensors: list[Stored],
    quantized: dict[str, Any],
    shares: dict[str, list[float]],
) -> dict[str, Any]:
    """Draw the folder, and return the figures that the picture shows besides the shares."""
    from latticeq.cli.inspect_plot import draw_inspect
    from latticeq.cli.layer_report import REPORT, read_layer_report
    from latticeq.cli.weight_law import weight_laws
    from latticeq.storage.safetensors import TensorFolder

    entries = quantized.get("tensors", {})
    report = read_layer_report(args.folder, entries)
    with TensorFolder(args.folder) as folder:
        laws = weight_laws(folder, tensors, entries)
    draw_inspect(report, shares, laws, args.plot)
    if quantized and not report:
        say(f"there is no {REPORT} in {args.folder}: what each layer lost is not known")
    say(f"drawn in {args.plot}")
    return {"layers": [vars(row) for row in report], "weights": [vars(law) for law in laws]}


def _say_provenance(config: dict[str, Any], quantized: dict[str, Any]) -> None:
    """Say what made the folder; of untrusted JSON, so that nothing is taken for granted."""
    names = config.get("architectures") or ["?"]
    say(f"architecture  {names[0]}, {config.get('num_hidden_layers')} layers")
    if not quantized:
        say("method        none: float weights\n")
        return
    parameters, calibration, software = (
        found if isinstance(found, dict) else {}
        for found in (quantized.get(key) for key in ("parameters", "calibration", "software"))
    )
    method = f"{quantized.get('method')}, regime {quantized.get('regime')}"
    say(f"method        {method}, format version {quantized.get('format_version')}")
    made = quantized.get("method")
    shown = {
        key: value
        for key, value in parameters.items()
        if key not in {"method", "regime"} and made in _MINDED_BY.get(key, (made,))
    }
    say(f"parameters    {', '.join(f'{key} {value}' for key, value in shown.items())}")
    origin = "none"
    if calibration:
        origin = (
            f"{calibration.get('tokens')} tokens of {calibration.get('text')} in windows of "
            f"{calibration.get('context')} (sha256 {str(calibration.get('sha256'))[:16]})"
        )
    say(f"calibration   {origin}")
    rotations = _rotations(quantized["tensors"])
    say(f"rotation      {'; '.join(rotations) or 'none'}")
    say(f"made with     {', '.join(f'{name} {number}' for name, number in software.items())}\n")


def _rotations(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Return each rotation in use, in words."""
    from latticeq.storage.formats.base import rotation_of

    used = {rotation_of(entry) for entry in entries.values() if "rotation" in entry}
    return [rotation.describe() for rotation in sorted(used, key=lambda one: one.n)]


def _tensor_table(tensors: list[Stored]) -> str:
    rows: list[tuple[object, ...]] = [("tensor", "shape", "format", "bits", "bytes")]
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape))
        bits = f"{tensor.bits_per_weight:.3f}"
        rows.append((tensor.name, shape, tensor.format, bits, tensor.nbytes))
    return table(rows)


def _kind_table(tensors: list[Stored]) -> str:
    groups: dict[tuple[str, str, str], list[Stored]] = {}
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape))
        groups.setdefault((kind(tensor.name), shape, tensor.format), []).append(tensor)
    rows: list[tuple[object, ...]] = [("tensors", "count", "shape", "format", "bits", "size")]
    for (name, shape, form), members in groups.items():
        size = megabytes(sum(tensor.nbytes for tensor in members))
        rows.append((name, len(members), shape, form, f"{members[0].bits_per_weight:.3f}", size))
    return table(rows)


def _scale_table(shares: dict[str, list[float]]) -> str:
    rows: list[tuple[object, ...]] = [("use of the scales, smallest first", "", "")]
    for name, found in shares.items():
        rows.append((name, sparkline(found), " ".join(f"{share:6.1%}" for share in found)))
    return table(rows)
