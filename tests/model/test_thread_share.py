"""Decoding takes as many threads as get cores, and all again when they are free."""

from itertools import pairwise

import pytest

from latticeq.model import thread_share
from latticeq.model.thread_share import FIRST_REST, LONGEST_REST, WINDOW, ThreadShare

STEP = WINDOW / 4


class Machine:
    """A process that gets some cores, its clocks, and the number of its threads."""

    def __init__(self, cores: float, count: int = 2) -> None:
        self.cores, self.count, self.now, self.used = cores, count, 0.0, 0.0
        self.share = ThreadShare(lambda: self.now, lambda: self.used)

    def set_threads(self, count: int) -> None:
        self.count = count

    def step(self) -> int:
        """Run a step; return on how many threads it ran."""
        with self.share:
            count = self.count
            self.now += STEP
            self.used += STEP * min(self.cores, count)
        return count

    def steps(self, seconds: float) -> list[int]:
        return [self.step() for _ in range(round(seconds / STEP))]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of one free core, for two threads."""
    made = Machine(1.0)
    monkeypatch.setattr(thread_share, "threads", lambda: made.count)
    monkeypatch.setattr(thread_share, "set_threads", made.set_threads)
    return made


def test_free_cores_are_all_used(machine: Machine) -> None:
    machine.cores = 1.9
    assert set(machine.steps(10)) == {2}
    assert machine.share.steps_on_fewer == 0


def test_a_thread_without_a_core_is_left_out_within_two_windows(machine: Machine) -> None:
    found = machine.steps(FIRST_REST)
    assert set(found[: round(WINDOW / STEP)]) == {2}
    assert set(found[round(2 * WINDOW / STEP) :]) == {1}
    assert machine.share.steps_on_fewer == found.count(1)


def test_all_threads_are_tried_again_and_less_often_if_in_vain(machine: Machine) -> None:
    found = machine.steps(200)
    tries = [i for i in range(1, len(found)) if found[i] > found[i - 1]]
    between = [(b - a) * STEP for a, b in pairwise(tries)]
    assert between[0] < 3 * FIRST_REST
    assert between == sorted(between)
    assert LONGEST_REST <= between[-1] < LONGEST_REST + 3 * WINDOW
    assert found.count(2) < len(found) / 10


def test_a_core_that_becomes_free_is_used(machine: Machine) -> None:
    machine.steps(1)
    machine.cores = 2.0
    assert set(machine.steps(2 * FIRST_REST)[-8:]) == {2}
    machine.cores = 1.0  # and the first rest is a short one again
    machine.steps(1)
    machine.cores = 2.0
    assert set(machine.steps(2 * FIRST_REST)[-8:]) == {2}


def test_the_first_step_may_compile(machine: Machine) -> None:
    machine.step()
    machine.cores = 2.0
    assert set(machine.steps(3)) == {2}


def test_the_callers_number_of_threads_stays(machine: Machine) -> None:
    machine.steps(1)
    assert machine.count == 2
    with pytest.raises(KeyError), machine.share:
        assert machine.count == 1
        raise KeyError
    assert machine.count == 2
    machine.count = 1
    assert set(machine.steps(5)) == {1}
    machine.count = 2
    assert machine.step() == 2


@pytest.mark.parametrize(
    ("count", "cores", "left"), [(2, 1.5, 2), (4, 3.0, 4), (4, 2.7, 3), (8, 5.2, 5), (8, 0.2, 1)]
)
def test_as_many_threads_as_cores(machine: Machine, count: int, cores: float, left: int) -> None:
    machine.count, machine.cores = count, cores
    assert machine.steps(1.5)[-1] == left
