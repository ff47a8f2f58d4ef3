"""The option ``--device``: where a model runs, and the one place that loads it there."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from latticeq.cli.contents import read_config
from latticeq.cli.runtime import chosen_runtime
from latticeq.errors import InputError

if TYPE_CHECKING:
    from latticeq.model.llama import Llama

__all__ = ["add_device_argument", "device_list", "load_model"]

_GPU = re.compile(r"gpu(?::(\d{1,4}(?:,\d{1,4})*))?")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Declare ``--device``."""
    parser.add_argument(
        "--device",
        metavar="DEVICE",
        type=device_list,
        default=(),
        help="where to run: 'cpu' (the default), 'gpu' for the first NVIDIA GPU (extra "
        "latticeq[gpu]), or 'gpu:0,1' to split the layers over several; the same folders run on "
        "both, as stored",
    )


def device_list(text: str) -> tuple[int, ...]:
    """Read the value of ``--device``: the GPUs it names, none for the CPU.

    Raises
    ------
    ArgumentTypeError
        If it names no device.

    Examples
    --------
    >>> device_list("cpu"), device_list("gpu"), device_list("gpu:0,1")
    ((), (0,), (0, 1))
    """
    if text == "cpu":
        return ()
    found = _GPU.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no device; it must be cpu, gpu, or gpu: and numbers such as gpu:0,1"
        )
    return tuple(map(int, (found[1] or "0").split(",")))


def load_model(args: argparse.Namespace, context: int | None = None) -> tuple[Llama, str]:
    """Load the model of ``args.folder`` where ``args.device`` says.

    Parameters
    ----------
    args : argparse.Namespace
        With folder, runtime and device.
    context : int, optional
        As in `latticeq.model.loader.load`.

    Returns
    -------
    model : Llama
    runtime : str
        How packed matrices run: as `chosen_runtime` says, and "packed" on a GPU, if not asked for
        otherwise.

    Raises
    ------
    InputError
        If a runtime is asked for that is the CPU's alone.
    MissingDependencyError
        If there is no GPU, or CuPy is missing.
    """
    if args.device:
        from latticeq.gpu.loader import load_gpu

        if args.runtime == "int8":
            raise InputError(
                "--runtime int8 is for the CPU; on a GPU packed weights run as they are stored, or "
                "with --runtime float32 decoded: leave out --runtime or --device"
            )
        runtime = "packed" if args.runtime == "auto" else args.runtime
        return load_gpu(args.folder, context, devices=args.device, runtime=runtime), runtime
    from latticeq.model.loader import load

    runtime = chosen_runtime(args.folder, args.runtime, read_config(args.folder))
    return load(args.folder, context, runtime=runtime), runtime
