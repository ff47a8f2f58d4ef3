"""The Llama forward pass on one GPU or several: the same folders, the same digits.

`GpuLlama` is a `Llama` whose arrays are on devices: token ids come from the host, and the id of the
token that is chosen goes back to it, or logits where they are asked for; everything between stays
where it is. Layers are split over devices by ranges, one stage each; the residual stream of some
tokens is all that passes between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from latticeq.errors import InputError
from latticeq.gpu.cache import CachePart, FloatPart, GpuCache, NestBasis, NestPart
from latticeq.gpu.choice import Chooser
from latticeq.gpu.kernels import nll_rows
from latticeq.gpu.stage import Stage, Work
from latticeq.model.config import LlamaConfig
from latticeq.model.kv.cache import KVCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.llama import Llama
from latticeq.model.sampling import Sampling

__all__ = ["GpuLlama"]

PREFILL = 4096
"""Tokens taken in at a time: bounds the memory of activations."""

LOGITS_BYTES = 2**28
"""Of logits at a time where only their likelihood is wanted."""


class GpuLlama(Llama):
    """A model on devices; what is not said here is as in `Llama`.

    Parameters
    ----------
    config : LlamaConfig
    stages : sequence of Stage
        In order; the first has the embedding, the last the head.
    kv : KVCoding, optional
        How caches keep keys and values; as floats if omitted.
    cache_dtype : np.dtype or type
        Of such floats: float32 or float16.
    context : int, optional
    folder : Path, optional
    """

    def __init__(
        self,
        config: LlamaConfig,
        stages: Sequence[Stage],
        *,
        kv: KVCoding | None = None,
        cache_dtype: DTypeLike = np.float16,
        context: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.stages = list(stages)
        first, last = self.stages[0], self.stages[-1]
        blocks: list[Any] = [block for stage in self.stages for block in stage.blocks]
        super().__init__(
            config,
            first.embedding,
            blocks,
            last.norm,
            last.head,
            kv=kv,
            cache_dtype=cache_dtype,
            context=context,
            folder=folder,
        )
        self._bases: dict[int, NestBasis] = {}  # of the stages, by their first layers
        with last.use() as cp:
            self._host_logits = cp.cuda.alloc_pinned_memory(4 * config.vocab_size)
            self._choose = Chooser()

    @property
    def devices(self) -> tuple[int, ...]:
        """The device of each stage."""
        return tuple(stage.device for stage in self.stages)

    def new_cache(self, context: int | None = None) -> KVCache:
        """Return an empty cache for `context` tokens, whose memory is taken at once.

        Raises
        ------
        InputError
            If `context` is out of range, or a device has not so much memory.
        """
        longest = self.context if context is None else context
        self.config.check_context(longest)
        parts, layer = [], 0
        for stage in self.stages:
            count = len(stage.blocks)
            parts.append(self._part(stage, longest, layer, count))
            layer += count
        return GpuCache(self.config, longest, parts)

    def _part(self, stage: Stage, context: int, first: int, count: int) -> CachePart:
        with stage.use() as cp:
            try:
                if self.kv is None:
                    return FloatPart(self.config, context, count, self.cache_dtype)
                coding = self.kv.of_layers(first, first + count)
                if first not in self._bases:
                    sizes = self.config.num_key_value_heads, self.config.head_dim
                    self._bases[first] = NestBasis(coding, count, *sizes)
                return NestPart(self.config, context, count, coding, self._bases[first])
            except cp.cuda.memory.OutOfMemoryError as error:
                raise InputError(
                    f"device {stage.device} has no memory for the keys and values of {context} "
                    f"tokens ({error}); use a shorter context, or more devices"
                ) from error

    def hidden(self, ids: ArrayLike, cache: KVCache) -> Any:
        """Run the blocks over the next tokens of a sequence.

        Parameters
        ----------
        ids : (T,) int
        cache : GpuCache
            Of `new_cache`.

        Returns
        -------
        (T, D) float32
            On the device of the last stage, in the order of its stream.
        """
        tokens = self._checked(ids)
        cache.check_room(len(tokens))
        pieces = [
            self._hidden(tokens[first : first + PREFILL], self._own(cache))
            for first in range(0, len(tokens), PREFILL)
        ]
        with self.stages[-1].use() as cp:
            return pieces[0] if len(pieces) == 1 else cp.concatenate(pieces)

    def _hidden(self, tokens: NDArray[np.int64], cache: GpuCache) -> Any:
        """Do `hidden` for as many tokens as memory is meant for."""
        passed: Work | None = None
        for stage, part, before in zip(
            self.stages, cache.parts, [None, *self.stages], strict=False
        ):
            with stage.use() as cp:
                work = Work(self.config, len(tokens))
                if before is None or passed is None:
                    stage.embedding.rows(cp.asarray(tokens.astype(np.int32)), work.x)
                else:
                    _pass_on(before, passed.x, stage, work.x)
                stage.run(work, part, cache.length)
            passed = work
        cache.advance(len(tokens))
        assert passed is not None
        return passed.normed

    def prefill(self, ids: ArrayLike, cache: KVCache) -> NDArray[np.float32]:
        """Take in the next T tokens at once; return the logits after the last: (V,) float32."""
        self._take_in(ids, cache)
        last = self.stages[-1]
        host = np.frombuffer(self._host_logits, np.float32, self.config.vocab_size)
        with last.use():
            last.logits.reshape(-1).get(stream=last.stream, out=host)
            last.stream.synchronize()
        return host.copy()

    def next_token(self, ids: ArrayLike, cache: KVCache, sampling: Sampling) -> int:
        """Take in tokens; return the one that the last device chooses to follow them."""
        self._take_in(ids, cache)
        last = self.stages[-1]
        with last.use():
            return self._choose(last.logits.reshape(-1), sampling)

    def _take_in(self, ids: ArrayLike, cache: KVCache) -> None:
        """Take in tokens, a single one by captured launches; the last stage has the logits."""
        tokens = self._checked(ids)
        if len(tokens) == 1:
            cache.check_room(1)
            self._step(int(tokens[0]), self._own(cache))
            return
        hidden = self.hidden(tokens, cache)
        last = self.stages[-1]
        with last.use():
            last.head(hidden[-1:], last.logits)

    def _step(self, token: int, cache: GpuCache) -> None:
        for number, (stage, part) in enumerate(zip(self.stages, cache.parts, strict=True)):
            if number > 0:
                before = self.stages[number - 1]
                _pass_on(before, before.one.x, stage, stage.one.x)
            stage.step(part, token, cache.length)
        cache.advance(1)

    def logits(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Return the logits after every token of one sequence: (T,) int -> (T, V) float32."""
        tokens = self._checked(ids)
        hidden = self.hidden(tokens, self.new_cache(len(tokens)))
        with self.stages[-1].use() as cp:
            logits: NDArray[np.float32] = cp.asnumpy(self.stages[-1].head(hidden))
        return logits

    def nll(self, hidden: Any, targets: ArrayLike) -> NDArray[np.float64]:
        """Return the negative log-likelihood of each target, in nats, as `Llama.nll`."""
        follow = self._followers(hidden, targets)
        last = self.stages[-1]
        step = max(1, LOGITS_BYTES // (4 * self.config.vocab_size))
        with last.use() as cp:
            wanted = cp.asarray(follow.astype(np.int32))
            out = cp.empty(len(follow), cp.float64)
            for first in range(0, len(follow), step):
                rows = slice(first, first + step)
                nll_rows(last.head(hidden[rows]), wanted[rows], out[rows])
            found: NDArray[np.float64] = cp.asnumpy(out)
        return found

    def _own(self, cache: KVCache) -> GpuCache:
        if not isinstance(cache, GpuCache) or len(cache.parts) != len(self.stages):
            raise InputError("the cache is of another model; take one from new_cache")
        return cache


def _pass_on(source: Stage, x: Any, target: Stage, out: Any) -> None:
    """Copy the residual stream from one stage to the next, when it is ready, in order."""
    with source.use() as cp:
        ready = cp.cuda.Event(disable_timing=True)
        ready.record(source.stream)
    with target.use():
        target.stream.wait_event(ready)
        out.data.copy_from_device_async(x.data, x.nbytes, target.stream)
        done = cp.cuda.Event(disable_timing=True)
        done.record(target.stream)
    source.stream.wait_event(done)  # what comes next in the source may write there again
