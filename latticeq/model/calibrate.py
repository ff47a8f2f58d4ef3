"""Calibration text on its way through a block, one input of its linears at a time.

A block has four inputs that linears take: of q, k and v; of o; of gate and up; of down. A `Stream`
holds the hidden states of all windows and advances them from one input to the next, so that what
takes an input can be quantized, and the next input be made by what came of it. Two streams run side
by side where quantization minds its own errors: one through the float model, one through the model
as far as it is quantized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latticeq.model.config import LlamaConfig
from latticeq.model.kv.cache import FloatCache, KVCache
from latticeq.model.llama import Block
from latticeq.model.rope import frequencies, rotary

__all__ = ["STAGES", "BlockStatistics", "Stream", "block_statistics"]

STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linears that share each input, in the order of the forward pass."""

Windows = list[NDArray[np.float32]]


class Stream:
    """The calibration windows inside one model.

    Parameters
    ----------
    config : LlamaConfig
    hidden : list of (T, D) float32
        Embedded windows, of one length; changed in place.

    Attributes
    ----------
    hidden : list of (T, D) float32
        The residual stream.
    inputs : list of (T, N) float32
        Of the linears of the stage that was reached last.
    """

    def __init__(self, config: LlamaConfig, hidden: Windows) -> None:
        self.config = config
        self.hidden = hidden
        self.inputs: Windows = []

    def advance(self, block: Block, stage: int, cache: KVCache) -> None:
        """Go on to the inputs of a stage, or past the last one.

        Parameters
        ----------
        block : Block
            Whose linears of the stages before are applied.
        stage : int
            From 0; `len(STAGES)` leaves the block.
        cache : KVCache
            Of one layer; cleared for each window.
        """
        turns = rotary(frequencies(self.config), 0, len(self.hidden[0]))
        made: Windows = []
        for number in range(len(self.hidden)):
            inputs = self.inputs[number] if stage else self.hidden[number]
            if stage == 0:
                made.append(block.normed("input_layernorm", inputs))
            elif stage == 1:
                cache.clear()
                made.append(block.mix(inputs, turns, cache, 0))
            elif stage == 2:
                self.hidden[number] += block.linears["self_attn.o_proj"](inputs)
                made.append(block.normed("post_attention_layernorm", self.hidden[number]))
            elif stage == 3:
                made.append(block.gated(inputs))
            else:
                self.hidden[number] += block.linears["mlp.down_proj"](inputs)
        self.inputs = made

    def run(self, block: Block, cache: KVCache) -> None:
        """Go through a whole block."""
        for stage in range(len(STAGES) + 1):
            self.advance(block, stage, cache)


@dataclass(frozen=True, eq=False)
class BlockStatistics:
    """What is known of a float block's insides before it is quantized.

    Parameters
    ----------
    squares : dict of str to (N,) float64
        E[x_j²] of each input, by the name of the first linear that takes it.
    key_mean : (G, K) float32
        The mean key of each kv head, after rotary positions.
    """

    squares: dict[str, NDArray[np.float64]]
    key_mean: NDArray[np.float32]


def block_statistics(
    block: Block, windows: Sequence[NDArray[np.float32]], config: LlamaConfig
) -> BlockStatistics:
    """Run a block over hidden states, which are not changed, and return its statistics."""
    cache = _KeySum(config, len(windows[0]), layers=1)
    tokens = sum(map(len, windows))
    stream = Stream(config, [window.copy() for window in windows])
    squares = {}
    for stage, linears in enumerate(STAGES):
        stream.advance(block, stage, cache)
        sums = [np.square(x, dtype=np.float64).sum(axis=0) for x in stream.inputs]
        squares[linears[0]] = np.sum(sums, axis=0) / tokens
    mean = (cache.key_sum / tokens).astype(np.float32)
    return BlockStatistics(squares, mean)


class _KeySum(FloatCache):
    """A cache that adds up the keys it is given."""

    key_sum = np.zeros(())

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        self.key_sum = self.key_sum + k.sum(axis=0, dtype=np.float64)
        return super().attend(layer, q, k, v)
