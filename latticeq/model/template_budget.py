"""What a chat template may take: rounds, seconds, and the size of every value that it makes.

A template comes with a model from anywhere, and Jinja has loops, variables and products of texts.
`latticeq.model.template_sandbox` asks here before an operation that can grow, and after every one
that makes a value. So every value that the next is made of has a bounded size, and to compare, hash
or spell one out takes a bounded time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from latticeq.errors import FormatError

__all__ = ["Budget", "size"]

_STEPS = 1_000_000  # loops' rounds, calls and operators; templates of long chats take thousands
_SECONDS = 10.0
_CHARACTERS = 1 << 20  # of a value, and of a rendering; and so many for each that was given:
_GROWTH = 16

_FORMATTING = {"format", "format_map"}
_GROWING = _FORMATTING | {
    *("batch", "center", "expandtabs", "indent", "join", "ljust", "replace", "rjust", "slice"),
    *("to_bytes", "tojson", "translate", "urlize", "wordwrap", "xmlattr", "zfill"),
}
"""Methods and filters whose results can be larger than all that they were given."""

_NUMBER = re.compile(r"\d+")


class Budget:
    """What is left for one rendering."""

    def __init__(self) -> None:
        self.start("")

    def start(self, given: Any) -> None:
        """Begin anew.

        Parameters
        ----------
        given : object
            What the template is given: long messages may make long renderings.
        """
        self._limit = _CHARACTERS + _GROWTH * size(given, _CHARACTERS << 10)
        self._steps = 0
        self._printed = 0
        self._deadline = time.monotonic() + _SECONDS

    def step(self) -> None:
        """Count one operation.

        Raises
        ------
        FormatError
            If there were too many, or they took too long.
        """
        self._steps += 1
        if self._steps > _STEPS:
            raise FormatError(f"it takes more than {_STEPS} steps: it may be made to never end")
        if time.monotonic() > self._deadline:
            raise FormatError(f"it takes more than {_SECONDS:g} s: it may be made to never end")

    def rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the same, counting each."""
        for item in items:
            self.step()
            yield item

    def allow(self, n_characters: int) -> None:
        """Make sure that a value may have so many characters.

        Raises
        ------
        FormatError
            If it may not.
        """
        if n_characters > self._limit:
            raise FormatError(
                f"it makes a text or list of more than {self._limit} characters, and what it was "
                "given is not that long: it may be made to fill the memory"
            )

    def bounded(self, value: Any) -> Any:
        """Return a value that is not too large; an iterator as a list."""
        if isinstance(value, Iterator):
            value = list(self.rounds(value))
        self.allow(size(value, self._limit))
        return value

    def printed(self, value: Any) -> str:
        """Return a value as the text that ``{{ }}`` prints."""
        text = str(value)
        self._printed += len(text)
        self.allow(self._printed // _GROWTH)  # some is captured, and printed again
        return text

    def joined(self, parts: Iterable[Any]) -> str:
        """Return the parts joined as text."""
        texts = [str(part) for part in parts]
        self.allow(sum(map(len, texts)))
        return "".join(texts)

    def before_call(self, name: str, first: Any, others: Iterable[Any]) -> None:
        """Count a call of a method or filter, and refuse one whose result could be too large.

        Parameters
        ----------
        name : str
        first : object
            The text, or what else the method belongs to or the filter is applied to.
        others : iterable
            The arguments.
        """
        self.step()
        if name in _GROWING:
            times = 1 + sum(_factor(value, self._limit) for value in others)
            most = size(first, self._limit) * times
            if name in _FORMATTING:
                most += len(first) * max(map(_number, _NUMBER.findall(str(first))), default=0)
            # What comes out is measured; this is for what would fill the memory before.
            self.allow(most // _GROWTH)

    def before_operator(self, operator: str, left: Any, right: Any) -> None:
        """Count ``+``, ``*``, ``**`` or ``%``, and refuse one whose result could be too large."""
        if operator == "%" and isinstance(left, str | bytes):
            others = right if isinstance(right, tuple) else (right,)
            return self.before_call("format", left, others)
        self.step()
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.allow(left.bit_length() * abs(right))
        if operator == "*" and not (isinstance(left, int) and isinstance(right, int)):
            left, right = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(right, int):
                self.allow(size(left, self._limit) * right)
        return None


def size(value: Any, limit: int) -> int:
    """Return the characters, items and numbers' bits in a value, counting only just above a limit.

    What occurs twice in it counts twice, as it would if it were spelled out.

    Examples
    --------
    >>> size(["ab", ("cd", 1)], 100)
    10
    """
    total, waiting = 0, [value]
    while waiting and total <= limit:
        item = waiting.pop()
        total += 1
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
        elif isinstance(item, int):
            total += item.bit_length()
    return total


def _number(digits: str) -> int:
    """Return a width that stands in a format; any that is very long as a large one."""
    return int(digits if len(digits) < 40 else "9" * 40)


def _factor(value: Any, limit: int) -> int:
    """Return how many times longer an argument can make a text."""
    return abs(value) if isinstance(value, int) else size(value, limit)
