"""Rebuild a Hugging Face tokenizer from the vocabulary and merges inside a GGUF file.

GGUF keeps tokens, their types and merges, but names the pre-tokenizer with one word
(``tokenizer.ggml.pre``), so each word supported here carries the settings of the model family's own
``tokenizer.json``. Any other word is refused: a wrong split gives wrong tokens without any warning.

References
----------
.. [1] ggml-org/ggml, docs/gguf.md, section "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import TYPE_CHECKING, Any

import numpy as np

from latticeq.errors import FormatError
from latticeq.model.gguf_sentencepiece import build_sentencepiece

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

__all__ = ["SpecialTokens", "build_tokenizer", "special_tokens", "tokenizer_config"]

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama.cpp's token types that are matched whole

# contraction | letters, one sign before | digits, so many at once | signs | line ends | space
_TIKTOKEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Family:
    """What ``tokenizer.ggml.pre`` leaves unsaid about a family's tokenizer.

    Attributes
    ----------
    pattern : str or None
        Splits the text into words; None is GPT-2's own, which the library has built in.
    splits_digits : bool
        Each digit is a word of its own before anything else.
    composes : bool
        The text is put into Unicode's form NFC first.
    ignore_merges : bool
        A word that is a token is taken whole, even where the merges would not make it.
    adds_bos : bool
        Whether a text begins with the BOS token where the file does not say.
    """

    pattern: str | None = None
    splits_digits: bool = False
    composes: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


_FAMILIES = {
    "gpt-2": _Family(),
    "smollm": _Family(splits_digits=True),
    "llama-bpe": _Family(_TIKTOKEN.format(digits="{1,3}"), ignore_merges=True, adds_bos=True),
    "qwen2": _Family(_TIKTOKEN.format(digits=""), composes=True),
}


def _family(metadata: Mapping[str, Any]) -> _Family:
    word = str(metadata.get("tokenizer.ggml.pre", "missing"))
    if word not in _FAMILIES:
        raise FormatError(
            f"tokenizer.ggml.pre is {short(word)}; supported are {', '.join(_FAMILIES)}: convert "
            "from the model's Hugging Face folder instead"
        )
    return _FAMILIES[word]


def _pre_tokenizer(family: _Family) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    steps: list[Any] = [Digits(individual_digits=True)] if family.splits_digits else []
    if family.pattern is not None:
        steps.append(Split(Regex(family.pattern), behavior="isolated"))
    steps.append(ByteLevel(add_prefix_space=False, use_regex=family.pattern is None))
    return steps[0] if len(steps) == 1 else Sequence(steps)


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens with a role, None where the file states none.

    Attributes
    ----------
    bos, unk, pad : int or None
    eos : tuple of int
        Every token that ends a turn, the file's ``eos_token_id`` first.
    """

    bos: int | None
    eos: tuple[int, ...]
    unk: int | None
    pad: int | None


def special_tokens(metadata: Mapping[str, Any]) -> SpecialTokens:
    """Read the ids of the tokens with a role.

    Raises
    ------
    FormatError
        If an id is no integer or outside the vocabulary.
    """
    ids = {
        role: _token_id(metadata, f"tokenizer.ggml.{role}_token_id")
        for role in ("bos", "eos", "eot", "eom", "unknown", "padding")
    }
    ends = (ids[role] for role in ("eos", "eot", "eom"))
    eos = tuple(dict.fromkeys(end for end in ends if end is not None))
    return SpecialTokens(ids["bos"], eos, ids["unknown"], ids["padding"])


def _token_id(metadata: Mapping[str, Any], key: str) -> int | None:
    value, n_tokens = metadata.get(key), len(_tokens(metadata))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_tokens:
        raise FormatError(
            f"{key} is {short(value)}; it must be a token id from 0 to {n_tokens - 1}"
        )
    return value


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise FormatError("tokenizer.ggml.tokens is missing; the file has no vocabulary")
    return tokens


