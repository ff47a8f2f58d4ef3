"""Every text that the source of latticeq can print, with what is filled in as an ellipsis."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.docs.pages import TOP

ELLIPSIS = "…"


def texts(source: str) -> list[str]:
    """Return the strings of a module, implicit concatenations joined, fields as ellipses."""
    found: list[str] = []
    _collect(ast.parse(source), found)
    return found


def _collect(node: ast.AST, found: list[str]) -> None:
    if isinstance(node, ast.JoinedStr):
        found.append("".join(map(_part, node.values)))
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
    for child in ast.iter_child_nodes(node):
        _collect(child, found)


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ELLIPSIS


def sources() -> list[Path]:
    """Return the modules of the package."""
    return sorted((TOP / "latticeq").rglob("*.py"))


def all_texts() -> list[str]:
    """Return the strings of the whole package."""
    return [text for path in sources() for text in texts(path.read_text("utf-8"))]


def is_said(quoted: str, known: list[str]) -> bool:
    """Tell whether a text that a page quotes stands, as it is, in one of the strings."""
    return any(quoted in text for text in known)


def raised(source: str) -> list[str]:
    """Return the messages of the errors that a module makes."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
            for argument in node.args:
                _collect(argument, found)
    return found
