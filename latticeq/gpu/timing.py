"""How long kernels take on the device, by its own clock.

What is timed is many calls one after the other, over the number of calls: in a model, too, a
product follows another. The calls are to be of different copies of a matrix, more than the last
cache holds, or it is the cache that is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from latticeq.gpu.device import cupy

__all__ = ["Timing", "time_captured", "time_queued"]

DELAY_BYTES = 2**30
"""Of a copy that keeps the device busy while calls are queued."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call took.

    Attributes
    ----------
    seconds : float
        The median over repeats.
    lowest, highest : float
    repeats : int
        Each of all calls once.
    """

    seconds: float
    lowest: float
    highest: float
    repeats: int


def time_captured(calls: Sequence[Callable[[], object]], repeats: int) -> Timing:
    """Time calls that are captured in a CUDA graph: what the host does counts for nothing.

    Parameters
    ----------
    calls : sequence of callables
        Each launches work on the current stream and allocates nothing after its first time.
    repeats : int
    """
    stream = cupy().cuda.Stream(non_blocking=True)
    with stream:
        for call in calls:
            call()
        stream.synchronize()
        stream.begin_capture()
        for call in calls:
            call()
        graph = stream.end_capture()
        graph.launch(stream)
        return _timed(stream, lambda: graph.launch(stream), len(calls), repeats, None)


def time_queued(calls: Sequence[Callable[[], object]], repeats: int) -> Timing:
    """Time calls that no graph can hold: queued behind a copy, so that the host is ahead of them.

    Parameters are those of `time_captured`.
    """
    module = cupy()
    stream = module.cuda.Stream(non_blocking=True)
    source = module.zeros(DELAY_BYTES, "uint8")
    target = module.empty_like(source)

    def delay() -> None:
        for _ in range(8):
            target.data.copy_from_device_async(source.data, source.nbytes, stream)

    def all_calls() -> None:
        for call in calls:
            call()

    with stream:
        all_calls()
        stream.synchronize()
        return _timed(stream, all_calls, len(calls), repeats, delay)


def _timed(
    stream: Any,
    run: Callable[[], object],
    count: int,
    repeats: int,
    before: Callable[[], None] | None,
) -> Timing:
    module, times = cupy(), []
    for _ in range(repeats):
        start, stop = module.cuda.Event(), module.cuda.Event()
        if before is not None:
            before()
        start.record(stream)
        run()
        stop.record(stream)
        stop.synchronize()
        times.append(1e-3 * float(module.cuda.get_elapsed_time(start, stop)) / count)
    return Timing(statistics.median(times), min(times), max(times), repeats)
