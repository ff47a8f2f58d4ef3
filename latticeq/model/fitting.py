"""Scales fitted to the model: a set for each kind of linear, for keys, values and activations.

The tuned scales suit Gaussian numbers. Rotated weights are nearly that; keys, values and
activations, in rows as short as a head or with a few tokens unlike the others, less so. Before
anything is quantized the float model runs over a little of the calibration text, and blocks are
drawn from what will be coded: rotated, smoothed and centred as the options have it, each row
divided by its root mean square. `latticeq.quantizers.betas.fit_betas` fits a set to each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.codes.nested import NestedCode
from latticeq.model.calibrate import STAGES, Stream
from latticeq.model.config import LlamaConfig
from latticeq.model.engine import Engine
from latticeq.model.kv.cache import FloatCache
from latticeq.model.llama import BLOCK_LINEARS
from latticeq.model.options import Options
from latticeq.model.quantize_block import Streams, float_block, prepared
from latticeq.model.smoothing import BlockTensors
from latticeq.quantizers.betas import fit_betas, mean_squared_error
from latticeq.quantizers.nestquant import NestQuant
from latticeq.transforms.rotation import Rotation

__all__ = ["FITTED_BLOCKS", "FITTED_WINDOWS", "Scales", "fit_scales", "fit_to"]

FITTED_BLOCKS = 1 << 15
"""Blocks of eight that a set is fitted to: they know the mean error to well under a hundredth."""

FITTED_WINDOWS = 1
"""Calibration windows that keys, values and activations are drawn from: it has many more rows than
are drawn, and smoothing and mean keys, measured on it alone, are near those that are used."""

Scales = dict[str, tuple[float, ...]]
"""Sets of scales by the names of `Options.scale_kinds`."""


def fit_scales(
    blocks: Iterable[BlockTensors],
    config: LlamaConfig,
    options: Options,
    stream: Stream | None,
    report: Callable[[str, Any], None],
    engine: Engine,
) -> Scales:
    """Return a set of scales for each kind of what will be coded.

    Parameters
    ----------
    blocks : iterable of BlockTensors
        The float model's, in their order.
    config : LlamaConfig
    options : Options
    stream : Stream, optional
        Calibration text at the beginning of the first block, which is run through all; None if
        neither smoothing nor a kind of scales needs it.
    report : callable
        Called with "fit" and (steps done, of how many): a step for each block and each set.
    engine : Engine
        What runs the text through the blocks.

    Notes
    -----
    The same numbers come of the same input: what is drawn is drawn from one seeded generator.
    """
    layers = config.num_hidden_layers
    steps = layers + len(options.scale_kinds)
    drawn = _Drawn(options, layers)
    for index, block in enumerate(blocks):
        streams = None if stream is None else Streams(stream, None)
        tensors, offset = prepared(block, config, options, streams, engine)
        for name in BLOCK_LINEARS:
            drawn.add(name, tensors.linears[name], 1.0)
        if stream is not None:
            _run(stream, tensors, offset, drawn, engine)
        report("fit", (index + 1, steps))
    found: Scales = {}
    for number, kind in enumerate(options.scale_kinds, start=1):
        found[kind] = fit_to(drawn.blocks(kind), options)
        report("fit", (layers + number, steps))
    return found


def fit_to(blocks: NDArray[np.float32], options: Options) -> tuple[float, ...]:
    """Return the scales with the least error of blocks (n, 8) among the fitted and the tuned ones.

    The search that fits stops at a local optimum, so it may end above the tuned set; and blocks
    that are all alike, or none at all, fit nothing.
    """
    quantizer = options.quantizer()
    assert isinstance(quantizer, NestQuant)  # no other method has scales of this kind
    tuned, cell = quantizer.code.betas, quantizer.cell
    if not len(blocks):
        return tuned
    fitted = tuple(float(np.float32(b)) for b in fit_betas(options.q, options.k, cell, blocks))
    if len(set(fitted)) < options.k:
        return tuned
    errors = [
        mean_squared_error(NestedCode(options.q, betas, cell), blocks) for betas in (fitted, tuned)
    ]
    return fitted if errors[0] <= errors[1] else tuned


class _Drawn:
    """Blocks drawn from rows of every kind, about `FITTED_BLOCKS` of each over all layers."""

    def __init__(self, options: Options, layers: int) -> None:
        self._rng = np.random.default_rng(0)
        self.options = options
        self._share = FITTED_BLOCKS / layers
        self._parts: dict[str, list[NDArray[np.float32]]] = {
            kind: [np.empty((0, 8), np.float32)] for kind in options.scale_kinds
        }

    def add(
        self, kind: str, rows: NDArray[np.float32], share: float, rotation: Rotation | None = None
    ) -> None:
        """Draw from rows (R, N); `share` is theirs of what a layer gives. Others are passed over.

        A block each is taken of rows drawn with replacement, so that only these are rotated.
        """
        if kind not in self._parts:
            return
        if rotation is None:
            rotation = self.options.quantizer().rotation(rows.shape[1])
        count = int(np.ceil(share * self._share))
        chosen = rotation.apply(rows[self._rng.integers(len(rows), size=count)])
        rms = np.sqrt(np.mean(np.square(chosen), axis=1, keepdims=True))
        blocks = (chosen / np.where(rms > 0, rms, 1)).reshape(count, -1, 8)
        picked = blocks[np.arange(count), self._rng.integers(blocks.shape[1], size=count)]
        self._parts[kind].append(picked[rms[:, 0] > 0])

    def blocks(self, kind: str) -> NDArray[np.float32]:
        """Return what was drawn, mixed, as the fit starts on the first of them: (n, 8)."""
        return self._rng.permutation(np.concatenate(self._parts[kind]))


def _run(
    stream: Stream,
    tensors: BlockTensors,
    offset: NDArray[np.float32] | None,
    drawn: _Drawn,
    engine: Engine,
) -> None:
    """Let the stream go through a float block, and draw from what is coded on the way."""
    windows = len(stream.hidden)
    cache = _Watch(stream.config, len(stream.hidden[0]), drawn, offset, 1 / windows)
    block = float_block(tensors, stream.config, engine)
    widths = [tensors.linears[names[0]].shape[1] for names in STAGES]
    for stage in range(len(STAGES) + 1):
        stream.advance(block, stage, cache)
        for x in stream.inputs:
            drawn.add("activations", x, widths[stage] / sum(widths) / windows)


class _Watch(FloatCache):
    """A cache of one layer that lets blocks be drawn from the keys and values it is given."""

    def __init__(
        self,
        config: LlamaConfig,
        context: int,
        drawn: _Drawn,
        offset: NDArray[np.float32] | None,
        share: float,
    ) -> None:
        super().__init__(config, context, layers=1)
        self._drawn, self._offset, self._share = drawn, offset, share

    def attend(
        self, layer: int, q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        is_turned = self._drawn.options.rotate_values
        centred = k if self._offset is None else k - self._offset
        for kind, rows, rotate in (("keys", centred, True), ("values", v, is_turned)):
            turn = Rotation(k.shape[2], kind="hadamard" if rotate else "none")
            self._drawn.add(kind, rows.reshape(-1, k.shape[2]), self._share, turn)
        return super().attend(layer, q, k, v)
