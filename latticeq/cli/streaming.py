"""Text that is shown as it is made, and how fast that was."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latticeq.cli.console import show

if TYPE_CHECKING:
    from latticeq.model.generate import StopReason
    from latticeq.model.tokenizer import StreamDecoder

__all__ = ["Pace", "stream"]


def stream(
    tokens: Generator[int, None, StopReason], decoder: StreamDecoder
) -> tuple[str, list[float], StopReason]:
    """Show tokens as they come; return the text, the time of each token, and why they ended."""
    pieces: list[str] = []
    times: list[float] = []
    while True:
        try:
            token = next(tokens)
        except StopIteration as end:
            reason: StopReason = end.value
            break
        times.append(time.perf_counter())
        pieces.append(decoder.push(token))
        show(pieces[-1], end="")
    pieces.append(decoder.finish())
    show(pieces[-1])
    return "".join(pieces), times, reason


@dataclass(frozen=True)
class Pace:
    """When tokens came.

    Parameters
    ----------
    start : float
        When they were asked for, in seconds of `time.perf_counter`.
    times : sequence of float
        When each came.
    """

    start: float
    times: Sequence[float]

    @property
    def first_s(self) -> float | None:
        """Seconds until the first token, which waits for the prompt."""
        return self.times[0] - self.start if self.times else None

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first."""
        many = len(self.times) > 1
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if many else None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures under their names in JSON."""
        return {
            "tokens": len(self.times),
            "time_to_first_token_s": self.first_s,
            "decode_tokens_per_s": self.speed,
        }
