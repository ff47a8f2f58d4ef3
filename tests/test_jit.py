"""The cache of compiled kernels: what starts a fresh one, who may write to it, what is removed."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latticeq import jit

PACKAGE = Path(jit.__file__).parent

WRITER = """
import numpy as np
from latticeq.jit import kernel

@kernel
def total(x):
    sum = x[0]
    for i in range(1, len(x)):
        sum += x[i]
    return sum

def check(kind):
    x = np.arange(1, 5).astype(kind)
    assert total(x) == x.sum(), kind
"""
KINDS = ("int8", "int64", "float32", "complex128")


def _kernels(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Yield the functions that are compiled or inlined into compiled code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = {ast.unparse(d).split("(")[0] for d in node.decorator_list}
            if names & {"kernel", "word"}:
                yield node


def test_all_that_is_compiled_stands_in_kernel_sources() -> None:
    sources = set(jit.kernel_sources())
    strays = []
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        kernels = list(_kernels(tree))
        if kernels and path not in sources:
            strays.append(f"{path}: has kernels")
        origin = {
            alias.asname or alias.name: node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latticeq.")
            for alias in node.names
        }
        for kernel in kernels:
            for node in ast.walk(kernel):
                module = origin.get(node.id) if isinstance(node, ast.Name) else None
                file = PACKAGE.parent.joinpath(*(module or "latticeq.jit").split("."))
                if not {file.with_suffix(".py"), file / "__init__.py"} & sources:
                    strays.append(f"{path}: {kernel.name} takes {ast.unparse(node)} of {module}")
    assert not strays


def test_what_cannot_change_compiled_code_is_left_out() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in jit.kernel_sources()}
    assert {"jit.py", "simd/words.py", "codes/voronoi.py", "transforms/hadamard.py"} <= names
    assert not names & {"errors.py", "cli/main.py", "cli/machine.py", "model/llama.py"}
    assert 10 < len(names) < len(list(PACKAGE.rglob("*.py"))) / 2


def _python(folder: Path, cache: Path, words: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(folder), str(PACKAGE.parent)])
    settings = os.environ | {"LATTICEQ_CACHE_DIR": str(cache), "PYTHONPATH": path}
    command = [sys.executable, "-c", words]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not jit.IS_JIT, reason="nothing is compiled")
def test_processes_that_start_at_once_on_an_empty_cache(tmp_path: Path) -> None:
    (tmp_path / "writer.py").write_text(WRITER)
    cache = tmp_path / "cache"
    words = "import writer\nwriter.check({!r})"
    processes = [_python(tmp_path, cache, words.format(kind)) for kind in KINDS]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * len(KINDS)
    again = f"import writer\nfor kind in {KINDS!r}: writer.check(kind)\n"
    again += "stats = writer.total.stats\n"
    again += "print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))"
    # Nothing that one process compiled was lost to another, or kept under the wrong types.
    assert _python(tmp_path, cache, again).communicate()[0].split() == [str(len(KINDS)), "0"]


def test_folders_that_nobody_uses_are_removed(cache_folder: Path) -> None:
    kernels = cache_folder / "kernels"
    old, recent, other = (kernels / name for name in ("0.60-" + "0" * 16, "0.61-" + "a" * 16, "x"))
    for folder in (old, recent, other):
        folder.mkdir(parents=True)
        (folder / "f.nbc").touch()
        os.utime(folder, (0, 0))
    os.utime(recent)
    jit.kernel_cache.cache_clear()
    try:
        folder = jit.kernel_cache()
    finally:
        jit.kernel_cache.cache_clear()
    assert {path.name for path in kernels.iterdir()} == {recent.name, other.name, folder.name}
