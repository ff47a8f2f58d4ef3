"""The house rules, checked on text and syntax tree: what `test_architecture` runs on every file.

Each rule is a function from a `Source` to the lines it breaks, with what is wrong there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

LAYERS = (
    ("compiler_pages", "errors", "jit", "simd", "version"),
    ("lattices",),
    ("codes",),
    ("transforms",),
    ("quantizers",),
    ("storage",),
    ("linear",),
    ("model",),
    ("gpu",),
    ("cli", "__main__"),
)
"""Imports go up this list only: a layer sees itself and the layers above it here."""

LAYER = {name: rank for rank, names in enumerate(LAYERS) for name in names}

OPTIONAL = {
    "cupy",
    "gguf",
    "huggingface_hub",
    "jinja2",
    "matplotlib",
    "prompt_toolkit",
    "scipy",
    "tokenizers",
    "tqdm",
}
"""Libraries that are optional, or slow to import for what most commands need."""

TOP_LEVEL = {"latticeq", "reference", "tests", "docs", "pyproject.toml", "README.md", "LICENSE"}

MAX_LINES = 500

# Written so that this file does not break its own rules.
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|XX[X]|NotImplemented[E]rror)\b")
MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(?:work|root|home)/\w")
ASSERTING = re.compile(r"^(?:assert_\w+|check_\w+|raises|warns|fail|deprecated_call)$")

Finding = tuple[int, str]


@dataclass(frozen=True)
class Import:
    """One imported module: absolute name, what is taken from it, and where it stands."""

    line: int
    module: str
    names: tuple[str, ...]
    at_import: bool


@dataclass(frozen=True)
class Source:
    """A file by its path from the top of the repository, and its text."""

    path: PurePosixPath
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, str(self.path))

    @property
    def is_python(self) -> bool:
        """Whether there is a syntax tree."""
        return self.path.suffix == ".py"

    def within(self, *folders: str) -> bool:
        """Whether the file is one of these files, or inside one of these folders."""
        return any(self.path.is_relative_to(folder) for folder in folders)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, with relative ones made absolute."""
        return list(_imports(self.tree.body, self.path, True))


def _imports(body: list[ast.stmt], path: PurePosixPath, at_import: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, (), at_import)
        elif isinstance(node, ast.ImportFrom):
            parents = path.parts[: len(path.parts) - node.level] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield Import(node.lineno, module, tuple(a.name for a in node.names), at_import)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(node.body, path, False)
            yield from _imports(node.orelse, path, at_import)
        else:
            inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for _, value in ast.iter_fields(node):
                parts = value if isinstance(value, list) else [value]
                for part in parts:
                    if isinstance(part, ast.stmt):
                        yield from _imports([part], path, inside)
                    elif isinstance(part, ast.ExceptHandler | ast.match_case):
                        yield from _imports(part.body, path, inside)


def import_direction(source: Source) -> Iterator[Finding]:
    """A layer of latticeq imports only itself and the layers before it."""
    if not source.within("latticeq") or source.path == PurePosixPath("latticeq/__init__.py"):
        return
    here = source.path.with_suffix("").parts[1]
    if here not in LAYER:
        yield 1, f"latticeq/{here} is in no layer: add it to LAYERS"
        return
    for item in source.imports:
        parts = item.module.split(".")
        if parts[0] != "latticeq":
            continue
        targets = parts[1:2] or [name for name in item.names if name in LAYER] or ["__init__"]
        for target in targets:
            if LAYER.get(target, len(LAYERS) - 1) > LAYER[here]:
                yield item.line, f"{here} imports {target}, which comes later"


def reference_apart(source: Source) -> Iterator[Finding]:
    """latticeq and reference never import each other; reference is plain NumPy."""
    for item in source.imports:
        top = item.module.split(".")[0]
        if source.within("latticeq") and top == "reference":
            yield item.line, "latticeq imports reference"
        if source.within("reference") and top in {"latticeq", "numba"}:
            yield item.line, f"reference imports {top}"


def numba_in_one_place(source: Source) -> Iterator[Finding]:
    """Only jit.py and simd know Numba."""
    if source.within("latticeq") and not source.within("latticeq/jit.py", "latticeq/simd"):
        for item in source.imports:
            if item.module.split(".")[0] in {"numba", "llvmlite"}:
                yield item.line, f"imports {item.module}: go through latticeq.jit"


