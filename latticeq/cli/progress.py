"""What a person sees while a model is being quantized."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from latticeq.cli.console import say

if TYPE_CHECKING:
    from latticeq.model.quantize import LayerReport

__all__ = ["QuantizeProgress", "compile_notice"]

_LINEARS = 7  # of a block


class QuantizeProgress:
    """A bar over the windows and linears of all blocks, and a line for each linear.

    An instance is what `latticeq.model.quantize.quantize` takes as ``report``, and a context
    manager that takes the bar away at its end.

    Parameters
    ----------
    blocks : int
    windows : int
        Calibration windows that run through each block.
    """

    def __init__(self, blocks: int, windows: int) -> None:
        from tqdm import tqdm

        self._windows = windows
        self._lines = tqdm.write
        self._bar = tqdm(total=blocks * (windows + _LINEARS), unit="step", leave=False)
        self._bar.set_description("checking weights")
        self._linears: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, event: str, value: Any) -> None:
        """Take in an event of `quantize`."""
        if event == "check":
            self._bar.set_postfix_str(f"{value[0]} of {value[1]} tensors", refresh=False)
            self._bar.update(0)  # shows it, but not more often than the eye follows
        elif event == "window":
            block, done, total = value
            self._at(block, done, f"block {block}: calibration", f"window {done} of {total}")
        elif event == "layer":
            block = int(value.name.split(".")[2])
            self._linears[block] = self._linears.get(block, 0) + 1
            self._lines(_line(value), file=sys.stderr)
            self._at(block, self._windows + self._linears[block], f"block {block}: encoding", "")

    def _at(self, block: int, step: int, text: str, postfix: str) -> None:
        self._bar.set_description(text, refresh=False)
        self._bar.set_postfix_str(postfix, refresh=False)
        # A resumed job passes over finished blocks, so the place is set, not counted.
        self._bar.update(block * (self._windows + _LINEARS) + step - self._bar.n)


def _line(layer: LayerReport) -> str:
    name = layer.name.removeprefix("model.").removesuffix(".weight")
    text = f"{name:<30} {layer.bits_per_weight:.3f} bits  error {layer.relative_error:.5f}"
    if layer.proxy_loss is not None:
        text += (
            f"  loss {layer.proxy_loss:.2e} (plain {layer.proxy_loss_plain:.2e}, "
            f"int4 {layer.proxy_loss_rtn:.2e})"
        )
    return f"{text}  {layer.seconds:.1f} s"


def compile_notice() -> None:
    """Say that kernels will be compiled, if none are in the cache yet."""
    from latticeq.jit import IS_JIT, kernel_cache

    if IS_JIT and not any(kernel_cache().glob("**/*.nbc")):
        say(
            "compiling kernels as they are first used: about a minute in all, once on this machine "
            "(they are kept in the cache folder)"
        )
