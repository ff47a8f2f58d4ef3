"""The verbs ``perplexity`` and ``generate`` on a tiny model whose tokens are bytes."""

import hashlib
import json
from pathlib import Path

import pytest

from latticeq.cli.main import main
from latticeq.model.loader import load
from latticeq.model.perplexity import perplexity
from latticeq.model.tokenizer import Tokenizer
from tests.tiny_model import write_byte_model

Capture = pytest.CaptureFixture[str]
TEXT = "Ünïcode and 日本語 are more bytes than letters. " * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_byte_model(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_bytes(TEXT.encode())
    return tmp_path / "text.txt"


def test_perplexity_reports_numbers_and_protocol(folder: Path, text: Path, capsys: Capture) -> None:
    words = ["perplexity", str(folder), "--text", str(text), "--context", "16", "--windows", "3"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    ids = Tokenizer.from_folder(folder).tokenize(TEXT)
    expected = perplexity(load(folder), ids, context=16, windows=3).as_dict()
    assert result["window_losses"] == pytest.approx(list(expected.pop("window_losses")))
    assert {key: result[key] for key in expected} == pytest.approx(expected)
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    assert (result["text_sha256"], result["text_tokens"]) == (sha256, len(ids))
    assert (result["context"], result["bos"], result["dtype"]) == (16, False, "float32")
    for word in (sha256[:16], "windows of 16", "no BOS", "weights float32"):
        assert word in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--context", "200"], 2, "tokens, less than one window of 200"),
        (["--context", "257"], 2, "context is 257; it must be from 1 to 256"),
        (["--windows", "0"], 2, "windows is 0"),
        (["--text", "missing.txt"], 1, "missing.txt: No such file"),
    ],
)
def test_perplexity_refuses(
    folder: Path, text: Path, capsys: Capture, options: list[str], code: int, message: str
) -> None:
    words = ["perplexity", str(folder), "--text", str(text), "--context", "16", *options]
    assert main(words) == code
    assert message in capsys.readouterr().err


def test_perplexity_refuses_bytes_that_are_no_text(
    folder: Path, text: Path, capsys: Capture
) -> None:
    text.write_bytes(b"\xff" * 100)
    assert main(["perplexity", str(folder), "--text", str(text)]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_generate_streams_what_the_model_says(folder: Path, capsys: Capture) -> None:
    words = ["generate", str(folder), "--prompt", "日本", "--max-tokens", "9"]
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    *shown, last = out.splitlines(keepends=True)
    result = json.loads(last)
    tokenizer = Tokenizer.from_folder(folder)
    prompt = tokenizer.tokenize("日本")
    ids = load(folder).generate(prompt, max_tokens=9, stop_ids=tokenizer.stop_ids)
    assert result["text"] == tokenizer.detokenize(ids)
    assert "".join(shown) == result["text"] + "\n"
    assert result["tokens"] == len(ids)
    assert result["prompt_tokens"] == 6
    assert result["finish_reason"] == ("length" if len(ids) == 9 else "stop")
    assert result["decode_tokens_per_s"] > 0
    assert "tokens/s" in err


def test_generate_repeats_with_its_seed(folder: Path, capsys: Capture) -> None:
    words = ["generate", str(folder), "--prompt", "a", "--max-tokens", "12", "--temperature", "2"]
    texts = []
    for seed in ("1", "1", "2"):
        assert main([*words, "--seed", seed, "--json"]) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[-1])["text"])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a" * 256], "the prompt has 256 tokens"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens is 0"),
        (["--prompt", "a", "--top-p", "2"], "top_p is 2.0"),
    ],
)
def test_generate_refuses(folder: Path, capsys: Capture, options: list[str], message: str) -> None:
    assert main(["generate", str(folder), *options]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, capsys: Capture) -> None:
    (folder / "tokenizer.json").unlink()
    assert main(["generate", str(folder), "--prompt", "a"]) == 1
    assert "tokenizer.json is missing" in capsys.readouterr().err
