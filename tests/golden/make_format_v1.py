"""Make format_v1.json: bytes of format v1 and the numbers that they stand for.

Everything comes from `reference`, plain NumPy and Python integers that share no code with latticeq.
The file was made once, with NumPy 2.4.6, and stays as it is: a reader that disagrees with it does
not read format v1. Run ``python -m tests.golden.make_format_v1`` to see that it still comes out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from reference.bits import pack_digits, pack_int8, pack_scale_index
from reference.nestquant import rotation_matrix, signs
from reference.voronoi import decode, encode

PATH = Path(__file__).with_name("format_v1.json")
CODES = [(2, 1), (3, 2), (5, 3), (9, 4), (14, 4), (16, 4), (16, 16), (20, 8), (32, 5), (63, 16)]


def voronoi_vector(q: int, k: int) -> dict[str, Any]:
    """Return one matrix of 3 x 16: digits and what they pack and decode to."""
    rng = np.random.default_rng([q, k])
    digits = rng.integers(0, q, (3, 2, 8)).astype(np.uint8)
    digits[2, 1] = q - 1  # the largest digits
    scale_index = rng.integers(0, k, (3, 2)).astype(np.uint8)
    return {
        "q": q,
        "k": k,
        "digits": digits.tolist(),
        "scale_index": scale_index.tolist(),
        "packed_digits": pack_digits(digits, q)[..., :3, :].tobytes().hex(),
        "packed_scale_index": pack_scale_index(scale_index, k).tobytes().hex(),
        "doubled": (2 * decode(digits.reshape(-1, 8), q)).astype(int).reshape(3, 2, 8).tolist(),
    }


def boundary_vector(q: int) -> dict[str, Any]:
    """Return digits whose coset has several members of least norm, and the one that is decoded."""
    deep = np.zeros((8, 8))
    deep[np.arange(8), np.arange(8)] = q  # in the corner between cells, for even q a lattice point
    digits = encode(deep, q)
    return {
        "q": q,
        "digits": digits.tolist(),
        "doubled": (2 * decode(digits, q)).astype(int).tolist(),
    }


def make() -> dict[str, Any]:
    """Return the content of the file."""
    values = np.random.default_rng(8).integers(-127, 128, (2, 8)).astype(np.int8)
    return {
        "about": "Frozen vectors of latticeq's format v1, see make_format_v1.py",
        "voronoi": [voronoi_vector(q, k) for q, k in CODES],
        "ties": [boundary_vector(q) for q in (2, 4, 14, 16, 62)],
        "int8": {
            "values": values.tolist(),
            "packed": pack_int8(values)[:, :, :2].tobytes().hex(),
        },
        "signs": [
            {"seed": seed, "signs": signs(24, seed).astype(int).tolist()}
            for seed in (0, 1, 2**64 - 1)
        ],
        "rotations": [
            {
                "n": n,
                "seed": seed,
                "is_minus": "".join(
                    "1" if entry < 0 else "0" for entry in rotation_matrix(n, seed).reshape(-1)
                ),
            }
            for n, seed in ((8, None), (12, None), (24, 5), (40, None))
        ],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(make(), separators=(",", ":")) + "\n", "utf-8")
