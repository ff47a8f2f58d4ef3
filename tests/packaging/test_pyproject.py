"""What pyproject.toml promises: lowest versions, and extras that are known and told by name."""

import ast
import sys
from pathlib import Path

import pytest

from latticeq.cli.env import EXTRAS as SHOWN
from tests.packaging.environments import EXTRAS, TOP, constraints, floors, requirements

INSTALLED_BY = {
    "cupy": "gpu",
    "gguf": "gguf",
    "huggingface_hub": "hub",
    "jinja2": "chat",
    "matplotlib": "plot",
    "prompt_toolkit": "chat",
}
"""The extra that brings each optional library."""

SECOND_NAMES = {"cupyx": "cupy"}
"""Of libraries that install more than one package."""


@pytest.mark.parametrize("python", [(3, 11), (3, 12), (3, 13)])
def test_every_requirement_has_a_lowest_version(python: tuple[int, int]) -> None:
    for extra, needed in requirements().items():
        others = [line for line in needed if not line.startswith("latticeq[")]
        assert floors(others, python), extra
    lines = constraints(python, lowest=True)
    assert "numba==0.68" in lines
    assert ("numpy==2.1" in lines) == (python == (3, 13))
    assert constraints(python, lowest=False) == []


def test_a_requirement_without_a_lowest_version_is_seen() -> None:
    with pytest.raises(ValueError, match="'numpy' has no lowest version"):
        floors(["numpy"], (3, 12))
    with pytest.raises(ValueError, match="has a marker that is not"):
        floors(["numpy>=2; sys_platform == 'linux'"], (3, 12))


def test_env_shows_every_extra() -> None:
    found = requirements()
    assert set(SHOWN) == set(found) - {""}
    for extra, packages in SHOWN.items():
        names = {line.split(">=")[0].split("[")[0] for line in found[extra]}
        assert set(packages) <= names, extra


def test_what_is_tried_elsewhere_has_every_extra_for_a_cpu() -> None:
    assert {*EXTRAS, "gpu", "gpu-cuda13", "docs", "dev", ""} == set(requirements())


def test_every_optional_library_that_is_imported_belongs_to_an_extra() -> None:
    """What is neither a dependency nor of an extra is installed by nothing."""
    needed = {line.split(">=")[0] for line in requirements()[""]}
    for path in sorted((TOP / "latticeq").rglob("*.py")):
        for module in _imported(path):
            if module in INSTALLED_BY:
                extra = requirements()[INSTALLED_BY[module]]
                assert any(line.startswith(module) for line in extra), f"{path}: {module}"
            else:
                assert module in needed | {"latticeq", "llvmlite"}, f"{path}: {module}"


def test_a_library_that_is_missing_is_told_by_its_extra() -> None:
    """Where each is tested: `latticeq[EXTRA]` in tests of pull, gguf, chat and every ``--plot``."""
    sources = {path: path.read_text("utf-8") for path in (TOP / "latticeq").rglob("*.py")}
    tests = [
        path.read_text("utf-8").replace("\\", "") for path in (TOP / "tests").rglob("test_*.py")
    ]
    for extra in {INSTALLED_BY[m] for path in sources for m in _imported(path) & set(INSTALLED_BY)}:
        words = f"pip install 'latticeq[{extra}]'"
        assert any(words in text for text in sources.values()), extra
        assert any(words in text for text in tests), extra


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).split(".")[0])
    return {SECOND_NAMES.get(name, name) for name in found} - set(sys.stdlib_module_names)