def build_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Parameters
    ----------
    metadata : mapping
        `latticeq.storage.gguf.GGUFFile.metadata`.

    Returns
    -------
    tokenizers.Tokenizer
        Byte-level or SentencePiece's BPE with the file's special tokens.

    Raises
    ------
    FormatError
        If the tokenizer is neither SentencePiece's BPE nor a byte-level one with a known
        pre-tokenizer, or is inconsistent.
    """
    from tokenizers import processors

    is_sentencepiece = _is_sentencepiece(metadata)
    tokens = _tokens(metadata)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise FormatError(f"the vocabulary of {len(tokens)} tokens has duplicates")
    if is_sentencepiece:
        unknown = special_tokens(metadata).unk
        tokenizer = build_sentencepiece(metadata, vocabulary, unknown)
    else:
        tokenizer = _byte_level(metadata, vocabulary)
    tokenizer.add_tokens(_whole_tokens(metadata, tokens))
    bos = special_tokens(metadata).bos
    if bos is not None and _adds_bos(metadata):
        first = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", first, "$B"], special_tokens=[(first, bos)]
        )
    return tokenizer


def _is_sentencepiece(metadata: Mapping[str, Any]) -> bool:
    """Tell which of the two kinds of BPE it is: llama.cpp names them after GPT-2 and Llama."""
    model = metadata.get("tokenizer.ggml.model")
    if str(model) not in ("gpt2", "llama"):
        raise FormatError(
            f"tokenizer.ggml.model is {short(model)}; supported are 'gpt2' (byte-level BPE) and "
            "'llama' (SentencePiece's BPE): convert from the model's Hugging Face folder instead"
        )
    return str(model) == "llama"


def _byte_level(metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    family = _family(metadata)
    try:
        bpe = BPE(dict(vocabulary), _merges(metadata), ignore_merges=family.ignore_merges)
    except Exception as error:  # the library raises bare Exception
        raise FormatError(f"the vocabulary and merges do not fit together: {error}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    if family.composes:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
    default = _is_sentencepiece(metadata) or _family(metadata).adds_bos
    return metadata.get("tokenizer.ggml.add_bos_token", default) is True


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise FormatError("tokenizer.ggml.merges is missing; byte-level BPE needs it")
    merges = []
    for line in lines:
        left, space, right = line.partition(" ")  # a space inside a token is spelled U+0120
        if not (left and space and right) or " " in right:
            raise FormatError(
                f"tokenizer.ggml.merges has {short(line)}, which is not a pair of tokens"
            )
        merges.append((left, right))
    return merges


def _whole_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> list[AddedToken]:
    """Return the tokens that are matched in the text before BPE: control and user-defined ones."""
    from tokenizers import AddedToken

    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, np.ndarray) or types.size != len(tokens):
        raise FormatError(f"tokenizer.ggml.token_type must be {len(tokens)} numbers, one per token")
    return [
        AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types.tolist(), strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def tokenizer_config(metadata: Mapping[str, Any], model_max_length: int) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``: roles, chat template, limits.

    Parameters
    ----------
    metadata : mapping
        `latticeq.storage.gguf.GGUFFile.metadata`.
    model_max_length : int
        The context length in tokens.
    """
    tokens, roles = _tokens(metadata), special_tokens(metadata)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "add_bos_token": _adds_bos(metadata),
    }
    eos = roles.eos[0] if roles.eos else None
    for role, index in (("bos", roles.bos), ("eos", eos), ("unk", roles.unk), ("pad", roles.pad)):
        if index is not None:
            config[f"{role}_token"] = tokens[index]
    templates = _chat_templates(metadata)
    if templates:
        is_one = list(templates) == ["default"]
        config["chat_template"] = templates["default"] if is_one else _as_list(templates)
    return config


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates by name; the one without a name is the default."""
    key = "tokenizer.chat_template"
    found = {"default": metadata.get(key)}
    found |= {k.removeprefix(f"{key}."): v for k, v in metadata.items() if k.startswith(f"{key}.")}
    return {name: template for name, template in found.items() if isinstance(template, str)}


def _as_list(templates: Mapping[str, str]) -> list[dict[str, str]]:
    """Return named templates as ``tokenizer_config.json`` has them."""
    return [{"name": name, "template": template} for name, template in templates.items()]
