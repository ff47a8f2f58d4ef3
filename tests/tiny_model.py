"""Tiny whole models whose tokens are bytes, and the command line run on them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from latticeq.cli.main import main
from tests.tiny_llama import CONFIGS, Weights, random_weights, write_folder


def write_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer.json that makes each UTF-8 byte a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))


def byte_config(name: str = "tied", **changes: Any) -> dict[str, Any]:
    """Return a tiny configuration with a vocabulary of 256 bytes; token 0 ends a text."""
    return CONFIGS[name] | {"vocab_size": 256, "eos_token_id": 0} | changes


def write_byte_model(
    folder: Path, config: Mapping[str, Any] | None = None, weights: Weights | None = None
) -> Path:
    """Write a model folder with weights, random ones by default, and the tokenizer."""
    config = byte_config() if config is None else config
    write_folder(folder, config, random_weights(config) if weights is None else weights)
    write_byte_tokenizer(folder)
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left: exit code, streams, and the JSON of the last line."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def latticeq(*words: object) -> Outcome:
    """Run the command line with ``--json`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, words), "--json"])
    return Outcome(code, out.getvalue(), err.getvalue())
