"""Tables, sizes and times for people, as several verbs show them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "duration",
    "folder_bytes",
    "kind",
    "megabytes",
    "short",
    "sparkline",
    "table",
    "thread_words",
]

_BARS = "▁▂▃▄▅▆▇█"


def table(rows: Iterable[Sequence[object]]) -> str:
    """Return rows, the first of them a heading, in columns: words flush left, numbers flush right.

    Examples
    --------
    >>> print(table([("tensor", "bits"), ("lm_head", "8.03"), ("norm", "32")]))
    tensor   bits
    lm_head  8.03
    norm       32
    """
    cells = [[str(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(len, column)) for column in columns]
    is_number = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def kind(name: str) -> str:
    """Return a tensor's name without the number of its layer, so that layers can be grouped.

    Examples
    --------
    >>> kind("model.layers.12.mlp.up_proj.weight")
    'layers.*.mlp.up_proj'
    """
    return re.sub(r"\.\d+\.", ".*.", name).removeprefix("model.").removesuffix(".weight")


def megabytes(n_bytes: float) -> str:
    """Return a size in words.

    Examples
    --------
    >>> megabytes(85_370_912), megabytes(2e9)
    ('85.4 MB', '2.00 GB')
    """
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def short(number: float) -> str:
    """Return a speed or a time in three digits, or all digits before the point.

    Examples
    --------
    >>> short(0.61234), short(98.76), short(1234.5)
    ('0.612', '98.8', '1234')
    """
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def thread_words(count: int) -> str:
    """Return a number of threads in words.

    Examples
    --------
    >>> thread_words(1), thread_words(4)
    ('1 thread', '4 threads')
    """
    return "1 thread" if count == 1 else f"{count} threads"


def duration(seconds: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> duration(4.21), duration(75), duration(7300)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def sparkline(shares: Sequence[float]) -> str:
    """Return a bar for each share, the largest of them full.

    Examples
    --------
    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    largest = max(shares) or 1.0
    return "".join(_BARS[round(share / largest * (len(_BARS) - 1))] for share in shares)


def folder_bytes(folder: Path, pattern: str = "*") -> int:
    """Return the size of the files directly in a folder whose names match."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())
