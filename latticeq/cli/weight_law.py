"""How the weights of a model are distributed beside the normal law, before and after the rotation.

The scales of a nested code are tuned for Gaussian rows. The weights of real models have heavier
tails; the rotation is there to take them away. Here the weights are those that the packed bytes
stand for, each row divided by its root mean square.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from latticeq.cli.contents import Stored
from latticeq.cli.tables import kind
from latticeq.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latticeq.storage.safetensors import TensorFolder

__all__ = ["BINS", "WIDEST", "WeightLaw", "weight_laws"]

BINS = 80
"""Of the histograms, from -`WIDEST` to `WIDEST` standard deviations: .2 each."""

WIDEST = 8.0

MOST_WEIGHTS = 2**28
"""That are looked at, about; of a larger model every second, third ... layer, to end in minutes."""


@dataclass(frozen=True)
class WeightLaw:
    """How the weights of all matrices of one kind are distributed.

    Parameters
    ----------
    kind : str
        Such as ``layers.*.mlp.down_proj``.
    matrices, weights : int
        That were looked at.
    largest, largest_coded : float
        The largest magnitude in units of its row's root mean square; the same in the basis that the
        rows are coded in.
    density, density_coded : list of float
        How many weights fall into each of `BINS` equal parts from -`WIDEST` to `WIDEST`, over what
        makes the histogram's area one; what lies outside counts as the outermost.
    """

    kind: str
    matrices: int
    weights: int
    largest: float
    largest_coded: float
    density: list[float]
    density_coded: list[float]


def weight_laws(
    folder: TensorFolder,
    tensors: Iterable[Stored],
    entries: Mapping[str, Mapping[str, Any]],
    most_weights: int = MOST_WEIGHTS,
) -> list[WeightLaw]:
    """Return how the weights of every kind of linear are distributed.

    Parameters
    ----------
    folder : TensorFolder
    tensors : iterable of Stored
        Those of the folder; the linears among them are looked at.
    entries : mapping
        What config.json says of the quantized ones, by name. Those that are float are rotated as
        the default would rotate them.
    most_weights : int
        If the linears have more, every second layer is left out, or two of three, and so on.

    Raises
    ------
    FormatError
        As `latticeq.storage.checkpoint.read_packed`.
    InputError
        If a float matrix holds what is no finite number.
    """
    from tqdm import tqdm

    groups: dict[str, list[Stored]] = {}
    for tensor in tensors:
        if tensor.is_linear:
            groups.setdefault(kind(tensor.name), []).append(tensor)
    total = sum(prod(tensor.shape) for members in groups.values() for tensor in members)
    step = max(1, -(-total // most_weights))
    chosen = {name: members[::step] for name, members in groups.items()}
    count = sum(map(len, chosen.values()))
    with tqdm(total=count, desc="weights", unit="matrix", leave=False) as bar:
        return [_law(name, folder, members, entries, bar) for name, members in chosen.items()]


def _law(
    name: str,
    folder: TensorFolder,
    members: Sequence[Stored],
    entries: Mapping[str, Mapping[str, Any]],
    bar: Any,
) -> WeightLaw:
    import numpy as np

    counts = np.zeros((2, BINS), np.int64)
    largest, weights = np.zeros(2), 0
    for tensor in members:
        for i, rows in enumerate(_rows(folder, tensor, entries.get(tensor.name))):
            inside = np.clip(rows, -WIDEST, WIDEST)
            counts[i] += np.histogram(inside, BINS, (-WIDEST, WIDEST))[0]
            largest[i] = max(largest[i], np.abs(rows).max(initial=0))
        weights += prod(tensor.shape)
        bar.update()
    plain, coded = (counts / max(1, counts[0].sum()) * (BINS / (2 * WIDEST))).tolist()
    widest = float(largest[0]), float(largest[1])
    return WeightLaw(name, len(members), weights, *widest, plain, coded)


def _rows(
    folder: TensorFolder, tensor: Stored, entry: Mapping[str, Any] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the rows of a matrix over their root mean square, and the same as they are coded."""
    import numpy as np

    from latticeq.storage.checkpoint import read_packed
    from latticeq.transforms.rotation import Rotation

    if entry is None:
        values, rotation = folder.float32(tensor.name), Rotation(tensor.shape[1])
        if not np.isfinite(values).all():
            raise InputError(f"{folder.folder}: tensor {tensor.name} holds NaN or infinity")
    else:
        packed = read_packed(folder, tensor.name, entry)
        values, rotation = packed.unpack().dequantize(), packed.rotation
    norms = np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=1))
    rows = (values[norms > 0] / norms[norms > 0, None]).astype(np.float32)
    return rows, rotation.apply(rows)
