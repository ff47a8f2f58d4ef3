"""The rows of ``latticeq bench accuracy``: every quantization that the report compares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from latticeq.errors import InputError

__all__ = ["FLOAT", "GRID", "QUICK", "Row", "chosen_rows"]

FLOAT = "float32"
"""The name of the row that all others are compared with."""

SCALARS = ("int4", "nf4", "mxfp4", "nvfp4")

_PUBLISHED: dict[str, Any] = {
    "q": 14,
    "betas": "published",
    "packing": "radix",
    "smoothing": 0.0,
    "key_offset": False,
}
"""The paper's own settings: its scales, and nothing that it does not have."""

_PLAIN: dict[str, Any] = {"smoothing": 0.0, "key_offset": False}

_PVQ: dict[str, Any] = {"method": "pvq"}

RATES = (2.0, 2.5, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0)
"""Bits of PVQ's curve, besides those of its other rows."""

_G64: dict[str, Any] = {"method": "int4", "group": 64}


@dataclass(frozen=True)
class Row:
    """One quantization to measure.

    Parameters
    ----------
    name : str
        Of its files: letters, digits, dots and dashes.
    label : str
        What the report calls it.
    options : dict
        Of `latticeq.model.options.Options`.
    is_headline : bool
        Whether it is measured on the whole text, too.
    """

    name: str
    label: str
    options: dict[str, Any] = field(default_factory=dict)
    is_headline: bool = False

    @property
    def regime(self) -> str:
        """What is coded; empty for the float model."""
        return str(self.options.get("regime", "w")) if self.name != FLOAT else ""


def _weights() -> Iterator[Row]:
    every = ("none", "ldlq", "qa-ldlq")
    codes: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
        "nest": ("NestQuant q=16 k=4", {}, every),
        "cubic8": ("NestQuant cubic q=16 k=8", {"shaping": "cubic", "k": 8}, every[2:]),
        "d8": ("NestQuant d8 q=16 k=8", {"shaping": "d8", "k": 8}, every[2:]),
        "nestm": ("NestQuantM q=16 k=4", {"shaping": "nestquantm"}, every[2:]),
        "nest14": ("NestQuant q=14 k=4, radix", {"q": 14, "packing": "radix"}, every[2:]),
        "nest8": ("NestQuant q=8 k=4", {"q": 8}, every[2:]),
        "published": ("NestQuant q=14 k=4 as published", _PUBLISHED, every[1:2]),
        "nest-fitted": ("NestQuant q=16 k=4, scales fitted", {"betas": "fitted"}, every[2:]),
        "pvq": ("PVQ groups of 16", _PVQ, every),
        **{
            f"pvq{bits:g}": (f"PVQ groups of 16, {bits:g} bits", {**_PVQ, "bits": bits}, every[1:2])
            for bits in RATES
        },
        "pvq-g32": ("PVQ groups of 32", {**_PVQ, "group": 32}, every[1:2]),
        "int4": ("int4 per row, clip search", {"method": "int4"}, every),
        "int4-g128": ("int4 in groups of 128", {"method": "int4", "group": 128}, every[1:2]),
        "int4-g64": ("int4 in groups of 64", _G64, every),
        "int4-g32": ("int4 in groups of 32", {"method": "int4", "group": 32}, every[:2]),
        "nf4": ("NF4 in groups of 64", {"method": "nf4"}, every[:2]),
        "mxfp4": ("MXFP4", {"method": "mxfp4"}, every[:2]),
        "nvfp4": ("NVFP4", {"method": "nvfp4"}, every[:2]),
    }
    headlines = {"w-nest-qa-ldlq", "w-published-ldlq"}
    for key, (label, options, feedbacks) in codes.items():
        for feedback in feedbacks:
            name = f"w-{key}-{feedback}"
            yield Row(name, label, {**options, "feedback": feedback}, name in headlines)


