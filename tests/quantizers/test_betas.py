"""Scales: the tables, and the search that made them."""

import numpy as np
import pytest

from latticeq.codes.voronoi import MAX_Q, VoronoiCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers.betas import PUBLISHED, fit_betas, published_betas, tuned_betas


def error(q: int, betas: tuple[float, ...], x: np.ndarray) -> float:
    return float(np.square(x - VoronoiCode(q, betas).encode_decoded(x)[2]).mean())


@pytest.mark.parametrize("q", [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, MAX_Q])
def test_every_tuned_set_is_a_code_and_more_scales_help(q: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4000 if IS_JIT else 16, 8)).astype(np.float32)
    errors = []
    for k in (1, 2, 4, 8, 16):
        betas = tuned_betas(q, k)
        assert len(betas) == len(set(np.float32(betas))) == k
        errors.append(error(q, betas, x))
    assert not IS_JIT or (np.diff(errors) < 0).all()


def test_published_scales() -> None:
    assert published_betas("weights") == tuple(s / 14 for s in (4.0, 5.5, 7.0, 18.0))
    assert published_betas("keys", 7) == tuple(2 * beta for beta in published_betas("keys"))
    assert all(tuple(sorted(scales)) == scales for scales in PUBLISHED.values())


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(InputError, match="no published set for 'biases'"):
        published_betas("biases")
    with pytest.raises(InputError, match=r"q = 13, k = 4; tuned are q = 2, .* 63 with k = 1"):
        tuned_betas(13, 4)


@pytest.mark.skipif(not IS_JIT, reason="a search needs many encodings")
def test_fitting_finds_scales_as_good_as_the_tuned_ones() -> None:
    x = np.random.default_rng(0).normal(size=(4096, 8))
    fitted = fit_betas(16, 4, x)
    assert fitted == fit_betas(16, 4, x)
    fresh = np.random.default_rng(1).normal(size=(20_000, 8)).astype(np.float32)
    assert error(16, fitted, fresh) < 1.01 * error(16, tuned_betas(16, 4), fresh)
