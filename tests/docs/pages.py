"""The pages of docs/ as tests read them: fenced blocks with their lines, headings and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent.parent
DOCS = TOP / "docs"

PAGES = sorted(DOCS.rglob("*.md"))
"""Every page of the site."""

_NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its first line of text, and that text."""

    language: str
    line: int
    text: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found: list[Block] = []
    inside: list[str] | None = None
    language, start = "", 0
    for number, line in enumerate(page.splitlines(), 1):
        if inside is None and line.startswith("```"):
            inside, language, start = [], line[3:].strip(), number + 1
        elif inside is not None and line.startswith("```"):
            found.append(Block(language, start, "".join(inside)))
            inside = None
        elif inside is not None:
            inside.append(line + "\n")
    if inside is not None:
        raise ValueError(f"the block that starts in line {start} has no end")
    return found


def steps(page: str) -> Iterator[tuple[Block, Block | None]]:
    """Yield each Python block with the block of what it prints, if that is what follows it.

    The language of that one is ``text``, or ``output`` for what may differ from run to run.
    """
    found = blocks(page)
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language == "python":
            is_printed = after is not None and after.language in {"text", "output"}
            yield block, after if is_printed else None


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


def rows(page: str) -> list[list[str]]:
    """Return the cells of every line of every table, headings left out."""
    lines = prose(page).splitlines()
    found = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        is_rule = re.fullmatch(r"[|:\- ]+", line) is not None
        if line.startswith("|") and not is_rule and not re.fullmatch(r"[|:\- ]+", after):
            found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def agree(said: str, printed: str) -> bool:
    """Tell whether a page says what was printed.

    Words and whole numbers must be the same. Decimals may differ by two percent or one in the last
    place: other processors and libraries round elsewhere.
    """
    if _NUMBER.sub("#", said).split() != _NUMBER.sub("#", printed).split():
        return False
    return all(map(_close, _NUMBER.findall(said), _NUMBER.findall(printed)))


def _close(said: str, printed: str) -> bool:
    if "." not in said:
        return said == printed
    places = len(said.partition("e")[0].partition(".")[2])
    allowed = max(0.02 * abs(float(said)), 1.01 * 10.0**-places)
    return abs(float(said) - float(printed)) <= allowed
