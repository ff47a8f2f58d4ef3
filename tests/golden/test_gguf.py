"""GGUF files of every supported kind do what llama.cpp does with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticeq.errors import FormatError
from latticeq.jit import IS_JIT
from latticeq.model.gguf_import import import_gguf
from latticeq.model.gguf_tokenizer import build_tokenizer
from latticeq.model.loader import load
from latticeq.model.tokenizer import Tokenizer
from tests.tiny_gguf import checksum, variants, write_gguf

GOLDEN = json.loads((Path(__file__).parent / "gguf_logits.json").read_text("utf-8"))
TEXT = GOLDEN["provenance"]["text"]
VARIANTS = variants()
TOKENIZER = GOLDEN["sentencepiece"]["vocabulary"]

# llama.cpp's float32 kernels and these round in different orders; angles are computed differently.
TOLERANCE = 2e-5


def sentencepiece(**changes: Any) -> Any:
    """Return the trained tokenizer of the golden file, as a GGUF file states it."""
    pairs = {
        "model": "llama",
        "tokens": TOKENIZER["tokens"],
        "scores": np.array(TOKENIZER["scores"], np.float32),
        "token_type": np.array(TOKENIZER["token_type"], np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in (pairs | changes).items()}
    return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_tokens_and_logits_are_llama_cpps(name: str, tmp_path: Path) -> None:
    golden, (pairs, arrays) = GOLDEN["models"][name], VARIANTS[name]
    assert checksum(arrays) == golden["weights_sha256"]
    source = write_gguf(tmp_path / "m.gguf", pairs, arrays)
    folder = import_gguf(source, tmp_path / "out", progress=False)
    bos = [1] if name == "llama-3.1" else []
    ids = golden["ids"]
    assert bos + Tokenizer.from_folder(folder).tokenize(TEXT) == ids
    if IS_JIT:
        logits, wanted = load(folder).logits(ids)[-1], np.array(golden["logits"])
        assert np.abs(logits - wanted).max() < TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("case", GOLDEN["sentencepiece"]["texts"], ids=lambda case: case["text"])
def test_sentencepiece_tokens_are_llama_cpps_and_its_own(case: dict[str, Any]) -> None:
    tokenizer = build_tokenizer(sentencepiece())
    found = tokenizer.encode(case["text"], add_special_tokens=False).ids
    assert found == case["llama_cpp"]
    assert found == case.get("sentencepiece", found)
    if "</s>" not in case["text"]:  # after which spaces are added that decoding leaves there
        text = tokenizer.decode(found, skip_special_tokens=False)
        assert text == case["text"].replace("\u2581", " ")


def test_sentencepiece_puts_its_first_token_before_a_text() -> None:
    assert build_tokenizer(sentencepiece()).encode("a").ids == [1, 263]
    without = build_tokenizer(sentencepiece(add_bos_token=False))
    assert without.encode("a").ids == [263]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": None}, "scores must be 600 numbers"),
        ({"scores": np.zeros(3, np.float32)}, "scores must be 600 numbers"),
        ({"scores": TOKENIZER["tokens"]}, "scores must be 600 numbers"),
        ({"scores": np.full(600, np.nan, np.float32)}, "scores holds numbers that are none"),
        ({"token_type": None}, "token_type must be 600 numbers"),
        ({"unknown_token_id": None}, "lacks tokenizer.ggml.unknown_token_id"),
        ({"tokens": [*TOKENIZER["tokens"][:-1], "x" * 257]}, "token 599 has 257 characters"),
        ({"tokens": [t.replace("<0x1F>", "?!") for t in TOKENIZER["tokens"]]}, "lacks <0x1F>"),
    ],
)
def test_what_is_no_sentencepiece_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        build_tokenizer(sentencepiece(**changes))


def test_sentencepiece_without_a_leading_space() -> None:
    tokenizer = build_tokenizer(sentencepiece(add_space_prefix=False))
    ids = tokenizer.encode("a", add_special_tokens=False).ids
    assert [tokenizer.id_to_token(i) for i in ids] == ["a"]
    assert tokenizer.decode(tokenizer.encode(" a").ids) == " a"
