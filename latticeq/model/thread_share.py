"""How many threads a decode step uses while other programs want the cores.

A token passes some hundred parallel regions of microseconds each, and every one ends when its last
thread does. Where another program holds a core, two of our threads share one, take turns in each
region, and decode three times slower than a single thread would. How much of the cores we get is
known from the process's own time: on n free cores it runs n times as fast as the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from latticeq.jit import set_threads, threads

__all__ = ["ThreadShare"]

WINDOW = 0.25
"""Seconds of steps by which it is judged: some ticks of the coarsest process clock."""

ENOUGH = 0.7
"""Of the cores. On two free ones mostly .85 to .97 were seen, with one held by a busy loop .5."""

FIRST_REST, LONGEST_REST = 2.0, 30.0
"""Seconds until all threads are tried again: doubled each time that it is in vain."""


class ThreadShare:
    """A context for each decode step, which runs in it on as many threads as get cores.

    Results do not depend on the number of threads, so nothing but time does.

    Parameters
    ----------
    clock, own_time : callable
        Seconds that have passed, and those of the process on all cores.

    Attributes
    ----------
    steps_on_fewer : int
        How many steps ran on fewer threads than were set.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        own_time: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._own_time = clock, own_time
        self.steps_on_fewer = 0
        self._most = self._count = 1
        self._rest = FIRST_REST
        self._restart(0.0)

    def _restart(self, now: float) -> None:
        """Begin a window, whose first step is not judged: it may compile, or start threads."""
        self._began, self._is_first = now, True
        self._passed = self._used = 0.0

    def __enter__(self) -> None:
        """Set the number of threads."""
        self._start, self._start_used = self._clock(), self._own_time()
        if threads() != self._most:  # set by the caller since
            self._most = self._count = threads()
            self._restart(self._start)
        if self._count < self._most:
            set_threads(self._count)
            self.steps_on_fewer += 1

    def __exit__(self, *_: object) -> None:
        """Set what the caller had set, and judge."""
        if self._most == 1:
            return
        if self._count < self._most:
            set_threads(self._most)
        now = self._clock()
        if self._is_first:
            self._is_first = False
            return
        self._passed += now - self._start
        self._used += self._own_time() - self._start_used
        if self._count < self._most:
            if now - self._began >= self._rest:
                self._count, self._rest = self._most, min(2 * self._rest, LONGEST_REST)
                self._restart(now)
        elif self._passed >= WINDOW:
            cores = self._used / self._passed
            if cores < ENOUGH * self._most:
                self._count = max(1, int(cores + 1 - ENOUGH))
            else:
                self._rest = FIRST_REST
            self._restart(now)
