"""The numbers in a model's ``config.json``, checked once and typed.

Field names are those of Hugging Face, unchanged. What a field may be is decided here, before any
weight is read: an unknown architecture, activation or rotary scaling is refused by name, since a
model that runs with the wrong one gives wrong text and no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latticeq.errors import InputError

__all__ = ["ARCHITECTURES", "LlamaConfig", "RopeScaling"]

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Architectures whose forward pass is the Llama one, up to biases."""

_ROPE_TYPES = ("default", "linear", "llama3")
_ACTIVATIONS = ("silu", "swish")  # two names of one function

_LARGEST = 2**24
"""Above every width, vocabulary and context in use; products of two such sizes fit in int64."""

_MOST_LAYERS = 2**12


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


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama-family model.

    Attributes
    ----------
    architecture : str
        One of `ARCHITECTURES`.
    hidden_size, intermediate_size, vocab_size : int
        D, F and V of the shape letters.
    num_hidden_layers : int
        How many blocks.
    num_attention_heads, num_key_value_heads, head_dim : int
        H, G and K; G divides H, and K is even.
    max_position_embeddings : int
        The longest context that the model was made for.
    rms_norm_eps, rope_theta : float
        The floor under a mean square; the base of the rotary wavelengths.
    rope_scaling : RopeScaling
        How those wavelengths are stretched.
    tie_word_embeddings : bool
        The head is the embedding matrix.
    qkv_bias, o_bias, mlp_bias : bool
        Which linears carry a bias: ``attention_bias`` of Llama sets the first two, Qwen2 has the
        first one always.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read and check the fields of a ``config.json``; unknown fields are ignored.

        Parameters
        ----------
        config : mapping
            The parsed JSON object.

        Raises
        ------
        InputError
            Naming the field, its value and what it may be.

        Examples
        --------
        >>> config = LlamaConfig.from_dict(
        ...     {
        ...         "architectures": ["LlamaForCausalLM"],
        ...         "hidden_size": 64,
        ...         "intermediate_size": 128,
        ...         "num_hidden_layers": 2,
        ...         "num_attention_heads": 4,
        ...         "vocab_size": 100,
        ...         "max_position_embeddings": 512,
        ...         "rms_norm_eps": 1e-5,
        ...     }
        ... )
        >>> config.head_dim * config.num_attention_heads == config.hidden_size
        True
        """
        fields = _Fields(config)
        architecture = _architecture(config)
        hidden_size = fields.size("hidden_size")
        heads = fields.size("num_attention_heads")
        kv_heads = fields.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise InputError(
                f"num_key_value_heads is {kv_heads}; it must divide num_attention_heads = {heads}"
            )
        context = fields.size("max_position_embeddings")
        _refuse_variants(config, architecture, context)
        is_qwen2 = architecture == "Qwen2ForCausalLM"
        attention_bias = fields.flag("attention_bias")
        theta, scaling = _rope(config, context)
        return cls(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            num_hidden_layers=fields.size("num_hidden_layers", largest=_MOST_LAYERS),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=_head_dim(fields, hidden_size, heads),
            vocab_size=fields.size("vocab_size"),
            max_position_embeddings=context,
            rms_norm_eps=fields.positive("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or is_qwen2,
            o_bias=attention_bias and not is_qwen2,
            mlp_bias=fields.flag("mlp_bias"),
        )


class _Fields:
    """Typed access to a JSON object, with errors that name the field."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:  # absent and null mean the same in these files
            value = default
        if value is None:
            raise InputError(f"{self.where}{name} is missing; config.json must state it")
        return value

    def size(self, name: str, default: int | None = None, largest: int = _LARGEST) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise InputError(
                f"{self.where}{name} is {value!r}; it must be an integer from 1 to {largest}"
            )
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{self.where}{name} is {value!r}; it must be a positive number")
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{self.where}{name} is {value!r}; it must be finite and above 0")
        return float(value)

    def flag(self, name: str) -> bool:
        value = self._get(name, False)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}{name} is {value!r}; it must be true or false")
        return value


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise InputError(
            f"architectures is {names!r}; it must be a list of one name from {ARCHITECTURES}"
        )
    name: str = names[0]
    if name not in ARCHITECTURES:
        raise InputError(
            f"architecture {name!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )
    return name


def _head_dim(fields: _Fields, hidden_size: int, heads: int) -> int:
    if fields.values.get("head_dim") is None and hidden_size % heads:
        raise InputError(
            f"hidden_size is {hidden_size}; without head_dim it must be a multiple of "
            f"num_attention_heads = {heads}"
        )
    head_dim = fields.size("head_dim", max(1, hidden_size // heads))
    if head_dim % 2:
        raise InputError(f"head_dim is {head_dim}; it must be even, for rotary pairs")
    return head_dim


def _refuse_variants(config: Mapping[str, Any], architecture: str, context: int) -> None:
    """Refuse what these architectures may ask for and this forward pass does not do."""
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"hidden_act is {activation!r}; supported are {', '.join(map(repr, _ACTIVATIONS))}"
        )
    window = config.get("sliding_window")
    if architecture == "Qwen2ForCausalLM" and not config.get("use_sliding_window", False):
        window = None  # Qwen2 files state a window that they do not use
    if window is not None and not (isinstance(window, int) and window >= context):
        raise InputError(
            f"sliding_window is {window!r}; sliding-window attention is not supported, it must be "
            f"null or at least max_position_embeddings = {context}"
        )
    rotary = config.get("partial_rotary_factor", 1.0)
    if rotary not in (None, 1, 1.0):
        raise InputError(f"partial_rotary_factor is {rotary!r}; only 1.0 is supported")


def _rope(config: Mapping[str, Any], context: int) -> tuple[float, RopeScaling]:
    """Read ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` that holds both."""
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{name} is {given!r}; it must be an object or null")
    inner = _Fields(given, f"{name}.")
    outer = _Fields(config)
    theta = inner.positive("rope_theta", outer.positive("rope_theta", 10000.0))
    rope_type = given.get("rope_type", given.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        raise InputError(
            f"{name}.rope_type is {rope_type!r}; supported are {', '.join(map(repr, _ROPE_TYPES))}"
        )
    if rope_type == "default":
        return theta, RopeScaling()
    factor = inner.positive("factor")
    if rope_type == "linear":
        return theta, RopeScaling("linear", factor)
    scaling = RopeScaling(
        "llama3",
        factor,
        inner.positive("low_freq_factor"),
        inner.positive("high_freq_factor"),
        inner.size("original_max_position_embeddings", context),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(
            f"{name}.high_freq_factor is {scaling.high_freq_factor}; it must be above "
            f"low_freq_factor = {scaling.low_freq_factor}"
        )
    return theta, scaling
