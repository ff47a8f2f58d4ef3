"""The house rules hold in every file, and the checker can tell."""

import subprocess
from pathlib import Path, PurePosixPath

import pytest

from tests.house_rules import MAX_LINES, Source, broken, strangers

TOP = Path(__file__).parent.parent
FOLDERS = ("latticeq", "reference", "tests", "docs", ".ci")
MADE_BY_TOOLS = {"__pycache__", "build", "dist"}


def sources() -> list[PurePosixPath]:
    found = [path for folder in FOLDERS for path in (TOP / folder).rglob("*")]
    found += [TOP / "README.md", TOP / "pyproject.toml"]
    return sorted(
        PurePosixPath(path.relative_to(TOP).as_posix())
        for path in found
        if path.is_file() and (path.suffix in {".py", ".md", ".toml"} or path.parent.name == ".ci")
    )


@pytest.mark.parametrize("path", sources(), ids=str)
def test_every_file_keeps_the_house_rules(path: PurePosixPath) -> None:
    findings = broken(Source(path, (TOP / path).read_text(encoding="utf-8")))
    assert not findings, "\n" + "\n".join(findings)


def test_the_top_level_holds_what_the_design_names() -> None:
    if (TOP / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
        names = {line.split("/")[0] for line in listed.stdout.splitlines()}
    else:
        names = {path.name for path in TOP.iterdir()} - MADE_BY_TOOLS
        names = {name for name in names if not name.endswith(".egg-info")}
    assert strangers(names) == []


def test_a_stranger_at_the_top_is_seen() -> None:
    assert strangers({"latticeq", "README.md", ".ci", "notes.txt"}) == ["notes.txt"]


DOC = '"""What it is."""\n'

BAD = [
    ("import_direction", "latticeq/codes/a.py", DOC + "from latticeq.linear import base\n", 2),
    ("import_direction", "latticeq/codes/a.py", DOC + "import latticeq.model.llama\n", 2),
    ("import_direction", "latticeq/codes/a.py", DOC + "from latticeq import errors, cli\n", 2),
    ("import_direction", "latticeq/codes/a.py", DOC + "from ..storage import bits\n", 2),
    ("import_direction", "latticeq/codes/a.py", DOC + "from latticeq import __version__\n", 2),
    ("import_direction", "latticeq/jit.py", DOC + "def _f():\n    import latticeq.codes\n", 3),
    ("import_direction", "latticeq/new/a.py", DOC, 1),
    ("reference_apart", "latticeq/codes/a.py", DOC + "import reference.e8\n", 2),
    ("reference_apart", "reference/e8.py", DOC + "from latticeq import errors\n", 2),
    ("reference_apart", "reference/e8.py", DOC + "import numba\n", 2),
    ("numba_in_one_place", "latticeq/codes/a.py", DOC + "from numba import njit\n", 2),
    ("numba_in_one_place", "latticeq/cli/a.py", DOC + "def _f():\n    import numba\n", 3),
    ("optional_inside_functions", "latticeq/model/a.py", DOC + "import gguf.constants\n", 2),
    (
        "optional_inside_functions",
        "latticeq/model/a.py",
        DOC + "try:\n    from scipy import linalg\nexcept ImportError:\n    pass\n",
        3,
    ),
    ("optional_inside_functions", "latticeq/model/a.py", DOC + "class _A:\n    import tqdm\n", 3),
    ("print_in_cli", "latticeq/model/a.py", DOC + "def _f():\n    print(1)\n", 3),
    ("processes_in_few_places", "latticeq/model/a.py", DOC + "import subprocess\n", 2),
    ("no_star_import", "tests/a.py", "from math import *\n", 1),
    ("public_docstrings", "latticeq/codes/a.py", "x = 1\n", 1),
    ("public_docstrings", "latticeq/codes/a.py", DOC + "def f():\n    return 1\n", 2),
    ("public_docstrings", "reference/a.py", DOC + f"class A:\n    {DOC}    def f(self): pass\n", 4),
    ("every_test_asserts", "tests/a.py", "def test_a():\n    f()\n", 1),
    ("every_test_asserts", "tests/a.py", "class TestA:\n    def test_a(self):\n        f()\n", 2),
    ("short_files", "tests/a.py", "\n" * (MAX_LINES + 1), MAX_LINES + 1),
    ("nothing_unfinished", "docs/a.md", "text\nTO" + "DO: more\n", 2),
    ("nothing_unfinished", "tests/a.py", "raise NotImplemented" + "Error\n", 1),
    ("no_machine_paths", "README.md", "see /" + "home/me/model\n", 1),
    ("no_machine_paths", "tests/a.py", "x = '/" + "work/x'\n", 1),
]


@pytest.mark.parametrize(("rule", "path", "text", "line"), BAD)
def test_a_broken_rule_is_named_with_its_line(rule: str, path: str, text: str, line: int) -> None:
    findings = broken(Source(PurePosixPath(path), text))
    assert len(findings) == 1
    assert findings[0].startswith(f"{path}:{line}: {rule}: ")


GOOD = [
    ("latticeq/linear/a.py", DOC + "from latticeq.linear import base\nfrom ..codes import b\n"),
    ("latticeq/model/a.py", DOC + "def _f():\n    import tqdm\n    from scipy import linalg\n"),
    (
        "latticeq/model/a.py",
        DOC + "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tqdm\n",
    ),
    ("latticeq/simd/a.py", DOC + "import numba\n"),
    ("latticeq/model/pull.py", DOC + "import subprocess\n"),
    ("latticeq/cli/a.py", DOC + "from latticeq import __version__\nprint(__version__)\n"),
    ("latticeq/codes/__init__.py", ""),
    ("latticeq/codes/a.py", DOC + "def _f(): pass\n@overload\ndef g(): pass\ndef h(): ...\n"),
    ("tests/a.py", "def test_a():\n    with pytest.raises(ValueError):\n        f()\n"),
    ("tests/a.py", "import latticeq, reference\ndef helper():\n    f()\n"),
    ("docs/a.md", "https://example.org/home/page and ~/.cache and ./work/x\n"),
]


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    assert broken(Source(PurePosixPath(path), text)) == []
