"""The real model continues prompts as Hugging Face transformers does in float32.

The golden ids are in ``smollm2_greedy.json`` with their provenance; the smallest gap between the
best and the second-best logit recorded there is several hundred times float32's error.
"""

import json
from pathlib import Path

import pytest

from latticeq.jit import cache_root
from latticeq.model.loader import load
from latticeq.model.pull import pull
from latticeq.model.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parent / "smollm2_greedy.json").read_text("utf-8"))
NAME = "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (cache_root() / "models" / NAME).exists(),
        reason=f"the model is not in the cache: run `latticeq pull {NAME}`",
    ),
]


@pytest.fixture(scope="module")
def folder():
    return pull(NAME)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.mark.parametrize("golden", GOLDEN["texts"], ids=lambda golden: golden["text"][:20])
def test_greedy_continuations_equal_transformers(golden, folder, model):
    assert Tokenizer.from_folder(folder).tokenize(golden["text"]) == golden["prompt"]
    assert len(golden["ids"]) == 64
    assert model.generate(golden["prompt"], max_tokens=64) == golden["ids"]
