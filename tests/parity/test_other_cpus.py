"""Kernels compiled for other CPUs, and not compiled at all, give this CPU's integers."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latticeq.jit import IS_JIT
from latticeq.simd import path
from tests.parity.integer_results import integer_results

TOP = Path(__file__).parents[2]

CPUS = {
    "haswell": "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+cx8,+f16c,+fma,+fxsr,+lzcnt,+mmx,+movbe,"
    "+popcnt,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3",
    "x86-64": "+sse2",
}
"""Features by the name of a CPU: one with AVX2, and the least that x86-64 can be."""

KERNEL_TESTS = (
    "tests/lattices",
    "tests/codes",
    "tests/linear",
    "tests/quantizers/test_nestquant.py",
    "tests/storage/test_bits.py",
    "tests/storage/test_formats.py",
    "tests/golden/test_format_v1.py",
)

pytestmark = pytest.mark.skipif(not IS_JIT, reason="runs the JIT against what it is not")


Process = subprocess.Popen[str]


def start(*command: str, **changes: str) -> Process:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=TOP,
        env=os.environ | {"LATTICEQ_CACHE": "0", "PYTHONPATH": str(TOP)} | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, Process]]:
    """Start all of them at once: they compile for most of their time."""
    module = ("-m", "tests.parity.integer_results")
    options = ("-q", "-x", "-p", "no:cacheprovider", "--no-header")
    started = {
        "none": start(
            "-m", "pytest", *options, *KERNEL_TESTS,
            NUMBA_DISABLE_JIT="1", HYPOTHESIS_PROFILE="fast",
        )
    }  # fmt: skip
    if platform.machine() in {"x86_64", "AMD64"}:
        for cpu, features in CPUS.items():
            started[cpu] = start(*module, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="names x86 CPUs")
@pytest.mark.parametrize(("cpu", "way"), [("haswell", "avx2"), ("x86-64", "generic")])
def test_another_cpu_gives_the_same_integers(
    processes: dict[str, Process], cpu: str, way: str
) -> None:
    if way == "avx2" and path() == "generic":
        pytest.skip("this CPU has no AVX2")
    out, error = processes[cpu].communicate(timeout=600)
    assert processes[cpu].returncode == 0, error
    there = json.loads(out)
    assert there["path"] == way
    assert there["results"] == integer_results()


def test_kernels_without_the_jit(processes: dict[str, Process]) -> None:
    out, _ = processes["none"].communicate(timeout=600)
    assert processes["none"].returncode == 0, out[-5000:]
    assert " passed" in out
