"""Cores as Linux and containers describe them."""

from pathlib import Path

import pytest

from latticeq.cli import machine

TWO_SOCKETS = "\n\n".join(
    f"processor\t: {thread}\nmodel name\t: Some CPU\nphysical id\t: {socket}\ncore id\t\t: {core}"
    for thread, (socket, core) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)] * 2)
)


@pytest.mark.parametrize(
    ("allowed", "cores"),
    [({0, 1, 2, 3, 4, 5, 6, 7}, 4), ({0, 4}, 1), ({0, 2}, 2), ({1, 5, 6}, 2), (set(), None)],
)
def test_hardware_threads_of_one_core_count_once(
    tmp_path: Path, allowed: set[int], cores: int | None
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(TWO_SOCKETS)
    assert machine._linux_cores(cpuinfo, allowed) == cores


def test_cores_that_are_not_named(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n\nprocessor\t: 1\n")
    assert machine._linux_cores(cpuinfo, {0, 1}) is None
    assert machine._linux_cores(tmp_path / "missing", {0, 1}) is None


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000\n", 2), ("1000 100000", 1)],
)
def test_a_containers_quota(tmp_path: Path, text: str, cores: int | None) -> None:
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(text)
    assert machine._quota(cpu_max) == cores


def test_this_machine() -> None:
    assert 1 <= machine.physical_cores() <= machine.logical_cores()
    assert machine.cpu_name()
    total, available = machine.total_memory(), machine.available_memory()
    assert total is None or total > 2**28
    assert available is None or total is None or 0 < available <= total
