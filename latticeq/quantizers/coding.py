"""How rows of activations, keys or values are coded, as config.json tells it.

A `Coding` is what a checkpoint says of numbers that are coded as they are computed; for rows of a
length it gives the `RowCodec` that does so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from latticeq.codes.nested import NestedCode
from latticeq.codes.pyramid import PyramidCode
from latticeq.errors import FormatError, LatticeqError
from latticeq.quantizers.scalar import KINDS, Scalar

if TYPE_CHECKING:
    from latticeq.quantizers.rows import RowCodec

__all__ = ["Coding", "NestCoding", "PVQCoding", "ScalarCoding", "coding_from_config"]


@dataclass(frozen=True)
class NestCoding:
    """Rows under a union of nested E8 codes, each with its root mean square.

    Parameters
    ----------
    q : int
    betas : tuple of float
    cell : str
        Of `NestedCode`.

    Raises
    ------
    InputError
        If they make no code.
    """

    q: int
    betas: tuple[float, ...]
    cell: str = "voronoi"

    def __post_init__(self) -> None:
        rounded = _in_float32(self.betas)
        object.__setattr__(self, "betas", rounded)
        NestedCode(self.q, rounded, self.cell)

    def codec(self, n: int) -> RowCodec:
        """Return the codec of rows of length n."""
        from latticeq.quantizers.rows import NestRowCodec

        return NestRowCodec(NestedCode(self.q, self.betas, self.cell), n)

    def to_config(self) -> dict[str, Any]:
        """Return what config.json keeps."""
        return {"method": "nestquant", **asdict(self), "betas": list(self.betas)}


@dataclass(frozen=True)
class PVQCoding:
    """Rows as gain and shape, the shapes words of a pyramid code.

    Parameters
    ----------
    group : int
        Entries of a word.
    pulses : int
        Of words.
    levels : tuple of float
        Of gains: see `PVQRowCodec`.

    Raises
    ------
    InputError
        If they make no code.
    """

    group: int
    pulses: int
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", _in_float32(self.levels))
        self.codec(self.group)

    def codec(self, n: int) -> RowCodec:
        """Return the codec of rows of length n."""
        from latticeq.quantizers.pvq_rows import PVQRowCodec

        return PVQRowCodec(PyramidCode(self.group, self.pulses), self.levels, n)

    def to_config(self) -> dict[str, Any]:
        """Return what config.json keeps."""
        return {"method": "pvq", **asdict(self), "levels": list(self.levels)}


@dataclass(frozen=True)
class ScalarCoding:
    """Rows on a scalar grid with scales of their own.

    Parameters
    ----------
    kind : "int4", "nf4", "mxfp4" or "nvfp4"
    group : int, optional
        Entries that share a scale; the format's own, whole rows for int4, if omitted.
    symmetric : bool
        Of int4: without a zero point.
    clip : float, optional
        The share of a group's largest magnitude that the grid reaches to.
    four_over_six : bool
        Of nvfp4.

    Raises
    ------
    InputError
        If they make no format.
    """

    kind: str
    group: int | None = None
    symmetric: bool = True
    clip: float | None = None
    four_over_six: bool = True

    def __post_init__(self) -> None:
        self._scalar()

    def _scalar(self) -> Scalar:
        return Scalar(
            self.kind,
            self.group,
            symmetric=self.symmetric,
            clip="none" if self.clip is None else self.clip,
            four_over_six=self.four_over_six,
        )

    def codec(self, n: int) -> RowCodec:
        """Return the codec of rows of length n."""
        from latticeq.quantizers.scalar_rows import ScalarRowCodec

        return ScalarRowCodec(self._scalar(), n)

    def to_config(self) -> dict[str, Any]:
        """Return what config.json keeps."""
        values = asdict(self)
        return {"method": values.pop("kind"), **values}


Coding = NestCoding | PVQCoding | ScalarCoding

_FIELDS: dict[str, dict[str, Any]] = {
    "nestquant": {"q": int, "betas": list, "cell": str},
    "pvq": {"group": int, "pulses": int, "levels": list},
    "scalar": {
        "group": (int, type(None)),
        "symmetric": bool,
        "clip": (float, int, type(None)),
        "four_over_six": bool,
    },
}


def coding_from_config(entry: Any) -> Coding:
    """Return what an object of config.json describes, checked.

    Raises
    ------
    FormatError
        If it is no such object, or a value is out of range.

    Examples
    --------
    >>> coding = NestCoding(16, (0.25, 0.5))
    >>> coding_from_config(coding.to_config()) == coding
    True
    """
    methods = ("nestquant", "pvq", *KINDS)
    method = entry.get("method") if isinstance(entry, Mapping) else None
    if method not in methods:
        raise FormatError(f"is {entry!r:.80}; its method must be one of {', '.join(methods)}")
    fields = _FIELDS["scalar" if method in KINDS else method]
    values = {name: value for name, value in entry.items() if name != "method"}
    for name, value in values.items():
        allowed: Any = fields.get(name)
        is_bool = isinstance(value, bool)
        if allowed is None or not isinstance(value, allowed) or (is_bool and allowed is not bool):
            raise FormatError(f"{name} is {value!r:.80}; fields are {', '.join(fields)}")
    try:
        if method in KINDS:
            return ScalarCoding(method, **values)
        if method == "pvq":
            return PVQCoding(levels=_floats(values, "levels"), **values)
        return NestCoding(betas=_floats(values, "betas"), **values)
    except (LatticeqError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"is {entry!r:.80}: {error}") from error


def _in_float32(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return numbers as float32 holds them: infinity, which no code takes, where it cannot."""
    with np.errstate(over="ignore"):
        return tuple(np.array(numbers, np.float64).astype(np.float32).tolist())


def _floats(values: dict[str, Any], name: str) -> tuple[float, ...]:
    """Take a list of numbers out of an object."""
    return tuple(float(number) for number in values.pop(name, []))
