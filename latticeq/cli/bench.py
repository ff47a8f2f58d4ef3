"""The verb ``latticeq bench``: measurements, a module for each subject.

``latticeq bench DIR`` measures the speed of a model; ``latticeq bench SUBJECT`` what the subject's
module says. Subjects have options of their own, so the command line hands them over before it reads
any (see `latticeq.cli.main`).
"""

from __future__ import annotations

import argparse

from latticeq.cli import bench_model
from latticeq.cli.bench_model import run

__all__ = ["HELP", "SUBJECTS", "add_arguments", "run"]

HELP = "measure tokens a second, memory and load time"

SUBJECTS = {
    "accuracy": "latticeq.cli.bench_accuracy",
    "distortion": "latticeq.cli.bench_distortion",
    "kernels": "latticeq.cli.bench_kernels",
    "lengths": "latticeq.cli.bench_lengths",
    "quantize": "latticeq.cli.bench_quantize",
}
"""What else can be measured, and the module that does it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``latticeq bench DIR``, and name the other subjects."""
    bench_model.add_arguments(parser)
    commands = ", ".join(f"'latticeq bench {subject} --help'" for subject in SUBJECTS)
    parser.epilog = (
        f"Other measurements, which need no model: {commands}. (A folder of such a name is ./NAME.)"
    )
