"""``bench DIR``: the keys of its contract, sane numbers, and refusals before any work."""

from pathlib import Path

import pytest

from latticeq.cli.bench_speed import block_weights, bytes_per_token
from latticeq.model.loader import load
from tests.tiny_model import byte_config, latticeq, write_byte_model

SMALL = ("--prompt-tokens", 8, "--decode-tokens", 4, "--repeats", 3)


def test_the_numbers(packed: Path) -> None:
    done = latticeq("bench", packed, *SMALL)
    assert done.code == 0, done.err
    result = done.result
    for key in (
        "load_s",
        "warmup_s",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "time_to_first_token_s",
        "read_bandwidth_gb_s",
        "bandwidth_fraction",
        "int8_peak_gop_s",
        "int8_peak_1_thread_gop_s",
        "int8_fraction",
    ):
        assert result[key] > 0, key
    assert result["threads"] >= 1
    assert result["peak_rss_mib"] is None or result["peak_rss_mib"] > 50
    low, high = result["decode_spread"]
    assert low <= result["decode_tokens_per_s"] <= high
    fraction = result["decode_tokens_per_s"] * result["bytes_per_token"] / 1e9
    fraction /= result["read_bandwidth_gb_s"]
    assert result["bandwidth_fraction"] == pytest.approx(fraction)
    operations = 2 * result["prefill_weights"] * result["prefill_tokens_per_s"]
    assert result["int8_fraction"] == pytest.approx(operations / 1e9 / result["int8_peak_gop_s"])
    for words in (" thread", "numba ", "median", "lowest", "memory reads", "nestquant"):
        assert words in done.err


def test_decoding_after_long_contexts(packed: Path) -> None:
    words = ("--contexts", "64,16,20,256,257", "--no-peaks", "--repeats", 1)
    done = latticeq("bench", packed, *SMALL[:4], *words)
    assert done.code == 0, done.err
    found = done.result["contexts"]
    # A full context ends with the tokens that are decoded.
    assert [context["context"] for context in found] == [16, 20, 64, 240]
    for context in found:
        low, high = context["decode_spread"]
        assert 0 < low <= context["decode_tokens_per_s"] <= high
        ratio = context["decode_tokens_per_s"] / found[0]["decode_tokens_per_s"]  # of one group
        assert context["of_shortest"] == pytest.approx(ratio)
    assert "context is 256; left out: 257" in done.err
    assert "decode after 240, tokens/s" in done.err
    assert "after 240 / after 16" in done.err
    assert "contexts up to 240 tokens: this takes" in done.err
    assert "int8_peak_gop_s" not in done.result


def test_no_context_that_fits(packed: Path) -> None:
    done = latticeq("bench", packed, *SMALL[:4], "--contexts", "999", "--no-peaks", "--repeats", 1)
    assert done.result["contexts"] == []
    assert "left out: 999" in done.err


def test_a_token_reads_the_head_and_not_the_embeddings(packed: Path, tmp_path: Path) -> None:
    tied = load(packed)
    assert bytes_per_token(tied) == tied.nbytes
    untied = load(write_byte_model(tmp_path / "model", byte_config("llama")))
    assert bytes_per_token(untied) == untied.nbytes - 256 * 48 * 4
    # q and o, k and v, then gate, up and down, in each of two blocks.
    assert block_weights(tied) == 2 * (2 * 48 * 48 + 2 * 16 * 48 + 3 * 80 * 48)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--prompt-tokens", 0), 2, "--prompt-tokens is 0"),
        (("--decode-tokens", 0), 2, "--decode-tokens is 0"),
        (("--repeats", 0), 2, "--repeats is 0"),
        (("--prompt-tokens", 250, "--decode-tokens", 7), 2, "context of 256"),
    ],
)
def test_refusals(source: Path, words: tuple[object, ...], code: int, message: str) -> None:
    done = latticeq("bench", source, *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


def test_a_missing_folder(tmp_path: Path) -> None:
    done = latticeq("bench", tmp_path / "missing")
    assert done.code == 1
    assert "config.json: is missing" in done.err
