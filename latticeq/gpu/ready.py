"""Tokens made ready for a product in one launch with the step before it (``cuda/ready.cu``).

A token by itself is a chain of launches, each of which costs a microsecond or two whatever it does.
So the normalisation, or the gate, the rotation and the rounding to float16 are one kernel, compiled
for the length of a row. Long rows take two (``cuda/slices.cu``), which share them out over the
device. Rotations that there is no room or no place for take the longer way, by
`latticeq.gpu.tokens`; the rotation is the same to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from latticeq.gpu.device import cupy, function
from latticeq.gpu.launch import launch_early
from latticeq.gpu.many import takes_wide
from latticeq.gpu.memory import buffer
from latticeq.gpu.small import MOST_TOKENS
from latticeq.gpu.tokens import Operand, operand_buffers, padded
from latticeq.gpu.weights import CELLS
from latticeq.quantizers.rows import NestRowCodec, RowCodec
from latticeq.transforms.hadamard import hadamard_codes, hadamard_factors
from latticeq.transforms.rotation import Rotation

__all__ = ["GATE", "NORM", "PLAIN", "Before", "Ready"]

PLAIN, NORM, GATE = 0, 1, 2
"""SOURCE of ready.cu: what is done to a token before it is rotated."""

MOST_WARPS = 32
MOST_SCALES = 32
"""Of a code: the threads of a warp try those of a block side by side."""

LONGEST_ROW = {1: 8192}
"""The most columns of Sylvester's factor, by the order of Paley's; 512 where that is not 1."""

PLAIN_BYTES = 40 * 1024
"""Shared memory that any kernel may take."""

LONG, ROW_WARPS, COLUMN_THREADS = 4096, 4, 256
"""The shortest row that is shared out, and what slices.cu has for threads."""

STATIC_BYTES = 1024
"""Shared memory that the kernel takes beside what it asks for."""

CODED_THREADS, MOST_PARTS = 128, 128
"""Threads that code a part of a token, a warp for each scheduler, and the most parts at work."""


@dataclass(frozen=True)
class Before:
    """The step before a product.

    Attributes
    ----------
    source : int
        `PLAIN`, `NORM` or `GATE`.
    x : (T, N) float32, or (T, 2 N) for `GATE`
        For `NORM` the residual stream, which is changed unless there is another place for the sum.
    added : (T, N) float32, optional
        For `NORM`: what is added to the stream first.
    weight : (N,) float32, optional
        For `NORM`.
    epsilon : float
        For `NORM`.
    stream : (T, N) float32, optional
        For `NORM`: where the sum goes, which lets several blocks of threads have a token.
    """

    source: int
    x: Any
    added: Any = None
    weight: Any = None
    epsilon: float = 0.0
    stream: Any = None


class Ready:
    """The kernel for one rotation.

    Parameters
    ----------
    rotation : Rotation
        One that `fits`.
    codec : NestRowCodec, optional
        Of rotated tokens, as in `latticeq.gpu.rows.GpuRowCodec`.
    """

    def __init__(self, rotation: Rotation, codec: NestRowCodec | None = None) -> None:
        m, bits = hadamard_factors(rotation.n) or (1, 0)
        width = 1 << bits
        warps = -(-m * width // 32) if m > 1 and width < 32 else m
        if m == 1:
            warps = max(1, width // 256)
        self._n, self._m, self._width = rotation.n, m, width
        self._warps = min(MOST_WARPS, warps)
        is_cut = m > 1 and rotation.n >= LONG and 32 <= width <= 1024
        self._is_shared_out = is_cut and codec is None
        self._constants = {
            "M": m,
            "WIDTH": width,
            "PADDED": padded(rotation.n),
            "WARPS": self._warps,
            "CODED": int(codec is not None),
        }
        self._scales: Any = 0
        if codec is not None:
            code = codec.code
            betas = np.asarray(code.betas, np.float32)
            self._scales = cupy().asarray(np.stack([betas, 1 / betas, betas / betas[-1]]))
            self._constants |= {
                "CELL": CELLS[code.cell],
                "Q": code.q,
                "SCALES": len(betas),
                "FIRST_FIT": int(code.selection == "first"),
            }
        self._bytes = 4 * rotation.n * (2 if m > 1 else 1)
        self._scale = np.float32(1.0 / np.sqrt(rotation.n))

    @staticmethod
    def fits(rotation: Rotation, codec: RowCodec | None = None) -> bool:
        """Tell whether there is a kernel for a rotation and a code, on the current device."""
        m, bits = hadamard_factors(rotation.n) or (1, 0)
        room = int(cupy().cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]) - STATIC_BYTES
        is_coded = isinstance(codec, NestRowCodec) and len(codec.code.betas) <= MOST_SCALES
        return (
            rotation.is_plain
            and (codec is None or is_coded)
            and rotation.n % 32 == 0
            and 1 << bits <= LONGEST_ROW.get(m, 512)
            and 4 * rotation.n * (2 if m > 1 else 1) <= room
        )

    @cached_property
    def _codes(self) -> Any:
        codes = hadamard_codes(self._n)
        return cupy().asarray(codes) if codes.size else 0

    def operand(self, before: Before) -> Operand:
        """Return T tokens as products take them, in buffers that the next call writes over."""
        tokens = len(before.x)
        is_wide = tokens > MOST_TOKENS and takes_wide()
        halves, scale = operand_buffers(tokens, self._n, is_wide)
        if self._is_shared_out and before.source != NORM:
            self._share_out(before, tokens, is_wide, halves, scale)
        else:
            self._launch(before, tokens, is_wide, halves, scale)
        return Operand(halves, scale, is_wide)

    def _share_out(
        self, before: Before, tokens: int, is_wide: bool, halves: Any, scale: Any
    ) -> None:
        sizes = {name: self._constants[name] for name in ("M", "WIDTH", "PADDED")}
        slices = self._width // (16 if 16 * self._m <= 512 else 8)
        mixed = buffer("mixed columns", (tokens, self._n), "float32")
        energies = buffer("energies", (tokens, slices), "float64")
        columns = function("slices", "mix_columns", SOURCE=before.source, **sizes)
        given = (before.x, self._codes, self._scale, mixed, energies)
        launch_early(columns, (slices, tokens), (COLUMN_THREADS,), given)
        rows = function("slices", "mix_rows", SOURCE=before.source, **sizes)
        outputs = (mixed, energies, int(is_wide), halves, scale)
        launch_early(rows, (-(-self._m // ROW_WARPS), tokens), (32 * ROW_WARPS,), outputs)

    def _parts(self, before: Before, tokens: int) -> int:
        """Return how many blocks of threads a token has: they search for codewords side by side."""
        is_shared = before.source == NORM and before.added is not None and before.stream is None
        if not self._constants["CODED"] or is_shared:
            return 1
        scales = 1 << (int(self._constants["SCALES"]) - 1).bit_length()
        return max(1, min(-(-self._n // 8 * scales // CODED_THREADS), MOST_PARTS // tokens))

    def _launch(self, before: Before, tokens: int, is_wide: bool, halves: Any, scale: Any) -> None:
        kernel = function("ready", "ready", SOURCE=before.source, **self._constants)
        if self._bytes > PLAIN_BYTES:  # more has to be asked for
            kernel.max_dynamic_shared_size_bytes = self._bytes
        added = 0 if before.added is None else before.added
        weight = 0 if before.weight is None else before.weight
        stream = before.x if before.stream is None else before.stream
        given = (before.x, stream, added, weight, np.float64(before.epsilon))
        fixed = (self._codes, self._scale, self._scales)
        arguments = (*given, *fixed, int(is_wide), halves, scale)
        grid = (tokens, self._parts(before, tokens))
        launch_early(kernel, grid, (32 * self._warps,), arguments, self._bytes)
