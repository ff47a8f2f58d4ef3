"""A stage: the blocks that one device holds, and what goes with the first and the last of them.

Everything of a stage is on its device and happens in its own stream, in order; `Stage.use` makes
both current. One token runs in memory that was set aside for it, by launches that never change, so
that they are captured once a cache and replayed (`Stage.replay`).

Shape letters are those of `latticeq.model.llama`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from latticeq.gpu.cache import CachePart
from latticeq.gpu.device import cupy
from latticeq.gpu.kernels import add_norm
from latticeq.gpu.product import Product
from latticeq.gpu.ready import GATE, NORM, PLAIN, Before
from latticeq.gpu.slot import Slot
from latticeq.linear.base import Linear
from latticeq.model.config import LlamaConfig

__all__ = ["GpuBlock", "Stage", "Work"]


class Work:
    """The memory of T tokens on their way through a stage.

    Parameters
    ----------
    config : LlamaConfig
    n_tokens : int
        T.
    """

    def __init__(self, config: LlamaConfig, n_tokens: int) -> None:
        cp = cupy()
        heads = config.num_attention_heads + 2 * config.num_key_value_heads

        def rows(width: int) -> Any:
            return cp.empty((n_tokens, width), cp.float32)

        self.x = rows(config.hidden_size)
        self.spare = rows(config.hidden_size)
        self.normed = rows(config.hidden_size)
        self.added = rows(config.hidden_size)
        self.qkv = rows(heads * config.head_dim)
        self.mixed = rows(config.num_attention_heads * config.head_dim)
        self.both = rows(2 * config.intermediate_size)
        self.inner = rows(config.intermediate_size)


class GpuBlock:
    """One layer on a device: what `latticeq.model.llama.Block` is on the CPU.

    Parameters
    ----------
    products : sequence of Product
        Of q, k and v; of o; of gate and up; of down.
    norms : sequence of (D,) float32
        Before attention and before the feed-forward.

    Attributes
    ----------
    linears : dict of str to Linear
        All matrices, for those who count them.
    """

    def __init__(self, products: Sequence[Product], norms: Sequence[Any]) -> None:
        self.qkv, self.o, self.gate_up, self.down = products
        self.norms = list(norms)
        self.linears: Mapping[str, Linear] = {
            name: linear for product in products for name, linear in product.linears.items()
        }


class Stage:
    """Blocks of one device, in order.

    Parameters
    ----------
    config : LlamaConfig
    device : int
    stream : cupy.cuda.Stream
        Of that device.
    blocks : sequence of GpuBlock
    embedding : table of `latticeq.gpu.tables`, optional
        Where this is the first stage.
    norm : (D,) float32, optional
        The last normalisation, where this is the last stage.
    head : linear, optional
        Likewise.
    """

    def __init__(
        self,
        config: LlamaConfig,
        device: int,
        stream: Any,
        blocks: Sequence[GpuBlock],
        *,
        embedding: Any = None,
        norm: Any = None,
        head: Any = None,
    ) -> None:
        self.config, self.device, self.stream = config, device, stream
        self.blocks = list(blocks)
        self.embedding, self.norm, self.head = embedding, norm, head
        with self.use() as cp:
            self.one = Work(config, 1)
            self.slot = Slot(config)
            if head is not None:
                self.logits = cp.empty((1, config.vocab_size), cp.float32)
        self._graph: Any = None

    @contextmanager
    def use(self) -> Iterator[Any]:
        """Make the stage's device and stream the current ones; what is given is CuPy."""
        cp = cupy()
        with cp.cuda.Device(self.device), self.stream:
            yield cp

    def run(self, work: Work, part: CachePart, start: int | None) -> None:
        """Take tokens through the blocks: from ``work.x``, or what the stage embeds, to it.

        In the last stage ``work.normed`` is what the head takes.

        Parameters
        ----------
        work : Work
        part : CachePart
            Of this stage's layers.
        start : int, optional
            The position of the first token; None for one token, whose position is in the slot.
        """
        epsilon, added = self.config.rms_norm_eps, None
        stream, spare = work.x, work.spare  # each sum goes where the one before does not lie
        for layer, block in enumerate(self.blocks):
            before = Before(NORM, stream, added, block.norms[0], epsilon, spare)
            block.qkv(before, work.normed, work.qkv)
            if added is not None:
                stream, spare = spare, stream
            mixed = work.mixed
            if start is None:
                part.attend_one(layer, work.qkv, self.slot, mixed)
            else:
                mixed = part.attend(layer, work.qkv, self.slot, start)
            block.o(Before(PLAIN, mixed), None, work.added)
            before = Before(NORM, stream, work.added, block.norms[1], epsilon, spare)
            block.gate_up(before, work.normed, work.both)
            stream, spare = spare, stream
            block.down(Before(GATE, work.both), work.inner, work.added)
            added = work.added
        if self.norm is not None:
            add_norm(stream, added, self.norm, epsilon, work.normed)
        elif added is not None:
            cupy().add(stream, added, out=work.x)

    def step(self, part: CachePart, token: int, position: int) -> None:
        """Take one token through the stage, from its id or from ``one.x``; the last to `logits`.

        Parameters
        ----------
        part : CachePart
            All parts that a stage is given are of one kind: the first is captured, others replay.
        token, position : int
        """
        with self.use():
            self.slot.write(part.keys, part.values, token, position)
            if self._graph is None:
                self._graph = self._captured(part)
            self._graph.launch(self.stream)

    def _captured(self, part: CachePart) -> Any:
        """Return the launches of one token as a graph, after a run that brings in what they need.

        The run writes key and value where the graph will write the same; the residual stream that
        was handed on is put back.
        """
        handed = self.one.x.copy()
        self._launch(part)
        self.one.x[...] = handed
        self.stream.synchronize()
        self.stream.begin_capture()
        try:
            self._launch(part)
        finally:
            graph = self.stream.end_capture()
        return graph

    def _launch(self, part: CachePart) -> None:
        if self.embedding is not None:
            self.embedding.rows(self.slot.token, self.one.x)
        self.run(self.one, part, None)
        if self.head is not None:
            self.head(self.one.normed, self.logits)
