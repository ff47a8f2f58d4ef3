"""What the pages name exists: links, error texts, tests, commands, public names, pictures."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import latticeq
from latticeq.cli import main as command_line
from tests.docs.messages import all_texts, is_said, raised, texts
from tests.docs.pages import DOCS, PAGES, TOP, blocks, prose, rows

TROUBLESHOOTING = DOCS / "troubleshooting.md"
PAINS = DOCS / "users-pains.md"

WORDS_OF_USERS = (
    "cli/generate.py",
    "cli/perplexity.py",
    "cli/quantize.py",
    "model/job.py",
    "model/perplexity.py",
    "model/plan.py",
    "model/quantize.py",
    "storage/disk.py",
)
"""Modules of which every error has its place in the troubleshooting page."""


def read(path: Path) -> str:
    return path.read_text("utf-8")


def quoted_errors(page: str) -> list[str]:
    """Return the texts that the page explains: its small headings, and the first cells of rows."""
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    return headings + [row[0].strip("`") for row in rows(page)]


def test_every_quoted_error_stands_in_the_source() -> None:
    quoted, known = quoted_errors(read(TROUBLESHOOTING)), all_texts()
    assert len(quoted) > 80
    assert [text for text in quoted if not is_said(text, known)] == []


def test_every_small_heading_quotes_an_error() -> None:
    headings = re.findall(r"^### .*$", read(TROUBLESHOOTING), re.MULTILINE)
    assert [line for line in headings if not re.fullmatch(r"### `.+`", line)] == []


def test_no_error_is_explained_twice() -> None:
    quoted = quoted_errors(read(TROUBLESHOOTING))
    assert sorted(quoted) == sorted(set(quoted))


@pytest.mark.parametrize("module", WORDS_OF_USERS)
def test_every_error_of_a_users_module_is_explained(module: str) -> None:
    quoted = quoted_errors(read(TROUBLESHOOTING))
    missing = [
        text
        for text in raised(read(TOP / "latticeq" / module))
        if not any(part in text for part in quoted) and len(text.replace("…", "")) > 12
    ]
    assert missing == [], f"add to {TROUBLESHOOTING.relative_to(TOP)}"


def test_texts_are_joined_and_filled_in() -> None:
    source = 'raise InputError(f"a {x!r:.80} b " "c" f" {y}d")\nz = "e"\n'
    assert texts(source) == ["a … b c …d", "e"]
    assert raised(source) == ["a … b c …d"]
    assert is_said("b c …d", texts(source))
    assert not is_said("b d", texts(source))


def answers() -> list[tuple[str, str]]:
    """Return the complaint and the last cell of every row of the table of complaints."""
    return [(row[0], row[-1]) for row in rows(read(PAINS))]


def test_every_complaint_has_its_number_and_an_answer() -> None:
    found = answers()
    assert [complaint.split(".")[0] for complaint, _ in found] == [str(i) for i in range(1, 24)]
    assert [complaint for complaint, where in found if "`" not in where] == []


def named_tests(text: str) -> list[str]:
    return re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", text)


def has_test(name: str) -> bool:
    """Tell whether a file, or a function in it, is there."""
    path, _, function = name.partition("::")
    if not (TOP / path).is_file():
        return False
    body = ast.parse(read(TOP / path)).body
    return not function or any(
        isinstance(node, ast.FunctionDef) and node.name == function for node in body
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_named_test_exists(path: Path) -> None:
    assert [name for name in named_tests(read(path)) if not has_test(name)] == []


def test_a_test_that_is_missing_is_seen() -> None:
    assert named_tests("see `tests/a.py::test_b` and `tests/docs/pages.py`") == [
        "tests/a.py::test_b",
        "tests/docs/pages.py",
    ]
    assert not has_test("tests/a.py")
    assert not has_test("tests/docs/test_pages.py::test_nothing_of_this_name")
    assert has_test("tests/docs/test_pages.py::test_a_test_that_is_missing_is_seen")


def options_of(words: list[str]) -> set[str] | None:
    """Return the options of a command, or None if there is no such verb."""
    verb = words[0]
    if verb not in command_line.VERBS:
        return None
    module: Any = import_module(f"latticeq.cli.{verb}")
    subjects: dict[str, str] = getattr(module, "SUBJECTS", {})
    if len(words) > 1 and words[1] in subjects:
        module = import_module(subjects[words[1]])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    common = {"--threads", "--seed", "--json", "--debug", "--help"}
    return common | {name for action in parser._actions for name in action.option_strings}


def wrong(command: str) -> str | None:
    """Return what is wrong with a command line after the word latticeq, if anything is."""
    words = shlex.split(command, comments=True)
    if words and words[0] in {"VERB", "--help", "--version", "--json"}:
        return None
    found = options_of(words) if words else None
    if found is None:
        return f"latticeq {command}: no such verb"
    strangers = [w for w in words if w.startswith("--") and w.partition("=")[0] not in found]
    return f"latticeq {command}: no option {strangers[0]}" if strangers else None


def commands(page: str) -> list[str]:
    """Return the command lines of latticeq in a page: in shell blocks, and between backticks."""
    found = []
    for block in blocks(page):
        if block.language == "sh":
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [re.sub(r"^(?:\S*/)?latticeq ", "", line) for line in lines if is_ours(line)]
    return found + re.findall(r"`latticeq ([^`…]+?)\s*…?`", prose(page).replace("\n", " "))


def is_ours(line: str) -> bool:
    return re.match(r"(?:\S*/)?latticeq ", line) is not None


@pytest.mark.parametrize("path", [*PAGES, TOP / "README.md"], ids=lambda path: path.stem)
def test_every_command_and_option_exists(path: Path) -> None:
    assert [error for error in map(wrong, commands(read(path))) if error] == []


def test_a_wrong_command_is_seen() -> None:
    page = "`latticeq env --jsn`\n\n```sh\n.venv/bin/latticeq inspct DIR  # words\n```\n"
    assert commands(page) == ["inspct DIR  # words", "env --jsn"]
    assert wrong("inspct DIR") == "latticeq inspct DIR: no such verb"
    assert wrong("env --jsn") == "latticeq env --jsn: no option --jsn"
    assert wrong("bench kernels --quick --json") is None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_to_a_file_leads_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(read(path)))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", [*PAGES, TOP / "README.md"], ids=lambda path: path.stem)
def test_every_named_path_of_the_repository_exists(path: Path) -> None:
    named = re.findall(r"`((?:latticeq|reference|tests|docs|\.ci)/[\w./-]*)`", read(path))
    assert [name for name in named if not (TOP / name).exists()] == []


def test_every_public_name_is_in_the_api_pages() -> None:
    first = read(DOCS / "api/index.md")
    missing = [name for name in latticeq.__all__ if f"`lq.{name}`" not in first]
    assert missing == []


def test_every_module_of_the_api_pages_exists_and_is_described_once() -> None:
    pages = "".join(read(path) for path in sorted((DOCS / "api").glob("*.md")))
    modules = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(modules) == len(set(modules)) > 30
    for name in modules:
        assert import_module(name).__doc__
    plain = {f"reference.{path.stem}" for path in (TOP / "reference").glob("[!_]*.py")}
    assert plain <= set(modules)


def test_every_home_of_a_public_name_is_in_the_api_pages() -> None:
    pages = "".join(read(path) for path in sorted((DOCS / "api").glob("*.md")))
    homes = set(latticeq._HOMES.values())
    assert {home for home in homes if f"::: {home}\n" not in pages} == set()


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads(read(TOP / "pyproject.toml"))["project"]["optional-dependencies"]
    named = {
        extra
        for path in PAGES
        for extras_ in re.findall(r"(?:latticeq|\.)\[([\w,]+)\]", read(path))
        for extra in extras_.split(",")
    }
    assert named
    assert named <= set(extras)
