"""Quantizations that are stopped half-way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from latticeq.model import quantize as library


@contextmanager
def stopped_before(block: int) -> Iterator[None]:
    """Stop the quantization inside, as Ctrl-C does, when it comes to a block."""
    real = library.quantize_block

    def stopping(index: int, *rest: Any) -> Any:
        if index == block:
            raise KeyboardInterrupt
        return real(index, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(library, "quantize_block", stopping)
        yield
