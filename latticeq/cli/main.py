"""The ``latticeq`` command: finds the verb, parses its arguments, and turns errors into exit codes.

A verb is a module with ``HELP``, ``add_arguments(parser)`` and ``run(args)``, which returns what
``--json`` prints. Only the chosen verb's module is imported, and it imports NumPy and Numba inside
``run``: help and usage errors stay quick, and the thread limits are set before either library reads
them. A verb with several subjects, such as ``bench distortion``, names their modules in
``SUBJECTS``; each has options of its own.

Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 a checksum does not match, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from latticeq.cli import console
from latticeq.cli.machine import limit_threads
from latticeq.errors import InputError, LatticeqError, VerificationError

__all__ = ["VERBS", "main"]

VERBS = {
    "pull": "download a model into the cache folder",
    "quantize": "turn a float model into packed lattice codes",
    "inspect": "show what a quantized model holds, from its bytes",
    "verify": "re-read a quantized model and check every checksum",
    "perplexity": "measure the perplexity of a model on a text file",
    "generate": "continue a prompt with a model",
    "chat": "talk with a model, turn by turn",
    "bench": "measure tokens a second, memory and load time",
    "warmup": "compile the kernels that models need, ahead of time",
    "demo": "pull, quantize, verify, measure and run a small model",
    "env": "show what this machine will run, and with what",
}
"""One line for each verb, in the order of use; the verb's module is ``latticeq.cli.VERB``."""

USAGE, FAILURE, MISMATCH, INTERRUPTED = 2, 1, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``latticeq``; those of this process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return _run(words)
    except SystemExit as stop:  # argparse has printed its help or its error
        return stop.code if isinstance(stop.code, int) else FAILURE
    except KeyboardInterrupt:
        console.say(
            f"\ninterrupted. {console.resume_hint() or 'Run the same command to start again.'}"
        )
        return INTERRUPTED
    except BrokenPipeError:
        console.silence_broken_pipe()
        return FAILURE
    except (LatticeqError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        console.say(f"latticeq: error: {_explain(error)}")
        return _exit_code(error)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        if words:
            console.show(_overview())
            return 0
        console.say(_overview())
        return USAGE
    verb = words[0]
    if verb == "--version":
        from latticeq import __version__

        console.show(f"latticeq {__version__}")
        return 0
    if verb not in VERBS:
        console.say(f"latticeq: error: {_unknown(verb)}")
        return USAGE
    command, module, rest = _module(verb, words[1:])
    args = _parser(command, module).parse_args(rest)
    args.threads = limit_threads(args.threads)
    result = module.run(args)
    if args.json:
        console.show(console.json_line(result))
    return 0


def _module(verb: str, words: list[str]) -> tuple[str, ModuleType, list[str]]:
    """Return the command's name, the module of the verb or its subject, and the words after it."""
    module = import_module(f"latticeq.cli.{verb}")
    subjects: dict[str, str] = getattr(module, "SUBJECTS", {})
    if words and words[0] in subjects:
        return f"{verb} {words[0]}", import_module(subjects[words[0]]), words[1:]
    return verb, module, words


def _overview() -> str:
    verbs = "\n".join(f"  {verb:<12}{text}" for verb, text in VERBS.items())
    return (
        "usage: latticeq VERB ...\n\n"
        "Quantize Llama models with lattice codes and run them on a CPU.\n\n"
        f"verbs:\n{verbs}\n\n"
        "'latticeq VERB --help' explains a verb; 'latticeq --version' prints the version."
    )


def _unknown(verb: str) -> str:
    nearest = difflib.get_close_matches(verb, VERBS, n=1)
    if verb.startswith("-"):
        return f"option {verb} belongs after a verb: latticeq VERB {verb}"
    suggestion = f"did you mean '{nearest[0]}'?" if nearest else "the verbs are " + ", ".join(VERBS)
    return f"there is no verb '{verb}': {suggestion}"


def _parser(command: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"latticeq {command}", description=f"{module.HELP}.", allow_abbrev=False
    )
    parser.set_defaults(seed=0)  # a verb may set another default
    module.add_arguments(parser)
    common = parser.add_argument_group("common to all verbs")
    common.add_argument(
        "--threads",
        type=_positive,
        metavar="N",
        help="threads to use (default: the physical cores; a second thread on a core only slows "
        "the kernels down)",
    )
    common.add_argument(
        "--seed",
        type=_seed,
        metavar="N",
        help="seed of everything that is drawn at random (default: %(default)s; runs repeat)",
    )
    common.add_argument(
        "--json", action="store_true", help="end stdout with the result as one line of JSON"
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1024")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _explain(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return (
            f"out of memory{f' ({error})' if str(error) else ''}: close other programs, use a "
            "shorter context or fewer calibration tokens, or a smaller model"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}: free some space, or choose another folder"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _exit_code(error: Exception) -> int:
    if isinstance(error, InputError):
        return USAGE
    return MISMATCH if isinstance(error, VerificationError) else FAILURE
