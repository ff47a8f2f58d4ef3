"""Rebuild the tokenizers of Llama 2, TinyLlama and Mistral: SentencePiece's BPE, from a GGUF file.

SentencePiece joins the neighbours whose join has the highest score; the ``tokenizers`` library
joins those whose pair stands first in a list of merges. So that list is every way to cut a token
into two tokens, by the token's score. Spaces are spelled U+2581, a text (after every special token
anew) begins with one, and characters that are no token become the tokens of their bytes.

References
----------
.. [1] T. Kudo, J. Richardson, *SentencePiece*, EMNLP 2018, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from latticeq.errors import FormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["build_sentencepiece"]

_SPACE = "\u2581"
_MERGED = (1, 4, 5)  # llama.cpp's token types normal, user-defined and unused
_LONGEST = 256  # characters of a token: cutting it takes as many steps


def build_sentencepiece(
    metadata: Mapping[str, Any], vocabulary: Mapping[str, int], unknown: int | None
) -> Tokenizer:
    """Build the tokenizer, without special tokens.

    Parameters
    ----------
    metadata : mapping
        `latticeq.storage.gguf.GGUFFile.metadata`.
    vocabulary : mapping of str to int
        Tokens to ids.
    unknown : int, optional
        The id of the unknown token.

    Raises
    ------
    FormatError
        If scores, types or the tokens of bytes are missing.
    """
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]
    if missing or unknown is None:
        lost = missing[0] if missing else "tokenizer.ggml.unknown_token_id"
        raise FormatError(
            f"the vocabulary lacks {lost}; SentencePiece's BPE is supported with a token for each "
            "byte, and an unknown one"
        )
    tokens = list(vocabulary)
    bpe = BPE(
        dict(vocabulary),
        _merges(metadata, vocabulary),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    back: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True) is True:
        steps.insert(0, normalizers.Prepend(_SPACE))
        back.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges(metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every pair of tokens whose join is a token, the join of the highest score first."""
    scores = _numbers(metadata, "tokenizer.ggml.scores", len(vocabulary))
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(vocabulary))
    if np.isnan(scores).any():
        raise FormatError("tokenizer.ggml.scores holds numbers that are none")
    merges = []
    for token, index in vocabulary.items():
        if types[index] not in _MERGED:
            continue
        if len(token) > _LONGEST:
            raise FormatError(f"token {index} has {len(token)} characters; {_LONGEST} are allowed")
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-float(scores[index]), index, -cut, left, right))
    # To SentencePiece, cuts of one token are equal; here the longest left part is first.
    return [(left, right) for *_, left, right in sorted(merges)]


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> np.ndarray[Any, Any]:
    found = metadata.get(key)
    if not isinstance(found, np.ndarray) or found.size != count or found.dtype.kind not in "iuf":
        raise FormatError(f"{key} must be {count} numbers, one per token")
    return found
