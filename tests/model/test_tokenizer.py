"""Tokenizing is exact, streaming never shows part of a character, stop ids come from the files."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from latticeq.errors import FormatError, InputError
from latticeq.model.gguf_tokenizer import build_tokenizer
from latticeq.model.tokenizer import Tokenizer
from tests.model.test_gguf_tokenizer import given as gguf_metadata
from tests.tiny_gguf import vocabulary

N_TOKENS = len(vocabulary())


def byte_level() -> Tokenizer:
    return Tokenizer(build_tokenizer(gguf_metadata()), frozenset([2]))


def sentencepiece_like() -> Tokenizer:
    """Return a Llama 2 style tokenizer: marked spaces, bytes for unknown characters."""
    tokens = ["<unk>", "▁", "a", "b", "▁a", "▁b", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "a"), ("▁", "b")]
    bpe = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>")
    backend = tokenizers.Tokenizer(bpe)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend, frozenset([0]))


def stream(tokenizer: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    decoder = tokenizer.stream()
    return [decoder.push(token_id) for token_id in ids], decoder.finish()


@given(st.text())
@example("the hello 12 🙂 é\u0301 日本語 <|im_end|>")
def test_text_comes_back(text: str) -> None:
    tokenizer = byte_level()
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
@given(text=st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
@example(text="a 🙂🙂 b日本")
@example(text="  a")
def test_stream_shows_whole_characters(make: Any, text: str) -> None:
    tokenizer = make()
    ids = tokenizer.tokenize(text)
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.detokenize(ids)
    assert "\ufffd" not in "".join(pieces)
    assert rest == ""


@given(st.lists(st.integers(0, N_TOKENS - 1), max_size=60))
@example([3 + 0xE2, 3 + 0x82])  # a character that never ends
@example([3 + 0xEF, 3 + 0xBF, 3 + 0xBD, 10])  # U+FFFD itself
def test_stream_of_any_ids_equals_detokenize(ids: list[int]) -> None:
    tokenizer = byte_level()
    pieces, rest = stream(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.detokenize(ids)


def test_each_byte_of_a_character_waits_for_the_last() -> None:
    tokenizer = byte_level()
    ids = tokenizer.tokenize("é日🙂")
    assert len(ids) == 2 + 3 + 4
    pieces, rest = stream(tokenizer, ids)
    assert pieces == ["", "é", "", "", "日", "", "", "", "🙂"]
    assert rest == ""


def test_text_is_shown_at_once_and_the_window_stays_small() -> None:
    tokenizer = byte_level()
    decoder = tokenizer.stream()
    for _ in range(100):
        assert decoder.push(tokenizer.tokenize("a")[0]) == "a"
        assert len(decoder._window) == 1


def test_a_finished_stream_can_be_used_again() -> None:
    tokenizer = byte_level()
    decoder = tokenizer.stream()
    assert decoder.push(3 + 0xE2) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.push(3 + ord("a")) == "a"
    assert decoder.finish() == ""


def write_folder(folder: Path, **documents: Any) -> Path:
    (folder / "tokenizer.json").write_text(build_tokenizer(gguf_metadata()).to_str(), "utf-8")
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(
    ("documents", "stop_ids"),
    [
        ({"generation_config": {"eos_token_id": 2}, "config": {"eos_token_id": 0}}, {2}),
        ({"generation_config": {"eos_token_id": [2, 0]}}, {0, 2}),
        ({"generation_config": {}, "config": {"eos_token_id": 0}}, {0}),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": [1]}}, {1}),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}}, {2}),
        ({"config": {}, "tokenizer_config": {"eos_token": {"content": "<|im_start|>"}}}, {1}),
    ],
)
def test_stop_ids(tmp_path: Path, documents: dict[str, Any], stop_ids: set[int]) -> None:
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, **documents))
    assert tokenizer.stop_ids == stop_ids
    assert tokenizer.vocab_size == N_TOKENS


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ({}, "no end token"),
        ({"tokenizer_config": {"eos_token": "<|nowhere|>"}}, "no end token"),
        ({"generation_config": {"eos_token_id": "2"}}, "generation_config.json: eos_token_id is"),
        ({"generation_config": {"eos_token_id": True}}, "generation_config.json: eos_token_id is"),
        ({"generation_config": {"eos_token_id": [N_TOKENS]}}, "eos_token_id is"),
        ({"generation_config": {"eos_token_id": -1}}, "eos_token_id is"),
        ({"generation_config": [2]}, r"generation_config.json: must hold a JSON object"),
    ],
)
def test_bad_stop_ids(tmp_path: Path, documents: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        Tokenizer.from_folder(write_folder(tmp_path, **documents))


def test_a_prompt_begins_as_the_tokenizer_says() -> None:
    plain = byte_level()
    assert plain.tokenize_prompt("the hello") == plain.tokenize("the hello")
    llama = Tokenizer(build_tokenizer(gguf_metadata(pre="llama-bpe")), frozenset([2]))
    ids = llama.tokenize("the hello")
    assert llama.tokenize_prompt("the hello") == [1, *ids]
    assert llama.tokenize_prompt("<|im_start|>the hello") == [1, *ids]
    assert llama.tokenize_prompt("") == []


def test_what_is_neither_text_nor_ids() -> None:
    tokenizer = byte_level()
    with pytest.raises(InputError, match="valid Unicode"):
        tokenizer.tokenize("\udcff")
    with pytest.raises(InputError, match="token ids"):
        tokenizer.detokenize([-1])
    assert tokenizer.detokenize([N_TOKENS, 3 + ord("a")]) == "a"  # a padded row of the model


def test_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json is missing; copy tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"model": {"type": "BPE"}}', "\0"])
def test_invalid_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FormatError, match=r"tokenizer\.json: is not a valid tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    backend = build_tokenizer(gguf_metadata())
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    write_folder(tmp_path, config={"eos_token_id": 2})
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).tokenize("abcdef")) == 6
