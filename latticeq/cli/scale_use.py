"""How often scales are used: those of nested codes, levels of gains of pyramid codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latticeq.cli.tables import kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latticeq.storage.formats.base import Packed
    from latticeq.storage.safetensors import TensorFolder

__all__ = ["scale_use"]


def scale_use(
    folder: TensorFolder, entries: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, list[float]], int]:
    """Return which share of a kind's blocks uses each scale, and what a code for that would save.

    Parameters
    ----------
    folder : TensorFolder
    entries : mapping
        What config.json says of the quantized matrices, checked, by name.

    Returns
    -------
    dict of str to list of float
        By the kind of matrix, the smallest scale first; of pyramid codes the levels of gains are
        the scales, and groups the blocks. Formats with one scale a block have no such choice.
    int
        Bytes that an entropy code for the indices of nested codes' scales would save.

    Raises
    ------
    FormatError
        As `latticeq.storage.checkpoint.read_packed`.
    """
    import numpy as np

    from latticeq.errors import context
    from latticeq.storage.checkpoint import read_packed
    from latticeq.storage.entropy import entropy_coded_nbytes

    counts: dict[str, NDArray[np.int64]] = {}
    saved = 0
    for name, entry in entries.items():
        scales = entry.get("k") or 2 ** entry.get("gain_bits", 0)
        if scales == 1:
            continue
        packed = read_packed(folder, name, entry)
        with context(f"{folder.folder}: tensor {name}"):
            found = np.bincount(_indices(packed).reshape(-1), minlength=scales)
        before = counts.get(kind(name), np.zeros(0, np.int64))
        size = max(len(before), len(found))  # layers need not have the same number of scales
        before, found = (np.pad(part, (0, size - len(part))) for part in (before, found))
        counts[kind(name)] = before + found
        saved += packed.nbytes - entropy_coded_nbytes(packed)
    return {name: (found / found.sum()).tolist() for name, found in counts.items()}, saved


def _indices(packed: Packed) -> NDArray[np.uint8]:
    from latticeq.storage.formats.nest import PackedNest
    from latticeq.storage.formats.pvq import PackedPVQ

    if isinstance(packed, PackedPVQ):
        return packed.gain_indices()
    assert isinstance(packed, PackedNest)  # no other entry has scales to choose from
    return packed.scale_indices()
