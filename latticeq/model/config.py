"""The numbers in a model's ``config.json``, checked once and typed.

Field names are those of Hugging Face, unchanged. What a field may be is decided here, before any
weight is read: an unknown architecture, activation, rotary scaling or kind of attention is refused
by name, since a model that runs with the wrong one gives wrong text and no error.

Where a file leaves a field out, the default is the one that the architecture has in transformers,
since that is what the file's author relied on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latticeq.errors import InputError
from latticeq.model.fields import Fields
from latticeq.model.rope_scaling import RopeScaling, read_rope

__all__ = ["ARCHITECTURES", "LlamaConfig", "RopeScaling"]

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Architectures whose forward pass is the Llama one, up to biases."""

_MODEL_TYPES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
_MODEL_TYPES["Qwen2ForCausalLM"] = "qwen2"

_ACTIVATIONS = ("silu", "swish")  # two names of one function
_ATTENTIONS = ("full_attention", "sliding_attention")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_MOST_LAYERS = 2**12

# What transformers takes where a file has no such field.
_WINDOW = 4096
_FIRST_SLIDING_LAYER = 28


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
        Which linears carry a bias: ``attention_bias`` of Llama sets the first two and ``mlp_bias``
        the third, Qwen2 always has the first alone, Mistral has none.
    sliding_window : int, optional
        How many tokens the attention of some layer sees at most, its own included.
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
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None

    @property
    def longest_context(self) -> int:
        """The most tokens of a sequence: as long as no window has to slide."""
        longest = self.max_position_embeddings
        return longest if self.sliding_window is None else min(longest, self.sliding_window)

    @property
    def context_limit(self) -> str:
        """What `longest_context` is, in words for errors."""
        if self.longest_context == self.max_position_embeddings:
            return "the model's max_position_embeddings"
        return (
            "the model's sliding_window: attention that slides is not supported, so a text has to "
            "fit in one window"
        )

    def check_context(self, context: int) -> None:
        """Refuse a context that the model does not have.

        Raises
        ------
        InputError
            If it is not from 1 to `longest_context`.
        """
        if not 1 <= context <= self.longest_context:
            raise InputError(
                f"context is {context}; it must be from 1 to {self.longest_context}, "
                f"{self.context_limit}"
            )

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
        fields = Fields(config)
        architecture = _architecture(config)
        hidden_size = fields.size("hidden_size")
        layers = fields.size("num_hidden_layers", largest=_MOST_LAYERS)
        heads = fields.size("num_attention_heads")
        kv_heads = fields.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise InputError(
                f"num_key_value_heads is {kv_heads}; it must divide num_attention_heads = {heads}"
            )
        context = fields.size("max_position_embeddings")
        _refuse_variants(config)
        has_options = architecture == "LlamaForCausalLM"  # the others' biases are fixed
        attention_bias = has_options and fields.flag("attention_bias")
        theta, scaling = read_rope(config, context)
        return cls(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=_head_dim(fields, hidden_size, heads),
            vocab_size=fields.size("vocab_size"),
            max_position_embeddings=context,
            rms_norm_eps=fields.positive("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
            o_bias=attention_bias,
            mlp_bias=has_options and fields.flag("mlp_bias"),
            sliding_window=_sliding_window(fields, architecture, layers),
        )


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
    expected, found = _MODEL_TYPES[name], config.get("model_type")
    if found not in (None, expected):
        raise InputError(
            f"model_type is {found!r} and architectures has {name!r}, whose model_type is "
            f"{expected!r}; config.json must agree with itself"
        )
    return name


def _head_dim(fields: Fields, hidden_size: int, heads: int) -> int:
    if not fields.has("head_dim") and hidden_size % heads:
        raise InputError(
            f"hidden_size is {hidden_size}; without head_dim it must be a multiple of "
            f"num_attention_heads = {heads}"
        )
    head_dim = fields.size("head_dim", max(1, hidden_size // heads))
    if head_dim % 2:
        raise InputError(f"head_dim is {head_dim}; it must be even, for rotary pairs")
    return head_dim


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """Refuse what files of these architectures may ask for and this forward pass does not do."""
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"hidden_act is {activation!r}; supported are {', '.join(map(repr, _ACTIVATIONS))}"
        )
    for name in _EXPERTS:
        if config.get(name) not in (None, 0, 1):
            raise InputError(
                f"{name} is {config[name]!r}: a mixture of experts; only dense models are supported"
            )


def _sliding_window(fields: Fields, architecture: str, layers: int) -> int | None:
    """Return the window, if the attention of any layer has one.

    Llama has none in transformers; a file that states one anyhow belongs to a model that was
    trained with it, and within one window both readings are the same.
    """
    if not _has_sliding_layer(fields, architecture, layers):
        return None
    # An explicit null is full attention, an absent field is not.
    is_default = "sliding_window" not in fields.values and architecture != "LlamaForCausalLM"
    if not is_default and not fields.has("sliding_window"):
        return None
    return fields.size("sliding_window", _WINDOW)


def _has_sliding_layer(fields: Fields, architecture: str, layers: int) -> bool:
    kinds = fields.values.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise InputError(
                f"layer_types must be a list of {layers} names, one for each of num_hidden_layers"
            )
        for kind in kinds:
            if kind not in _ATTENTIONS:
                raise InputError(
                    f"layer_types has {kind!r}; supported are {', '.join(map(repr, _ATTENTIONS))}"
                )
    if architecture != "Qwen2ForCausalLM":
        return True
    if not fields.flag("use_sliding_window"):
        return False  # its files state a window that they do not use
    if kinds is not None:
        return "sliding_attention" in kinds
    return fields.size("max_window_layers", _FIRST_SLIDING_LAYER, least=0) < layers
