"""From a model folder to a model on devices: packed bytes are copied from the memory map.

What `latticeq.model.loader.load` checks is checked here too, by the same code; what differs is what
a weight becomes. Matrices that share an input are stacked where they are of one code
(`latticeq.gpu.product`), so that a token takes few launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from latticeq.errors import InputError
from latticeq.errors import context as error_context
from latticeq.gpu.cache import check_cache
from latticeq.gpu.device import check_device, cupy
from latticeq.gpu.exact import ExactLinear
from latticeq.gpu.linear import GpuLinear, make_gpu_linear
from latticeq.gpu.model import GpuLlama
from latticeq.gpu.product import Product, stacked, stacked_bias
from latticeq.gpu.stage import GpuBlock, Stage
from latticeq.gpu.tables import FloatTable, Int8Table, upload
from latticeq.model.llama import BLOCK_LINEARS, BLOCK_NORMS
from latticeq.model.loader import Weights, load_config, load_kv_coding

__all__ = ["load_gpu", "split_layers"]

_SHARED = (BLOCK_LINEARS[:3], BLOCK_LINEARS[3:4], BLOCK_LINEARS[4:6], BLOCK_LINEARS[6:])
"""Linears by what they share, in the order in which a token meets them."""

RUNTIMES = ("packed", "float32")

_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"


def load_gpu(
    folder: str | Path,
    context: int | None = None,
    *,
    devices: Sequence[int] = (0,),
    runtime: str = "packed",
) -> GpuLlama:
    """Load a model folder onto devices.

    Parameters
    ----------
    folder : str or Path
    context : int, optional
        As in `latticeq.model.loader.load`.
    devices : sequence of int
        Layers are split over these, in order; a device may be named twice.
    runtime : "packed" or "float32"
        How packed matrices are multiplied: as `latticeq.gpu.linear` does, or decoded to float32
        when they are loaded (`latticeq.gpu.exact`).

    Raises
    ------
    FormatError, InputError
        As `latticeq.model.loader.load`; also if there is no such device, or its memory is short.
    MissingDependencyError
        If CuPy or a GPU is missing.
    """
    cp = cupy()
    if runtime not in RUNTIMES:
        raise InputError(
            f"runtime is {runtime!r}; on a GPU it must be {' or '.join(map(repr, RUNTIMES))}"
        )
    for device in devices:
        check_device(device)
    config = load_config(folder)
    if context is not None:
        config.check_context(context)
    weights = Weights(folder, config)
    kv = load_kv_coding(weights, range(config.num_hidden_layers))
    check_cache(config, kv)
    ranges = split_layers(config.num_hidden_layers, len(devices))
    streams = {device: _stream(device) for device in devices}  # what works in one is in order
    stages: list[Stage] = []
    for number, (device, layers) in enumerate(zip(devices, ranges, strict=True)):
        ends = number == 0, number == len(devices) - 1
        try:
            stages.append(_stage(weights, runtime, device, streams[device], layers, ends))
        except cp.cuda.memory.OutOfMemoryError as error:
            raise InputError(
                f"{folder}: device {device} has no memory for layers {layers[0]} to {layers[-1]} "
                f"({error}); spread the model over more devices, such as --device gpu:0,1"
            ) from error
    is_float = not any(".layers." in name for name in weights.entries)
    return GpuLlama(
        config,
        stages,
        kv=kv,
        cache_dtype=np.float32 if is_float else np.float16,
        context=context,
        folder=Path(folder),
    )


def _stream(device: int) -> Any:
    with cupy().cuda.Device(device):
        return cupy().cuda.Stream(non_blocking=True)


def split_layers(count: int, parts: int) -> list[range]:
    """Return consecutive ranges of layers, as even as they can be.

    Raises
    ------
    InputError
        If there are fewer layers than parts.

    Examples
    --------
    >>> split_layers(7, 3)
    [range(0, 3), range(3, 5), range(5, 7)]
    """
    if not 1 <= parts <= count:
        raise InputError(
            f"{parts} devices were given for {count} layers; each needs at least one layer"
        )
    size, more = divmod(count, parts)
    starts = [part * size + min(part, more) for part in range(parts + 1)]
    return [range(*pair) for pair in pairwise(starts)]


def _stage(
    weights: Weights,
    runtime: str,
    device: int,
    stream: Any,
    layers: range,
    ends: tuple[bool, bool],
) -> Stage:
    """Bring one device's part of a model there; `ends`: whether it is the first, and the last."""
    cp, is_first, is_last = cupy(), *ends
    with cp.cuda.Device(device), stream:
        embedding = head = norm = None
        if is_first:
            embedding = _table(weights, _EMBEDDING, runtime)
        if is_last:
            norm = upload(weights.float32("model.norm.weight"))
            tied = weights.config.tie_word_embeddings
            if tied and is_first:
                head = embedding
            else:
                head = _table(weights, _EMBEDDING if tied else _HEAD, runtime)
        blocks = [_block(weights, index, runtime) for index in layers]
        stream.synchronize()
    return Stage(weights.config, device, stream, blocks, embedding=embedding, norm=norm, head=head)


def _block(weights: Weights, index: int, runtime: str) -> GpuBlock:
    prefix = f"model.layers.{index}"
    products = []
    for names in _SHARED:
        full = [f"{prefix}.{name}" for name in names]
        is_packed = all(f"{name}.weight" in weights.entries for name in full)
        if is_packed and stacked([weights.packed(f"{name}.weight") for name in full]) is not None:
            products.append(Product({"+".join(names): _linear(weights, full, runtime)}))
        else:
            pairs = zip(names, full, strict=True)
            products.append(
                Product({name: _linear(weights, [path], runtime) for name, path in pairs})
            )
    norms = [upload(weights.float32(f"{prefix}.{name}.weight")) for name in BLOCK_NORMS]
    return GpuBlock(products, norms)


def _linear(weights: Weights, names: Sequence[str], runtime: str) -> Any:
    """Return the linear of one matrix, or of several that `stacked` has joined."""
    biases = [
        weights.float32(f"{name}.bias") if f"{name}.bias" in weights else None for name in names
    ]
    if f"{names[0]}.weight" not in weights.entries:
        return FloatTable(weights.matrix_float32(f"{names[0]}.weight"), biases[0])
    matrices = [weights.packed(f"{name}.weight") for name in names]
    bias = stacked_bias(biases, [matrix.shape[0] for matrix in matrices])
    packed, coding = stacked(matrices), weights.coding.inputs
    assert packed is not None
    is_coded = coding is not None and names[0].startswith("model.layers.")
    with error_context(f"{weights.folder.folder}: the coding of activations"):
        codec = coding.codec(packed.shape[1]) if coding is not None and is_coded else None
        device = int(cupy().cuda.runtime.getDevice())
        linear: Any = (
            ExactLinear(packed, bias, codec)
            if runtime == "float32"
            else make_gpu_linear(packed, bias, device, codec)
        )
    linear.nbytes = sum(matrix.nbytes for matrix in matrices)  # scales of each, as the file has it
    return linear


def _table(weights: Weights, name: str, runtime: str) -> Any:
    """Return the token embeddings, or the head."""
    linear = _linear(weights, [name], runtime)
    if not isinstance(linear, GpuLinear) or name == _HEAD:
        return linear
    packed = weights.packed(f"{name}.weight")
    rows = upload(packed.arrays["int8"]), upload(packed.arrays["row_scale"].astype(np.float32))
    return Int8Table(linear, *rows)
