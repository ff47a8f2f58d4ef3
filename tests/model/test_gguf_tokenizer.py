"""The tokenizer in a GGUF file is rebuilt as its family's tokenizer.json has it."""

from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError
from latticeq.model.gguf_tokenizer import build_tokenizer, special_tokens, tokenizer_config
from tests.tiny_gguf import MERGES, SPECIALS, byte_alphabet, metadata, vocabulary


def given(**changes: Any) -> dict[str, Any]:
    """Return metadata as GGUFFile gives it, with changes to the ``tokenizer.ggml`` keys."""
    pairs = metadata() | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    types = pairs["tokenizer.ggml.token_type"]
    if isinstance(types, list):
        pairs["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    return {key: value for key, value in pairs.items() if value is not None}


def naive_bpe(word: str) -> list[str]:
    """Apply the merges in order of rank, each to all its places, to one pre-tokenized word."""
    parts = list(word)
    for left, right in (merge.split(" ") for merge in MERGES):
        merged: list[str] = []
        for part in parts:
            if merged and merged[-1] == left and part == right:
                merged[-1] = left + right
            else:
                merged.append(part)
        parts = merged
    return parts


# Pieces as the families split this text; a leading space is spelled U+0120, a line end U+010A.
TEXT = "I'm at 12345, the hello\n\n  xÜber-3"
PIECES = {
    "gpt-2": "I|'m|Ġat|Ġ12345|,|Ġthe|Ġhello|ĊĊĠ|ĠxÃľber|-|3",
    "smollm": "I|'m|Ġat|Ġ|1|2|3|4|5|,|Ġthe|Ġhello|ĊĊĠ|ĠxÃľber|-|3",
    "llama-bpe": "I|'m|Ġat|Ġ|123|45|,|Ġthe|Ġhello|ĊĊ|Ġ|ĠxÃľber|-|3",
    "qwen2": "I|'m|Ġat|Ġ|1|2|3|4|5|,|Ġthe|Ġhello|ĊĊ|Ġ|ĠxÃľber|-|3",
}


@pytest.mark.parametrize("pre", PIECES)
def test_pieces_and_tokens(pre: str) -> None:
    tokenizer = build_tokenizer(given(pre=pre))
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(TEXT)]
    assert pieces == PIECES[pre].split("|")
    expected = [token for piece in pieces for token in naive_bpe(piece)]
    assert tokenizer.encode(TEXT, add_special_tokens=False).tokens == expected
    assert {"\u0120the", "he", "hell"} & set(expected) == {"\u0120the"}
    assert ("12" in expected) == (pre in ("gpt-2", "llama-bpe"))


@pytest.mark.parametrize(
    "text",
    ["", " ", "\0", "é", "e\u0301", "日本語", "🙂‍↔️", "\ufeff", "a\r\n b\t", "  ٣٤ ½", "\u0120"],
)
def test_odd_texts_come_back(text: str) -> None:
    tokenizer = build_tokenizer(given())
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    alphabet = byte_alphabet()
    spelled = "".join(tokenizer.id_to_token(index) for index in ids)
    assert spelled == "".join(alphabet[byte] for byte in text.encode())


def test_ids_are_positions_in_the_file() -> None:
    tokenizer = build_tokenizer(given())
    for index, token in enumerate(vocabulary()):
        assert tokenizer.token_to_id(token) == index
    assert tokenizer.get_vocab_size() == len(vocabulary())


def test_qwen2_composes_characters() -> None:
    tokenizer = build_tokenizer(given(pre="qwen2"))
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("é").ids


def test_special_and_user_defined_tokens() -> None:
    types = [3, 3, 4] + [1] * (len(vocabulary()) - 3)
    tokenizer = build_tokenizer(given(token_type=types))
    text = "a<|im_start|> <|im_end|>"
    assert [SPECIALS.index(t) for t in tokenizer.encode(text).tokens if t in SPECIALS] == [1, 2]
    added = tokenizer.get_added_tokens_decoder()
    assert {index: token.special for index, token in added.items()} == {0: True, 1: True, 2: False}


def test_whole_words_of_llama_3_win_over_merges() -> None:
    tokens = [*vocabulary(), "12345"]
    types = [1] * len(tokens)
    changes = {"tokens": tokens, "token_type": types}
    assert build_tokenizer(given(pre="gpt-2", **changes)).encode("12345").tokens[0] == "12"
    tokens[-1] = "345"
    assert build_tokenizer(given(pre="llama-bpe", **changes)).encode("345").tokens == [
        "<|im_start|>",
        "345",
    ]


@pytest.mark.parametrize(
    ("changes", "adds"),
    [
        ({"pre": "llama-bpe"}, True),
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"pre": "smollm"}, False),
        ({"pre": "smollm", "add_bos_token": True}, True),
        ({"pre": "llama-bpe", "bos_token_id": None}, False),
    ],
)
def test_beginning_of_text(changes: dict[str, Any], adds: bool) -> None:
    pairs = given(**changes)
    tokenizer = build_tokenizer(pairs)
    assert (tokenizer.encode("a").tokens == ["<|im_start|>", "a"]) == adds
    assert tokenizer.encode("a", add_special_tokens=False).tokens == ["a"]
    if "tokenizer.ggml.bos_token_id" in pairs:
        assert tokenizer_config(pairs, 128)["add_bos_token"] is adds


def test_tokenizer_config() -> None:
    assert tokenizer_config(given(), 128) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "chat_template": "{{ messages }}",
    }


def test_named_chat_templates_become_a_list() -> None:
    pairs = given() | {
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }
    named = [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
    ]
    assert tokenizer_config(pairs, 128)["chat_template"] == named
    del pairs["tokenizer.chat_template"]
    assert tokenizer_config(pairs, 128)["chat_template"] == named[1:]
    del pairs["tokenizer.chat_template.tool_use"]
    assert "chat_template" not in tokenizer_config(pairs, 128)
    assert "chat_template" not in tokenizer_config(pairs | {"tokenizer.chat_template": 3}, 128)


def test_every_end_token_counts_once() -> None:
    roles = special_tokens(given(eot_token_id=0, eom_token_id=2))
    assert (roles.bos, roles.eos, roles.unk, roles.pad) == (1, (2, 0), 0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "t5"}, "model is 't5'; supported are 'gpt2' .* and 'llama'"),
        ({"model": "llama"}, "the vocabulary lacks <0x00>; SentencePiece's BPE is supported with"),
        ({"model": None}, "model is None"),
        ({"model": np.array([1, 2])}, "model is array"),
        ({"pre": "deepseek-coder"}, "pre is 'deepseek-coder'; supported are"),
        ({"pre": None}, "pre is 'missing'"),
        ({"tokens": None}, "no vocabulary"),
        ({"tokens": []}, "no vocabulary"),
        ({"tokens": ["a"] * len(vocabulary())}, "has duplicates"),
        ({"merges": None}, "merges is missing"),
        ({"merges": ["he"]}, "not a pair"),
        ({"merges": ["h e l"]}, "not a pair"),
        ({"merges": ["h zebra"]}, "do not fit together"),
        ({"merges": ["e h"]}, "do not fit together"),
        ({"token_type": None}, "token_type must be"),
        ({"token_type": [1]}, "token_type must be"),
        ({"bos_token_id": -1}, "bos_token_id is -1; it must be a token id"),
        ({"bos_token_id": True}, "bos_token_id is True"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        build_tokenizer(given(**changes))