def _cache() -> Iterator[Row]:
    regime = {"regime": "w+kv"}
    nest = "NestQuant q=16 k=4"
    yield Row("kv-nest-qa-ldlq", f"{nest}, keys centred", {**regime, "feedback": "qa-ldlq"}, True)
    plain = {**regime, "feedback": "ldlq", **_PLAIN}
    yield Row("kv-nest-ldlq-plain", f"{nest}, keys not centred", plain)
    centred = {**regime, "feedback": "ldlq"}
    yield Row("kv-nest-ldlq", f"{nest}, keys centred", centred)
    label = f"{nest}, keys centred, values not rotated"
    yield Row("kv-nest-ldlq-values-plain", label, {**centred, "rotate_values": False})
    published = {**_PUBLISHED, **regime, "feedback": "ldlq"}
    yield Row("kv-published-ldlq", "NestQuant q=14 k=4 as published", published, True)
    pvq = {**_PVQ, **regime}
    yield Row("kv-pvq-ldlq", "PVQ groups of 16, keys centred", {**pvq, "feedback": "ldlq"})
    yield Row("kv-pvq-qa-ldlq", "PVQ groups of 16, keys centred", {**pvq, "feedback": "qa-ldlq"})
    for method in SCALARS:
        options = {**regime, "method": method, "feedback": "ldlq"}
        label = "int4, asymmetric cache" if method == "int4" else method.upper()
        yield Row(f"kv-{method}-ldlq", label, options)


def _activations() -> Iterator[Row]:
    aware = {"regime": "w+kv+a", "feedback": "qa-ldlq"}
    nest = "NestQuant q=16 k=4"
    helped = f"{nest}, smoothed, keys centred"
    yield Row("a-nest", helped, aware, True)
    yield Row("a-nest-fitted", f"{helped}, scales fitted", {**aware, "betas": "fitted"})
    yield Row("a-nest-ldlq", helped, {**aware, "feedback": "ldlq"})
    published = {**_PUBLISHED, **aware, "qa_form": "isotropic"}
    yield Row("a-published", "NestQuant q=14 k=4 as published", published, True)
    pvq = {**_PVQ, **aware}
    label = "PVQ groups of 16, smoothed, keys centred"
    for feedback in ("none", "ldlq"):
        yield Row(f"a-pvq-{feedback}", label, {**pvq, "feedback": feedback})
    yield Row("a-pvq-general", label, pvq)
    forms = ("none", "ldlq", "isotropic", "diagonal", "full", "general")
    few = ("none", "ldlq", "isotropic", "general")
    methods: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
        "nest-plain": (f"{nest}, neither smoothed nor centred", _PLAIN, forms),
        "int4": ("int4 per row", {"method": "int4"}, few),
        "int4-g64": ("int4 in groups of 64", _G64, ("ldlq", "general")),
        "mxfp4": ("MXFP4", {"method": "mxfp4"}, few),
        "nvfp4": ("NVFP4", {"method": "nvfp4"}, few),
        "nf4": ("NF4", {"method": "nf4"}, ("ldlq",)),
    }
    for key, (label, options, chosen) in methods.items():
        for form in chosen:
            feedback = form if form in ("none", "ldlq") else "qa-ldlq"
            settings = {"regime": "w+kv+a", **options, "feedback": feedback}
            if feedback == "qa-ldlq":
                settings["qa_form"] = form
            yield Row(f"a-{key}-{form}", label, settings)
    for method in ("int4", "mxfp4", "nvfp4"):
        options = {**aware, "method": method, "smoothing": 0.5, "key_offset": True}
        yield Row(f"a-{method}-all", f"{method}, smoothed, keys centred", options)


GRID = (Row(FLOAT, "float32", {}, True), *_weights(), *_cache(), *_activations())
"""All rows, in the order of the report."""

QUICK = ("float32", "w-nest-none", "w-nest-qa-ldlq", "w-int4-none", "kv-nest-qa-ldlq", "a-nest")
"""Those of ``--quick``."""


def chosen_rows(patterns: list[str]) -> list[Row]:
    """Return the rows whose names match any shell pattern.

    Raises
    ------
    InputError
        If a pattern matches none.

    Examples
    --------
    >>> [row.name for row in chosen_rows(["w-nest14-*", "w-nest-ldlq"])]
    ['w-nest-ldlq', 'w-nest14-qa-ldlq']
    """
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in GRID):
            names = ", ".join(row.name for row in GRID)
            raise InputError(f"no row is called {pattern!r}; rows are {names}")
    return [row for row in GRID if any(fnmatchcase(row.name, pattern) for pattern in patterns)]
