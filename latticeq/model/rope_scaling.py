"""How a ``config.json`` says that rotary frequencies are stretched, in old files and new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latticeq.errors import InputError
from latticeq.model.fields import Fields

__all__ = ["RopeScaling", "read_rope"]

_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that the model was first trained on.

    Attributes
    ----------
    rope_type : str
        ``"default"`` (not at all), ``"linear"`` or ``"llama3"``.
    factor : float
        The stretch of the context, at least 1.
    low_freq_factor, high_freq_factor : float
        ``llama3`` only: wavelengths longer than ``original / low`` are stretched, those shorter
        than ``original / high`` are kept, those between are interpolated.
    original_max_position_embeddings : int
        ``llama3`` only: the context before stretching.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def read_rope(config: Mapping[str, Any], context: int) -> tuple[float, RopeScaling]:
    """Read ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` that holds both.

    Parameters
    ----------
    config : mapping
        The object in ``config.json``.
    context : int
        Its ``max_position_embeddings``.

    Returns
    -------
    theta : float
        The base of the wavelengths.
    scaling : RopeScaling

    Raises
    ------
    InputError
        Naming the field, its value and what it may be.
    """
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{name} is {given!r}; it must be an object or null")
    if name == "rope_parameters" and config.get("rope_scaling") not in (None, {}, given):
        raise InputError("rope_parameters and rope_scaling differ; config.json must have one")
    for key, value in given.items():
        if isinstance(value, Mapping):
            raise InputError(
                f"{name}.{key} is an object: rotary positions of its own for a kind of layer; only "
                "one set for all layers is supported"
            )
    inner, outer = Fields(given, f"{name}."), Fields(config)
    for fields in (inner, outer):
        if fields.positive("partial_rotary_factor", 1.0) != 1:
            raise InputError(
                f"{fields.where}partial_rotary_factor is "
                f"{fields.values['partial_rotary_factor']!r}; only 1.0 is supported"
            )
    theta = inner.positive("rope_theta", outer.positive("rope_theta", 10000.0))
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        raise InputError(
            f"{name}.rope_type is {rope_type!r}; supported are {', '.join(map(repr, _ROPE_TYPES))}"
        )
    return theta, _scaling(str(rope_type), inner, outer, context)


def _scaling(rope_type: str, inner: Fields, outer: Fields, context: int) -> RopeScaling:
    if rope_type == "default":
        return RopeScaling()
    factor = inner.positive("factor")
    if factor < 1:
        raise InputError(f"{inner.where}factor is {factor}; it must be at least 1")
    if rope_type == "linear":
        return RopeScaling("linear", factor)
    name = "original_max_position_embeddings"
    original = inner.size(name, outer.size(name, context))
    if outer.size(name, original) != original:
        raise InputError(
            f"{inner.where}{name} is {original} and {name} is {outer.values[name]}; config.json "
            "must agree with itself"
        )
    scaling = RopeScaling(
        "llama3",
        factor,
        inner.positive("low_freq_factor"),
        inner.positive("high_freq_factor"),
        original,
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(
            f"{inner.where}high_freq_factor is {scaling.high_freq_factor}; it must be above "
            f"low_freq_factor = {scaling.low_freq_factor}"
        )
    return scaling
