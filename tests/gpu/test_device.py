"""What is said where there is no GPU, and CUDA text as it reaches the compiler."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from latticeq.errors import MissingDependencyError
from latticeq.gpu import device


@pytest.fixture(autouse=True)
def _forget() -> Any:
    device._find.cache_clear()
    yield
    device._find.cache_clear()


def _fake(count: int | Exception) -> SimpleNamespace:
    def get_device_count() -> int:
        if isinstance(count, Exception):
            raise count
        return count

    runtime = SimpleNamespace(getDeviceCount=get_device_count, CUDARuntimeError=RuntimeError)
    return SimpleNamespace(__version__="13.9", cuda=SimpleNamespace(runtime=runtime))


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return imported(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"'cupy'.*pip install 'latticeq\[gpu\]'"):
        device.cupy()
    assert device.device_count() == 0


@pytest.mark.parametrize(
    ("count", "said"),
    [(RuntimeError("cudaErrorInsufficientDriver"), "InsufficientDriver"), (0, "no device is")],
)
def test_without_a_device_what_was_found_is_said(
    monkeypatch: pytest.MonkeyPatch, count: int | Exception, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", _fake(count))
    with pytest.raises(MissingDependencyError, match=rf"CuPy 13.9.*latticeq\[gpu\].*{said}"):
        device.cupy()
    assert device.missing() is not None
    assert device.device_count() == 0


def test_with_a_device_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _fake(2)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert device.missing() is None
    assert device.cupy() is fake
    assert device.device_count() == 2
    with pytest.raises(ValueError, match="device 2 does not exist; there are 2"):
        device.check_device(2)
