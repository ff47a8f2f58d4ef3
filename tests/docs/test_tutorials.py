"""The Python of the pages runs from top to bottom and prints what the pages say."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from latticeq.jit import IS_JIT
from tests.docs.pages import DOCS, Block, agree, steps

RUN = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "bytes.md"]


def check_page(page: str, name: str) -> None:
    """Run a page's code in one namespace; raise at the line that fails or prints something else."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for block, shown in steps(page):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compiled(block, name), namespace)
        found, said = printed.getvalue(), shown.text if shown else ""
        assert bool(found) == bool(said), f"{name}, line {block.line}: said {said!r}, not {found!r}"
        if shown and shown.language == "text":
            assert agree(said, found), (
                f"{name}, line {block.line}: the page says\n{said}\nand this was printed:\n{found}"
            )


def compiled(block: Block, name: str) -> Any:
    """Return the code of a block, whose lines are those of the page in a traceback."""
    return compile("\n" * (block.line - 1) + block.text, name, "exec")


@pytest.mark.skipif(not IS_JIT, reason="millions of numbers in plain Python take minutes")
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_page_does_what_it_says(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_page(path.read_text("utf-8"), str(path))


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_a_page_makes_claims_that_can_fail(path: Path) -> None:
    code = "".join(block.text for block, _ in steps(path.read_text("utf-8")))
    assert code.count("\nassert ") >= 3


def test_all_six_tutorials_are_run() -> None:
    stems = ["01-e8", "02-nested-codes", "03-scales", "04-rotation", "05-error-feedback"]
    assert [path.stem for path in RUN] == [*stems, "06-llama", "bytes"]


@pytest.mark.parametrize(
    "page",
    [
        "```python\nassert 1 == 2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nprint(1.5)\n```\n\n```text\n1.56\n```\n",
        "```python\nx = 1\n```\n\n```text\n1\n```\n",
        "```python\nprint('a 1.5')\n```\n\n```text\nb 1.5\n```\n",
        "```python\nx = 1\n```\n\n```output\n1\n```\n",
    ],
)
def test_a_page_that_is_wrong_fails(page: str) -> None:
    with pytest.raises(AssertionError):
        check_page(page, "page.md")


def test_a_page_that_is_right_passes() -> None:
    page = "```python\nx = 2\n```\n\n```python\nprint('x', x / 3)\n```\n\n```text\nx 0.667\n```"
    check_page(page, "page.md")
    assert [block.line for block, _ in steps(page)] == [2, 6]


def test_what_differs_from_run_to_run_is_not_compared() -> None:
    page = "```python\nprint('one')\n```\n\n```output\ntwo\n```\n"
    check_page(page, "page.md")
    assert [shown.text for _, shown in steps(page) if shown] == ["two\n"]


def test_a_failing_line_is_a_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as failure:
        check_page("words\n\n```python\nx = 1\nx / 0\n```\n", "page.md")
    assert failure.traceback[-1].lineno == 4  # counted from zero
