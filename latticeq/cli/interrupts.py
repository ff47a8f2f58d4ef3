"""Ctrl-C as a wish that is asked for, where an exception could come between any two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

__all__ = ["Interrupts"]


class Interrupts:
    """Takes note of a Ctrl-C while it is entered; a second one raises KeyboardInterrupt as ever.

    Where Ctrl-C is not Python's to handle, nothing is changed.
    """

    def __init__(self) -> None:
        self._came = False
        self._installed = False

    def __call__(self) -> bool:
        """Tell whether a Ctrl-C came."""
        return self._came

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True
