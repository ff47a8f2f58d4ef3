"""Tests with the marker `gpu` are skipped, and say why, where there is no device."""

from __future__ import annotations

import pytest

from latticeq.gpu.device import missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := missing()) is not None:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))
