"""What a captured decode step reads from memory: the token, its position, and where the cache is.

So one graph serves every token of every sequence: what changes from launch to launch is written to
one place, and launches find it there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticeq.gpu.device import cupy
from latticeq.gpu.tables import upload
from latticeq.model.config import LlamaConfig
from latticeq.model.rope import frequencies, rotary

__all__ = ["RUNS", "Slot"]

RUNS = 32
"""Blocks of threads that share the positions of one kv head, at most."""

_TOKEN = 6  # the last field of the struct in attend.cu


class Slot:
    """The place that launches of one stage read, and their scratch memory.

    Made while the stage's device and stream are the current ones.

    Parameters
    ----------
    config : LlamaConfig

    Attributes
    ----------
    fields : (7,) int64
        Addresses of keys and values, the capacity, addresses of cosines and sines, position, token.
    token : (1,) int32
        The token, in `fields`.
    scratch : tuple
        What blocks of threads of ``attend_one`` leave for the last of them.
    """

    def __init__(self, config: LlamaConfig) -> None:
        cp = cupy()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        rows = (kv_heads, RUNS, heads // kv_heads)
        self.fields = cp.zeros(_TOKEN + 1, cp.int64)
        self.token = self.fields.view(cp.int32)[2 * _TOKEN : 2 * _TOKEN + 1]  # the low half
        mixed = cp.empty((*rows, config.head_dim), cp.float32)
        sums = cp.empty((*rows, 2), cp.float32)
        self.scratch = (mixed, sums, cp.zeros(kv_heads, cp.uint32))
        self._turn = frequencies(config)
        self._turns: tuple[Any, Any] | None = None

    def turns(self, context: int) -> tuple[Any, Any]:
        """Return cosine and sine at `context` positions or more: (S, K/2) float32 each."""
        if self._turns is None or len(self._turns[0]) < context:
            cosine, sine = rotary(self._turn, 0, context)
            self._turns = upload(cosine), upload(sine)
        return self._turns

    def write(self, keys: Any, values: Any, token: int, position: int) -> None:
        """Write what the next launch reads, in the order of the current stream.

        Parameters
        ----------
        keys, values : (L, G, S, ...) arrays
            The cache; it stays where it is until the launch is done.
        token, position : int
        """
        cosine, sine = self.turns(keys.shape[2])
        addresses = [array.data.ptr for array in (keys, values, cosine, sine)]
        fields = [*addresses[:2], keys.shape[2], *addresses[2:], position, token]
        self.fields.set(np.array(fields, np.int64), stream=cupy().cuda.get_current_stream())
