"""The verb ``latticeq quantize``: a float model in, packed lattice codes out."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeq.cli import machine
from latticeq.cli.bench_kernels_gpu import chosen_device
from latticeq.cli.console import on_interrupt, say
from latticeq.cli.contents import size_table
from latticeq.cli.progress import QuantizeProgress, compile_notice
from latticeq.cli.tables import duration, folder_bytes, kind, megabytes, table
from latticeq.errors import LatticeqError

if TYPE_CHECKING:
    from latticeq.model.engine import Engine
    from latticeq.model.estimate import Estimate
    from latticeq.model.options import Options
    from latticeq.model.plan import PlannedTensor
    from latticeq.model.quantize import QuantizeReport

__all__ = ["HELP", "add_arguments", "quantizing_engine", "run"]

HELP = "turn a float model into packed lattice codes"

_WINDOW = 2048  # tokens of a calibration window: as long as those that perplexity is measured on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a Hugging Face folder, or a .gguf file"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    _add_code(parser.add_argument_group("the code"))
    _add_calibration(parser.add_argument_group("error feedback"))
    job = parser.add_argument_group("the job")
    job.add_argument(
        "--device",
        metavar="DEVICE",
        type=chosen_device,
        default=None,
        help="what multiplies, gathers moments and quantizes: 'cpu' (default), or 'gpu' or 'gpu:N' "
        "for one NVIDIA GPU (extra latticeq[gpu], --method nestquant); norms and attention of the "
        "calibration text stay on the CPU",
    )
    job.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be done, with sizes, time and memory; write nothing",
    )
    job.add_argument(
        "--resume", action="store_true", help="go on with an unfinished job of the same settings"
    )
    job.add_argument(
        "--force",
        action="store_true",
        help="delete an existing model OUT and an unfinished job, and start even if memory seems "
        "too small",
    )
    parser.set_defaults(seed=None)


def _add_code(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--method",
        choices=["nestquant", "pvq", "int4", "nf4", "mxfp4", "nvfp4"],
        default="nestquant",
        help="nested E8 lattices (default); pyramid codes, for any number of bits from 1 to 8; or "
        "the scalar formats they are compared with",
    )
    group.add_argument(
        "--regime",
        choices=["w", "w+kv", "w+kv+a"],
        default="w",
        help="what is coded: weights (default), the cache of keys and values too, or activations "
        "as well: less memory and integer products, for more loss",
    )
    group.add_argument(
        "--q",
        metavar="N",
        type=int,
        default=16,
        help="nesting ratio, 2 to 63: log2 N bits a weight, stored in whole bits (default "
        "%(default)s: 4 bits)",
    )
    group.add_argument(
        "--k",
        metavar="N",
        type=int,
        default=4,
        help="scales a block of 8 can choose from, 1 to 16: log2 N bits a block (default "
        "%(default)s: a quarter of a bit a weight)",
    )
    group.add_argument(
        "--shaping",
        choices=["voronoi", "nestquantm", "cubic", "d8"],
        default="voronoi",
        help="the cell that codewords fill: E8's own, which wastes no corners (default); one that "
        "NestQuantM decodes without a search; a box, decoded fastest, worth its k=8; D8's, a block "
        "and its scale in one word of 4.000 bits a weight with q=16 k=8",
    )
    group.add_argument(
        "--packing",
        choices=["digits", "radix"],
        default="digits",
        help="whole bits a digit (default), or two blocks of digits in one number: q=14 then takes "
        "4.07 bits in place of 4.25, and as much memory as before when it runs",
    )
    group.add_argument(
        "--group",
        metavar="N",
        type=int,
        default=None,
        help="weights that share a scale, for int4 (default: a row) and nf4 (default: 64), or a "
        "word and a gain, for pvq (default: 16; larger groups lose a little less and take longer)",
    )
    group.add_argument(
        "--bits",
        metavar="X",
        type=float,
        default=4.25,
        help="bits a weight for pvq, such as 3.25 or 4.25 (default %(default)s); a row's scale "
        "comes on top, 16 bits a row",
    )
    group.add_argument(
        "--gain-bits",
        metavar="N",
        type=int,
        default=None,
        help="how many of pvq's bits a group spends on its length, 0 to 8 (default: what loses "
        "least on Gaussian weights, see --dry-run)",
    )
    group.add_argument(
        "--betas",
        metavar="tuned|fitted|published|X,Y,..",
        type=_betas,
        default="tuned",
        help="the scales: tuned for Gaussian weights (default), fitted to this model, a set for "
        "each kind of weights, keys, values and activations, the paper's authors' (k = 4), or k "
        "increasing numbers",
    )
    group.add_argument(
        "--selection",
        choices=["opt", "first"],
        default="opt",
        help="a block's scale: the one of least error (default), or the smallest that fits, which "
        "is faster and a little worse",
    )
    group.add_argument(
        "--key-offset",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="take the mean key of each head out of keys before they are coded, which attention "
        "does not see (default: where nestquant or pvq codes them)",
    )
    group.add_argument(
        "--rotate-values",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="rotate values over the head before the cache codes them (default)",
    )
    group.add_argument(
        "--rotate",
        choices=["hadamard", "none"],
        default="hadamard",
        help="spread outliers over the row first (default), with random signs if --seed is given",
    )
    group.add_argument(
        "--embedding",
        choices=["int8", "keep"],
        default="int8",
        help="token embeddings and output head: 8 bits a weight, nearly lossless (default), or as "
        "they are",
    )


def _add_calibration(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--feedback",
        choices=["none", "ldlq", "qa-ldlq"],
        default="qa-ldlq",
        help="let later blocks make up for the errors of earlier ones, on a calibration text: for "
        "the inputs of the float model (ldlq), or for those that the quantized model will have, "
        "which takes longer and halves the loss (qa-ldlq, default); none takes seconds",
    )
    group.add_argument(
        "--qa-form",
        choices=["general", "isotropic", "diagonal", "full"],
        default="general",
        help="how qa-ldlq knows the errors of inputs: measured beside the float model (default), "
        "or the error of the activations' code alone, as a number, a diagonal or a matrix",
    )
    group.add_argument(
        "--qa-strength",
        metavar="X",
        type=float,
        default=None,
        help="how far qa-ldlq moves its target, 0 to 1 (default 0.5 for general: a whole step "
        "fits the calibration text better and other texts worse)",
    )
    group.add_argument(
        "--smoothing",
        metavar="X",
        type=float,
        default=None,
        help="move the scale of channels from activations into weights, 0 to 1 (default 0.5 where "
        "nestquant or pvq codes activations, else 0)",
    )
    group.add_argument(
        "--damping",
        metavar="X",
        type=float,
        default=0.01,
        help="added to the Hessians' diagonals, relative to its mean (default %(default)s; raised "
        "tenfold where it is not enough)",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE|builtin",
        default="builtin",
        help="a UTF-8 text like those the model will see; builtin is English about Python, there "
        "on every machine (default)",
    )
    group.add_argument(
        "--calibration-tokens",
        metavar="N",
        type=int,
        default=32768,
        help="how much of it to use, in windows of 2048 (default %(default)s; time grows with it)",
    )


def _betas(text: str) -> str | tuple[float, ...]:
    if text in {"tuned", "fitted", "published"}:
        return text
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither 'tuned', 'fitted' nor 'published', nor numbers such as "
            "3.5,4.5,6,14.5"
        ) from error


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Check everything, say what it will cost, quantize, and report."""
    from latticeq.model.estimate import estimate, measure_speeds
    from latticeq.model.job import check_output, partial_folder
    from latticeq.model.plan import disk_bytes, plan
    from latticeq.model.quantize import quantize
    from latticeq.model.source import is_gguf, model_config

    config = model_config(args.source)
    options = _options(args, config.longest_context)
    engine = quantizing_engine(args.device)
    engine.check(options)
    planned = plan(args.source, options)
    if not args.dry_run:
        check_output(args.out, resume=args.resume, force=args.force)
    compile_notice()
    speeds = measure_speeds(options, config, engine)
    on_device = args.device is not None
    expected = estimate(config, planned, options, speeds, on_device=on_device)
    disk = disk_bytes(planned, is_gguf(args.source))
    needs = {
        "estimated_seconds": round(expected.seconds, 1),
        "estimated_memory_bytes": expected.memory_bytes,
        "disk_bytes": disk,
    }
    if args.dry_run:
        return _dry_run(args.out, planned, expected, needs)
    say(_cost(expected, disk))
    if not args.force:
        _refuse_memory(expected)
    on_interrupt(
        f"Finished blocks are kept in {partial_folder(args.out)}: run the same command with "
        "--resume to go on."
    )
    with QuantizeProgress(config.num_hidden_layers) as progress:
        report = quantize(
            args.source,
            args.out,
            calibration=args.calibration,
            resume=args.resume,
            force=args.force,
            report=progress,
            engine=engine,
            **asdict(options),
        )
    _summarize(args.out, report)
    return {
        "out": str(args.out),
        **asdict(report),
        "folder_bytes": folder_bytes(args.out),
        "peak_rss_mib": machine.peak_rss_mib(),
        "device": "cpu" if args.device is None else f"gpu:{args.device}",
        **needs,
    }


