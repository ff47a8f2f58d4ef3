"""Scales: the tables, and the search that made them."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from latticeq.codes.nested import CELLS, MAX_Q, NestedCode
from latticeq.errors import InputError
from latticeq.jit import IS_JIT
from latticeq.quantizers import betas
from latticeq.quantizers.betas import (
    PUBLISHED,
    dynamic_program_betas,
    fit_betas,
    mean_squared_error,
    published_betas,
    tunable_sets,
    tuned_betas,
)

TABLE = Path(betas.__file__).with_name("betas.json")


@pytest.mark.parametrize("q", [2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, MAX_Q])
def test_every_tuned_set_is_a_code_and_more_scales_help(q: int, rng: np.random.Generator) -> None:
    x = rng.normal(size=(4000 if IS_JIT else 16, 8)).astype(np.float32)
    errors = []
    for k in (1, 2, 4, 8, 16):
        scales = tuned_betas(q, k)
        assert len(scales) == len(set(np.float32(scales))) == k
        errors.append(mean_squared_error(NestedCode(q, scales), x))
    assert not IS_JIT or (np.diff(errors) < 0).all()


def test_published_scales() -> None:
    assert published_betas("weights") == tuple(s / 14 for s in (4.0, 5.5, 7.0, 18.0))
    assert published_betas("keys", 7) == tuple(2 * beta for beta in published_betas("keys"))
    assert all(tuple(sorted(scales)) == scales for scales in PUBLISHED.values())


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(InputError, match="no published set for 'biases'"):
        published_betas("biases")
    with pytest.raises(InputError, match=r"q = 13, k = 4, cell 'voronoi'; tuned are q = .*, 63"):
        tuned_betas(13, 4)
    with pytest.raises(InputError, match="q = 20, k = 4, cell 'd8'; tuned are q = 8, 10, 12"):
        tuned_betas(20, 4, "d8")


def test_the_table_holds_every_set_with_its_error() -> None:
    sets = json.loads(TABLE.read_text("utf-8"))["tuned"]
    found = {(cell, name) for cell, rows in sets.items() for name in rows}
    assert found == {(cell, f"q={q},k={k}") for cell, q, k in tunable_sets()}
    assert {(cell, q, k) for cell in CELLS for q in (8, 10, 12, 14, 16) for k in (1, 2, 4, 8)} <= {
        *tunable_sets()
    }


@pytest.mark.skipif(not IS_JIT, reason="a Monte Carlo estimate needs many blocks")
@pytest.mark.parametrize("cell", CELLS)
def test_recorded_errors_are_what_fresh_blocks_show(cell: str) -> None:
    x = np.random.default_rng(77).normal(size=(30_000, 8)).astype(np.float32)
    rows = json.loads(TABLE.read_text("utf-8"))["tuned"][cell]
    for q, k in ((8, 1), (8, 4), (14, 2), (16, 8)):
        row = rows[f"q={q},k={k}"]
        found = mean_squared_error(NestedCode(q, tuple(row["betas"]), cell), x)
        assert found == pytest.approx(row["mse"], rel=0.02)


@pytest.mark.skipif(not IS_JIT, reason="a search needs many encodings")
def test_fitting_finds_scales_as_good_as_the_tuned_ones() -> None:
    x = np.random.default_rng(0).normal(size=(4096, 8))
    fresh = np.random.default_rng(1).normal(size=(20_000, 8)).astype(np.float32)
    for cell in ("voronoi", "cubic"):
        fitted = fit_betas(16, 4, cell, x)
        assert fitted == fit_betas(16, 4, cell, x)
        tuned = mean_squared_error(NestedCode(16, tuned_betas(16, 4, cell), cell), fresh)
        assert mean_squared_error(NestedCode(16, fitted, cell), fresh) < 1.01 * tuned


def test_fitted_scales_grow_with_the_blocks() -> None:
    x = np.random.default_rng(0).normal(size=(512 if IS_JIT else 32, 8))
    small, large = fit_betas(8, 2, "cubic", x), fit_betas(8, 2, "cubic", 4 * x)
    np.testing.assert_allclose(large, 4 * np.array(small), rtol=0.1)


@pytest.mark.parametrize(("cell", "q", "k"), [("voronoi", 5, 3), ("cubic", 4, 2), ("d8", 6, 4)])
def test_the_dynamic_program_finds_the_best_subset(
    cell: str, q: int, k: int, rng: np.random.Generator
) -> None:
    x = (rng.standard_t(4, size=(400 if IS_JIT else 48, 8))).astype(np.float32)
    grid = np.geomspace(2.0, 9.0, 8).astype(np.float32).astype(np.float64) / np.float64(q)
    grid = grid.astype(np.float32).astype(np.float64)
    errors = []
    fits = []
    for beta in grid:
        alone = NestedCode(q, (beta,), cell)
        errors.append(np.square(x - alone.encode_decoded(x)[2]).sum(axis=1, dtype=np.float64))
        # The second of two scales is far too large: it is taken where the first does not fit.
        pair = NestedCode(q, (beta, beta * 100), cell, selection="first")
        fits.append(pair.encode(x)[1] == 0)
    first = np.where(np.any(fits, axis=0), np.argmax(fits, axis=0), len(grid))
    totals = {}
    for subset in combinations(range(len(grid)), k):
        place = np.minimum(np.searchsorted(subset, first), k - 1)
        used = np.array(subset)[place]
        totals[subset] = np.stack(errors)[used, np.arange(len(x))].sum()
    best = min(totals.values())
    found = dynamic_program_betas(grid, x, q, k, cell)
    chosen = tuple(int(np.flatnonzero(grid == beta)[0]) for beta in found)
    assert totals[chosen] == pytest.approx(best, rel=1e-9)


def test_the_dynamic_program_refuses_too_few_candidates() -> None:
    with pytest.raises(InputError, match="2 candidates for k = 3"):
        dynamic_program_betas((0.2, 0.3), np.zeros((4, 8)), 16, 3)
    with pytest.raises(InputError, match="increasing"):
        dynamic_program_betas((0.3, 0.2), np.zeros((4, 8)), 16, 1)


@pytest.mark.skipif(not IS_JIT, reason="a search needs many encodings")
def test_the_command_replaces_one_set_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(betas, "SAMPLES", 1024)
    monkeypatch.setattr(betas, "FRESH", 4096)
    out = tmp_path / "betas.json"
    out.write_text(TABLE.read_text("utf-8"), "utf-8")
    betas.main(["--cell", "cubic", "--q", "8", "--k", "2", "--out", str(out)])
    before, after = (json.loads(path.read_text("utf-8"))["tuned"] for path in (TABLE, out))
    changed = after["cubic"].pop("q=8,k=2")
    assert changed["mse"] == pytest.approx(before["cubic"].pop("q=8,k=2")["mse"], rel=0.1)
    assert after == before
    assert capsys.readouterr().err.startswith("cubic q=8 k=2: mean squared error 0.02")
