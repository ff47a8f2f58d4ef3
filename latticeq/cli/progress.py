"""What a person sees while a model is being quantized."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from latticeq.cli.console import say

if TYPE_CHECKING:
    from latticeq.model.quantize_block import LayerReport

__all__ = ["QuantizeProgress", "compile_notice", "verify_bar"]

_STAGES = 4  # inputs of a block's linears


class QuantizeProgress:
    """A bar over the inputs of all blocks, and a line for each linear.

    An instance is what `latticeq.model.quantize.quantize` takes as ``report``, and a context
    manager that takes the bar away at its end.

    Parameters
    ----------
    blocks : int
    lines : bool
        Whether to print one.
    """

    def __init__(self, blocks: int, lines: bool = True) -> None:
        from tqdm import tqdm

        self._lines = tqdm.write if lines else None
        self._bar = tqdm(total=blocks * _STAGES, unit="stage", leave=False)
        self._bar.set_description("checking weights")

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
        elif event == "damaged":
            say(f"{value} of the unfinished job is damaged: it is made again")
        elif event == "fit":
            self._bar.set_description("fitting scales", refresh=False)
            self._bar.set_postfix_str(f"{value[0]} of {value[1]} steps", refresh=False)
            self._bar.update(0)
        elif event == "layer" and self._lines:
            self._lines(_line(value), file=sys.stderr)
        elif event == "stage":
            block, stage = value
            self._bar.set_description(f"block {block}", refresh=False)
            self._bar.set_postfix_str("", refresh=False)
            # A resumed job passes over finished blocks, so the place is set, not counted.
            self._bar.update(block * _STAGES + stage + 1 - self._bar.n)


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


def verify_bar(folder: Path) -> Callable[[Iterator[str]], Iterator[str]]:
    """Return what shows a bar over a folder's tensors while `verify` goes through them."""
    from tqdm import tqdm

    from latticeq.storage.safetensors import TensorFolder

    with TensorFolder(folder) as tensors:
        count = len(tensors.names)
    return partial(tqdm, desc="verify", total=count, unit="tensor", leave=False)
