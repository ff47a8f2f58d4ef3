"""Typed access to the fields of a JSON object, with errors that name the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from latticeq.errors import InputError

__all__ = ["LARGEST", "Fields"]

LARGEST = 2**24
"""Above every width, vocabulary and context in use; products of two such sizes fit in int64."""

SMALLEST_NUMBER, LARGEST_NUMBER = 1e-15, 1e15
"""Beyond everything in use, and float32 reckons with their squares."""


class Fields:
    """The fields of an object of ``config.json``.

    Absent and null mean the same in these files, unless `has` is asked.

    Parameters
    ----------
    values : mapping
    where : str
        What stands before a field's name in messages, such as ``rope_scaling.``.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def has(self, name: str) -> bool:
        """Tell whether the field is there and not null."""
        return self.values.get(name) is not None

    def size(
        self, name: str, default: int | None = None, least: int = 1, largest: int = LARGEST
    ) -> int:
        """Return an integer of a range.

        Raises
        ------
        InputError
            If it is none, or missing and without a default.
        """
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= largest:
            raise InputError(
                f"{self.where}{name} is {value!r}; it must be an integer from {least} to {largest}"
            )
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """Return a number from 1e-15 to 1e15, with which float32 can reckon.

        Raises
        ------
        InputError
            If it is none, or missing and without a default.
        """
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{self.where}{name} is {value!r}; it must be a positive number")
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            number = math.inf
        if not SMALLEST_NUMBER <= number <= LARGEST_NUMBER:
            raise InputError(
                f"{self.where}{name} is {value!r:.80}; it must be from {SMALLEST_NUMBER:g} to "
                f"{LARGEST_NUMBER:g}"
            )
        return number

    def flag(self, name: str) -> bool:
        """Return true or false; false if it is missing.

        Raises
        ------
        InputError
            If it is neither.
        """
        value = self._get(name, False)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}{name} is {value!r}; it must be true or false")
        return value

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{self.where}{name} is missing; config.json must state it")
        return value
