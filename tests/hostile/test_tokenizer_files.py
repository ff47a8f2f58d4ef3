"""Damaged and hostile tokenizer files: a FormatError that names the file, in little time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from latticeq.errors import FormatError
from latticeq.model.tokenizer import Tokenizer
from tests.tiny_model import write_byte_model

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
DIGITS = {"type": "Digits", "individual_digits": True}


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def chain(name: str, parts: list[Any]) -> dict[str, Any]:
    return {"type": "Sequence", name: parts}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_model(tmp_path_factory.mktemp("tokenizer") / "model")


def changed(source: Path, folder: Path, **changes: Any) -> Path:
    document = json.loads((source / "tokenizer.json").read_text("utf-8")) | changes
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


GROWING = [
    ("pre_tokenizer", chain("pretokenizers", [BYTE_LEVEL] * 50)),
    ("pre_tokenizer", chain("pretokenizers", [chain("pretokenizers", [BYTE_LEVEL] * 6)] * 2)),
    ("normalizer", chain("normalizers", [replace({"String": "a"}, "aa")] * 11)),
    ("normalizer", chain("normalizers", [replace({"Regex": "a|b"}, "abababab")] * 4)),
    ("normalizer", replace({"String": ""}, "a" * 2000)),
    ("normalizer", {"type": "Prepend", "prepend": "a" * 2000}),
    ("normalizer", chain("normalizers", [{"type": "NFKD"}] * 3)),
    ("decoder", chain("decoders", [replace({"String": "a"}, "aa")] * 40)),
]


@pytest.mark.parametrize(("part", "value"), GROWING)
def test_a_chain_that_would_fill_the_memory_is_refused(
    model: Path, tmp_path: Path, part: str, value: Any
) -> None:
    folder = changed(model, tmp_path, **{part: value})
    message = rf"tokenizer\.json: its {part} could make a text .* times as long"
    with pytest.raises(FormatError, match=message):
        Tokenizer.from_folder(folder)


def test_a_chain_without_end_is_refused(model: Path, tmp_path: Path) -> None:
    folder = changed(model, tmp_path, pre_tokenizer=chain("pretokenizers", [DIGITS] * 65))
    with pytest.raises(FormatError, match="its pre_tokenizer has 65 components; at most 64"):
        Tokenizer.from_folder(folder)


LONGER = [
    ("normalizer", chain("normalizers", [{"type": "NFKC"}, {"type": "Lowercase"}])),
    ("normalizer", chain("normalizers", [replace({"String": " "}, "▁"), {"type": "NFC"}])),
    ("pre_tokenizer", chain("pretokenizers", [DIGITS, BYTE_LEVEL])),
]


@pytest.mark.parametrize(("part", "value"), LONGER)
def test_chains_of_real_models_are_taken(
    model: Path, tmp_path: Path, part: str, value: Any
) -> None:
    tokenizer = Tokenizer.from_folder(changed(model, tmp_path, **{part: value}))
    assert tokenizer.vocab_size == 256


def test_an_expression_that_would_take_for_ever_is_an_error(model: Path, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated"}
    folder = changed(model, tmp_path, pre_tokenizer=split | {"invert": False})
    tokenizer = Tokenizer.from_folder(folder)
    start = time.process_time()
    with pytest.raises(FormatError, match=r"tokenizer\.json may be damaged.*: it fails on a text"):
        tokenizer.tokenize("a" * 5000)
    assert time.process_time() - start < 5


def test_a_panic_inside_the_library_is_an_error(model: Path, tmp_path: Path) -> None:
    document = json.loads((model / "tokenizer.json").read_text("utf-8"))
    broken = document["model"] | {"continuing_subword_prefix": "x" * 20, "merges": [["a", "b"]]}
    broken["vocab"] = {"a": 0, "b": 1, "ab": 2}
    with pytest.raises(FormatError, match=r"tokenizer\.json: is not a valid tokenizer: "):
        Tokenizer.from_folder(changed(model, tmp_path, model=broken))


def test_an_unknown_token_without_an_id_is_an_error(model: Path, tmp_path: Path) -> None:
    unigram = {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False}
    folder = changed(model, tmp_path, model=unigram, pre_tokenizer=None, decoder=None)
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.raises(FormatError, match=r"it fails on a text: .*unk_id"):
        tokenizer.tokenize("b")
