"""The pictures of the tutorials: drawn by the committed command, small, used, and right."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from latticeq.jit import IS_JIT
from tests.docs.pages import DOCS, PAGES

FOLDER = DOCS / "pictures"
COMMITTED = sorted(path.name for path in FOLDER.glob("*.svg"))


@pytest.fixture(scope="module")
def draw() -> Any:
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not IS_JIT, reason="many blocks in plain Python take minutes")
def test_the_command_draws_every_picture_that_is_committed(draw: Any, tmp_path: Path) -> None:
    draw.main(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_picture_is_small_and_names_no_other_host(name: str) -> None:
    path = FOLDER / name
    assert path.stat().st_size < 100_000
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    links = [value for node in root.iter() for key, value in node.items() if key.endswith("href")]
    assert [link for link in links if not link.startswith("#")] == []


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_picture_is_shown(name: str) -> None:
    assert any(f"pictures/{name})" in path.read_text("utf-8") for path in PAGES)


def test_cells_in_the_plane_have_their_known_measures(draw: Any) -> None:
    moments = {"SQUARE": 1 / 12, "CHECKERBOARD": 1 / 12, "HEXAGONAL": 5 / (36 * 3**0.5)}
    for name, moment in moments.items():
        corners = draw.cell(getattr(draw, name))
        assert draw.area(corners) == pytest.approx(1)
        assert draw.second_moment(corners) == pytest.approx(moment)


def test_points_of_a_cell_are_closest_to_the_origin(draw: Any, rng: np.random.Generator) -> None:
    basis = draw.HEXAGONAL
    points, corners = draw.lattice(basis), draw.cell(basis)
    origin = draw.closest(points, np.zeros((1, 2)))
    inside = rng.dirichlet(np.ones(len(corners)), 200) @ corners
    assert (draw.closest(points, 0.999 * inside) == origin).all()
    assert (draw.closest(points, 1.001 * corners) != origin).all()


def test_clipping_keeps_one_side(draw: Any) -> None:
    half = draw.clipped(draw.box(2), np.array([1.0, 0.0]), 0.0)
    assert draw.area(half) == pytest.approx(2)
    assert half[:, 0].max() == pytest.approx(0)
    assert len(draw.clipped(draw.box(2), np.array([1.0, 0.0]), -3.0)) == 0
