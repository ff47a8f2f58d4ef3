"""The option ``--runtime``: how packed matrices are kept in memory and multiplied.

A choice is made from what decides it, which is known before the model is loaded: how much work a
format's codewords are to decode, how many cores share that work, and whether a byte a weight fits
in memory. The number of threads has no say, so that it cannot change what a model answers.
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

from latticeq.cli import machine
from latticeq.cli.console import say
from latticeq.cli.tables import megabytes

__all__ = ["add_runtime_argument", "chosen_runtime"]

CHOICES = ("auto", "packed", "int8", "float32")

FEW_CORES = {"voronoi": 8, "nestquantm": 6, "d8": 4}
"""Below so many cores a format's codewords take longer to decode than a byte a weight to read.

From the bytes a core decodes in a second beside those that memory delivers to all cores; formats
without a kernel for one token always take int8, and cell cubic never does. Nor does Voronoi where
its codewords are laid out anew: its number is for matrices that `can_unfold` says no to.
"""

_ALWAYS = ("pvq", "int4", "nf4", "mxfp4", "nvfp4")

_SHARE = 0.5
"""Of the memory that is free, for int8 weights."""


def add_runtime_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--runtime``."""
    parser.add_argument(
        "--runtime",
        choices=CHOICES,
        default="auto",
        help="how packed weights are run: 'packed' multiplies exactly what is stored, 'int8' "
        "rounds them to a byte a weight at loading (more memory, less decoding), 'float32' decodes "
        "them exactly and rounds no activations (slow: for measurements); 'auto', the default, "
        "takes one of the first two by the format, the cores and the memory, and says which",
    )


def chosen_runtime(folder: Path, choice: str, config: dict[str, Any]) -> str:
    """Return "packed", "int8" or "float32", having said why where it is not what was asked for.

    Where inputs are coded, weights always run as stored, or in float32.

    Parameters
    ----------
    folder : Path
        Of the model, for the message.
    choice : str
        The value of ``--runtime``.
    config : dict
        Its ``config.json``.
    """
    quantized = config.get("quantization_config", {})
    entries = quantized.get("tensors", {})
    linears = [entry for name, entry in entries.items() if ".layers." in name]
    if not linears:
        return "packed"
    if quantized.get("activations") is not None and choice in {"auto", "int8"}:
        if choice == "int8":
            say("runtime packed: int8 would round weights that meet coded inputs, as stored")
        return "packed"
    if choice != "auto":
        return choice
    cores = machine.physical_cores()
    wanted = sorted({str(entry["format"]) for entry in linears if _wants_int8(entry, cores)})
    if not wanted:
        return "packed"
    needed = sum(prod(entry["shape"]) for entry in linears)
    free = machine.available_memory()
    if free is not None and needed > _SHARE * free:
        say(
            f"runtime packed: int8 would be faster for {', '.join(wanted)}, but its "
            f"{megabytes(needed)} are more than half of the {megabytes(free)} of free memory"
        )
        return "packed"
    why = "is not run as stored" if wanted[0] in _ALWAYS else f"decodes slowly on {cores} cores"
    say(
        f"runtime int8: {', '.join(wanted)} {why}, so {folder.name} is kept as int8 in "
        f"{megabytes(needed)} of memory; --runtime packed keeps it as stored"
    )
    return "int8"


def _wants_int8(entry: dict[str, Any], cores: int) -> bool:
    """Tell whether a matrix decodes tokens faster as int8."""
    from latticeq.linear.unfolded import can_unfold
    from latticeq.storage.bits import bit_width

    name = str(entry["format"])
    if name == "voronoi" and can_unfold(entry["shape"][1], bit_width(entry["k"])):
        return False
    return name in _ALWAYS or cores < FEW_CORES.get(name, 0)
