"""Hypothesis profiles and the random generators that tests share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# The first call of a kernel compiles it: a deadline would time the compiler.
hypothesis.settings.register_profile("fast", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=5000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed, printed by its repr when a test fails."""
    return np.random.default_rng(20240917)


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point the cache at an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("LATTICEQ_CACHE_DIR", folder)
        yield Path(folder)
