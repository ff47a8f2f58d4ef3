"""Packed matrices of random codes: made in a blink, for measuring kernels and compiling them.

How long a kernel takes does not depend on what the codes stand for, so nothing is quantized. Every
combination of bits is a codeword in the formats here: q is 16, and the scale indices fill theirs;
but of pyramid codes, whose words are more than half of a power of two, only the first half is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.quantizers.betas import tuned_betas
from latticeq.storage.checkpoint import FORMATS, stored_shapes
from latticeq.storage.formats.base import Packed
from latticeq.storage.wide_bits import pack_wide

__all__ = ["RANDOM_FORMATS", "random_packed"]

RANDOM_FORMATS: dict[str, dict[str, Any]] = {
    "voronoi q=16 k=4": {"format": "voronoi", "q": 16, "k": 4, "rotation": "hadamard"},
    "cubic q=16 k=4": {"format": "cubic", "q": 16, "k": 4, "rotation": "hadamard"},
    "cubic q=16 k=8": {"format": "cubic", "q": 16, "k": 8, "rotation": "hadamard"},
    "d8 q=16 k=8": {"format": "d8", "q": 16, "k": 8, "rotation": "hadamard"},
    "nestquantm q=16 k=4": {"format": "nestquantm", "q": 16, "k": 4, "rotation": "hadamard"},
    "pvq groups of 16": {
        "format": "pvq",
        "group": 16,
        "pulses": 58,
        "gain_bits": 4,
        "rotation": "hadamard",
    },
    "int8 per row": {"format": "int8"},
    "int4 groups of 32": {"format": "int4", "group": 32, "symmetric": True, "rotation": "none"},
    "nf4 groups of 64": {"format": "nf4", "group": 64, "rotation": "none"},
    "mxfp4": {"format": "mxfp4", "group": 32, "rotation": "none"},
    "nvfp4": {"format": "nvfp4", "group": 16, "rotation": "none"},
}
"""What config.json would say of a matrix, less its shape, by the name shown to people."""

_SCALE = 2.0**-7
"""Of all rows and groups: keeps products near one."""

_SCALE_CODES = {"mxfp4": 127 - 7, "nvfp4": 0x08}
"""Scales that are small floats: 2^-7 in E8M0, and 2^-6 in E4M3."""


def random_packed(name: str, rows: int, columns: int, seed: int = 0) -> Packed:
    """Return a matrix of random codes.

    Parameters
    ----------
    name : str
        One of `RANDOM_FORMATS`.
    rows, columns : int
        M and N; the format says what N is a multiple of.
    seed : int
        Of the codes.

    Raises
    ------
    FormatError
        If the format has no such shape.
    """
    entry = RANDOM_FORMATS[name] | {"shape": [rows, columns]}
    kind = FORMATS[entry["format"]]
    kind.check_entry(entry)
    rng = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for suffix, (dtype, shape) in stored_shapes(entry).items():
        if suffix == "betas":
            arrays[suffix] = np.array(tuned_betas(entry["q"], entry["k"], entry["format"]), "f4")
        elif suffix in {"tensor_scale", "levels"}:
            arrays[suffix] = np.ones(shape, np.float32)
        elif suffix == "index":
            first_half = rng.integers(0, 2**63, (16 * shape[0], shape[1], 1), np.uint64)
            arrays[suffix] = pack_wide(first_half, shape[2] // 2)
        elif dtype == "F16":
            arrays[suffix] = np.full(shape, _SCALE, np.float16)
        elif suffix == "scales":
            arrays[suffix] = np.full(shape, _SCALE_CODES[entry["format"]], np.uint8)
        else:
            codes = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8)
            arrays[suffix] = codes.reshape(shape)
        arrays[suffix].flags.writeable = False  # as mapped arrays are: kernels may tell
    return kind(entry, arrays)
