"""What a format is: one class that turns a quantized matrix into named arrays and back.

A class of `Packed` names the formats it covers, and says of each what config.json has to say, which
arrays there are, of what dtype and shape, and which values they may hold. An object of the class is
one matrix: its entry in config.json and its arrays, memory-mapped or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError
from latticeq.quantizers.base import QuantizedTensor
from latticeq.transforms.hadamard import largest_block
from latticeq.transforms.rotation import Rotation

__all__ = [
    "Arrays",
    "Entry",
    "Packed",
    "Shapes",
    "check_choice",
    "check_integer",
    "check_rotation",
    "check_scales",
    "check_shape",
    "describe_rotation",
    "rotation_of",
]

MAX_DIMENSION = 2**31 - 16

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by the suffix of their names."""

Entry = Mapping[str, Any]
"""What config.json says of a matrix."""

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""The dtype, as safetensors names it, and the shape of each array by the suffix of its name."""


@dataclass(frozen=True, eq=False)
class Packed(ABC):
    """A quantized matrix M x N as bytes.

    Parameters
    ----------
    entry : mapping
        As config.json has it, checked.
    arrays : mapping of str to ndarray
        With the dtypes and shapes of `stored_shapes`.

    Attributes
    ----------
    names : tuple of str
        The formats that the class covers, as entries name them.
    """

    names: ClassVar[tuple[str, ...]]
    entry: Entry
    arrays: Arrays

    @property
    def shape(self) -> tuple[int, int]:
        """M and N."""
        m, n = self.entry["shape"]
        return m, n

    @property
    def format(self) -> str:
        """The name of the format."""
        return str(self.entry["format"])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def rotation(self) -> Rotation:
        """Of the columns; the identity for a format that does not rotate."""
        return rotation_of(self.entry)

    @classmethod
    @abstractmethod
    def takes(cls, tensor: QuantizedTensor) -> bool:
        """Tell whether this is the class that packs a tensor."""

    @classmethod
    @abstractmethod
    def describe(cls, tensor: Any) -> dict[str, Any]:
        """Return the entry of config.json that says how to read a tensor."""

    @classmethod
    @abstractmethod
    def pack(cls, tensor: Any) -> dict[str, NDArray[Any]]:
        """Return a tensor's arrays by the suffix of their names."""

    @classmethod
    @abstractmethod
    def check_entry(cls, entry: Entry) -> None:
        """Refuse an entry that breaks a rule of the format.

        Raises
        ------
        FormatError
            Naming the field, its value and what is allowed.
        """

    @classmethod
    @abstractmethod
    def stored_shapes(cls, entry: Entry) -> Shapes:
        """Return what arrays an entry asks for."""

    @abstractmethod
    def check(self) -> None:
        """Refuse arrays with values that no quantizer writes; may read every byte.

        Raises
        ------
        FormatError
            Naming the array, the value and what is allowed.
        """

    @abstractmethod
    def unpack(self) -> QuantizedTensor:
        """Return the quantized matrix.

        Raises
        ------
        FormatError
            If a digit or an index is out of its range.
        """


def check_shape(entry: Entry, multiple: int) -> None:
    """Refuse a shape that is not two sizes, the second of them a multiple."""
    shape = entry.get("shape")
    is_pair = isinstance(shape, list) and len(shape) == 2 and all(map(_is_dimension, shape))
    if not is_pair or entry["shape"][1] % multiple:
        raise FormatError(
            f"shape is {shape!r:.80}; it must be two sizes, the second a multiple of {multiple}"
        )


def _is_dimension(size: Any) -> bool:
    return type(size) is int and 0 < size <= MAX_DIMENSION


def check_integer(entry: Entry, field: str, low: int, high: int) -> None:
    """Refuse a field that is no integer from low to high."""
    value = entry.get(field)
    if type(value) is not int or not low <= value <= high:
        raise FormatError(f"{field} is {value!r:.80}; it must be from {low} to {high}")


def check_choice(entry: Entry, field: str, *choices: Any) -> None:
    """Refuse a field that is none of some values, types included."""
    value = entry.get(field)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        allowed = " or ".join(map(repr, choices))
        raise FormatError(f"{field} is {value!r:.80}; it must be {allowed}")


def check_rotation(entry: Entry) -> None:
    """Refuse a rotation, seed or block that `rotation_of` has no meaning for."""
    check_choice(entry, "rotation", "hadamard", "none")
    seed, block = entry.get("seed"), entry.get("block")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**64):
        raise FormatError(f"seed is {seed!r:.80}; it must be null or from 0 to 2**64 - 1")
    for field, value in (("seed", seed), ("block", block)):
        if value is not None and entry["rotation"] == "none":
            raise FormatError(f"a {field} is given for rotation 'none'")
    if block is None:
        return
    n = entry["shape"][1]
    if type(block) is not int or block < 1 or n % block or largest_block(block) != block:
        raise FormatError(
            f"block is {block!r:.80}; it must be null or the size of a Hadamard matrix that "
            f"divides {n}"
        )


def describe_rotation(rotation: Rotation) -> dict[str, Any]:
    """Return the fields of an entry that name a rotation; a block only where one is chosen."""
    fields = {"rotation": rotation.kind, "seed": rotation.seed}
    return fields if rotation.block is None else fields | {"block": rotation.block}


def rotation_of(entry: Entry) -> Rotation:
    """Return the rotation that an entry names: the identity if it names none."""
    kind = entry.get("rotation", "none")
    return Rotation(entry["shape"][1], entry.get("seed"), kind, entry.get("block"))


def check_scales(name: str, scales: NDArray[Any]) -> None:
    """Refuse scales that are negative, infinite or NaN; zero makes a row or a group of zeros."""
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise FormatError(f"{name} holds a negative, infinite or NaN number")
