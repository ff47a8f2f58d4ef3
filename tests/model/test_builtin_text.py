"""The built-in text: there, the same every time, and its two parts disjoint."""

import sys

import pytest

from latticeq.errors import LatticeqError
from latticeq.model.builtin_text import calibration_text, heldout_text


def test_parts_are_large_and_disjoint() -> None:
    calibration, heldout = calibration_text(), heldout_text()
    assert len(calibration) > 200_000
    assert len(heldout) > 50_000

    paragraphs = set(calibration.split("\n\n"))
    assert not paragraphs & set(heldout.split("\n\n"))
    assert 'The "with" statement' in heldout
    assert 'The "assert" statement' in calibration


def test_text_is_the_same_every_time() -> None:
    assert calibration_text() == calibration_text()
    assert heldout_text() == heldout_text()


def test_python_without_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(LatticeqError, match=r"no pydoc_data module.*--calibration FILE"):
        calibration_text()