def optional_inside_functions(source: Source) -> Iterator[Finding]:
    """Optional and heavy libraries are imported by the function that uses them."""
    if source.within("latticeq"):
        for item in source.imports:
            if item.at_import and item.module.split(".")[0] in OPTIONAL:
                yield item.line, f"imports {item.module} at import: move it into the function"


def print_in_cli(source: Source) -> Iterator[Finding]:
    """Only the command line prints."""
    if source.within("latticeq", "reference") and not source.within("latticeq/cli"):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                yield node.lineno, "print outside latticeq/cli"


def processes_in_few_places(source: Source) -> Iterator[Finding]:
    """Only `pull` and the command line start other programs."""
    allowed = source.within("latticeq/cli", "latticeq/model/pull.py")
    if source.within("latticeq", "reference") and not allowed:
        for item in source.imports:
            if item.module.split(".")[0] == "subprocess":
                yield item.line, "imports subprocess"


def no_star_import(source: Source) -> Iterator[Finding]:
    """Every name says where it comes from."""
    for item in source.imports:
        if "*" in item.names:
            yield item.line, f"from {item.module} import *"


def public_docstrings(source: Source) -> Iterator[Finding]:
    """Public modules, classes, functions and methods say what they are; stubs need not."""
    if source.within("latticeq", "reference"):
        if not ast.get_docstring(source.tree) and source.text.strip():
            yield 1, "the module has no docstring"
        yield from _undocumented(source.tree.body)


def _undocumented(body: list[ast.stmt]) -> Iterator[Finding]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        implied = any(d == "overload" or d.endswith((".setter", ".register")) for d in decorators)
        implied |= [ast.unparse(line) for line in node.body] == ["..."]
        if node.name.startswith("_") or implied:
            continue
        if not ast.get_docstring(node):
            yield node.lineno, f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body)


def every_test_asserts(source: Source) -> Iterator[Finding]:
    """Every test can fail for a reason that it states."""
    if not source.within("tests"):
        return
    for node in ast.walk(source.tree):
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test")
        if is_test and not any(map(_asserts, ast.walk(node))):
            yield node.lineno, f"{node.name} asserts nothing"


def _asserts(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return bool(ASSERTING.match(ast.unparse(node.func).split(".")[-1]))
    return isinstance(node, ast.Assert)


def short_files(source: Source) -> Iterator[Finding]:
    """A file fits in a reader's head."""
    n_lines = source.text.count("\n")
    if n_lines > MAX_LINES:
        yield n_lines, f"{n_lines} lines: at most {MAX_LINES}"


def nothing_unfinished(source: Source) -> Iterator[Finding]:
    """Work that is not done stands in the issue tracker, not in the code."""
    yield from _matches(source, UNFINISHED, "unfinished work: {}")


def no_machine_paths(source: Source) -> Iterator[Finding]:
    """Nothing depends on where somebody keeps their files."""
    yield from _matches(source, MACHINE_PATH, "path of one machine: {}..")


def _matches(source: Source, pattern: re.Pattern[str], message: str) -> Iterator[Finding]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := pattern.search(line):
            yield number, message.format(found.group())


TREE_RULES: tuple[Callable[[Source], Iterator[Finding]], ...] = (
    import_direction,
    reference_apart,
    numba_in_one_place,
    optional_inside_functions,
    print_in_cli,
    processes_in_few_places,
    no_star_import,
    public_docstrings,
    every_test_asserts,
    short_files,
)

TEXT_RULES: tuple[Callable[[Source], Iterator[Finding]], ...] = (
    nothing_unfinished,
    no_machine_paths,
)


def broken(source: Source) -> list[str]:
    """Return ``path:line: rule: what is wrong`` for everything that this file breaks."""
    rules = TREE_RULES + TEXT_RULES if source.is_python else TEXT_RULES
    return [
        f"{source.path}:{line}: {rule.__name__}: {message}"
        for rule in rules
        for line, message in rule(source)
    ]


def strangers(names: set[str]) -> list[str]:
    """Return the top-level names that the design does not list; dotfiles are free."""
    return sorted(name for name in names - TOP_LEVEL if not name.startswith("."))