def quantizing_engine(index: int | None) -> Engine:
    """Return what quantizes: a GPU by its index, or the CPU.

    Raises
    ------
    InputError, MissingDependencyError
        If there is no such GPU.
    """
    if index is None:
        from latticeq.model.engine import HostEngine

        return HostEngine()
    from latticeq.gpu.engine import GpuEngine

    return GpuEngine(index)


def _options(args: argparse.Namespace, longest: int) -> Options:
    """Return the library's options; windows are shorter where the model or the text has to be."""
    from latticeq.model.options import Options

    return Options(
        method=args.method,
        regime=args.regime,
        q=args.q,
        k=args.k,
        shaping=args.shaping,
        packing=args.packing,
        group=args.group,
        bits=args.bits,
        gain_bits=args.gain_bits,
        betas=args.betas,
        selection=args.selection,
        rotate=args.rotate,
        seed=args.seed,
        feedback=args.feedback,
        qa_form=args.qa_form,
        qa_strength=args.qa_strength,
        smoothing=args.smoothing,
        key_offset=args.key_offset,
        rotate_values=args.rotate_values,
        damping=args.damping,
        embedding=args.embedding,
        calibration_tokens=args.calibration_tokens,
        calibration_context=min(_WINDOW, longest, max(args.calibration_tokens, 2)),
    )


def _dry_run(
    out: Path, planned: list[PlannedTensor], expected: Estimate, needs: dict[str, Any]
) -> dict[str, Any]:
    linears = [row for row in planned if row.name.startswith("model.layers.")]
    bits = 8 * sum(row.nbytes for row in linears) / _weights(linears)
    total = sum(row.nbytes for row in planned)
    say(_plan_table(planned))
    say()
    say(f"linears: {bits:.3f} bits a weight; all matrices: {megabytes(total)}")
    say(_cost(expected, needs["disk_bytes"]))
    if out.exists():
        say(f"note: {out} exists; the real run will ask for another folder or --force")
    return {
        "dry_run": True,
        "bits_per_weight": bits,
        "nbytes": total,
        **needs,
        "tensors": [asdict(row) for row in planned],
    }


def _plan_table(planned: list[PlannedTensor]) -> str:
    """Return one line for all layers' matrices of one kind."""
    groups: dict[tuple[str, ...], list[PlannedTensor]] = {}
    for row in planned:
        shape = f"{row.shape[0]} x {row.shape[1]}"
        groups.setdefault((kind(row.name), shape, row.method, row.note), []).append(row)
    lines: list[tuple[object, ...]] = [
        ("tensors", "count", "shape", "method", "bits", "bytes", "note")
    ]
    for (name, shape, method, note), rows in groups.items():
        nbytes = sum(row.nbytes for row in rows)
        bits = f"{rows[0].bits_per_weight:.3f}"
        lines.append((name, len(rows), shape, method, bits, megabytes(nbytes), note))
    return table(lines)


def _weights(rows: Iterable[PlannedTensor]) -> int:
    return sum(row.shape[0] * row.shape[1] for row in rows)


def _cost(expected: Estimate, disk_bytes: int) -> str:
    free = machine.available_memory()
    available = "" if free is None else f" of {megabytes(free)} available"
    return (
        f"estimates: {duration(expected.seconds)} (from a measurement just now), "
        f"{megabytes(expected.memory_bytes)} of memory{available}, {megabytes(disk_bytes)} of disk"
    )


def _refuse_memory(expected: Estimate) -> None:
    free = machine.available_memory()
    if free is not None and expected.memory_bytes > free:
        raise LatticeqError(
            f"about {megabytes(expected.memory_bytes)} of memory will be needed and "
            f"{megabytes(free)} are available: close other programs, give --feedback none or fewer "
            "--calibration-tokens, or --force to try anyway"
        )


def _summarize(out: Path, report: QuantizeReport) -> None:
    say()
    say(f"{out}: verified, {duration(report.seconds)}, {report.bits_per_weight:.3f} bits a weight")
    losses = [row for row in report.layers if row.proxy_loss is not None]
    if losses:
        mean = [
            sum(getattr(row, field) or 0.0 for row in losses) / len(losses)
            for field in ("proxy_loss", "proxy_loss_plain", "proxy_loss_rtn")
        ]
        say(
            f"mean share of a layer's output that is lost: {mean[0]:.5f}; without feedback "
            f"{mean[1]:.5f}, rounded to int4 in groups of 32 {mean[2]:.5f}"
        )
    say()
    say(size_table(out))
