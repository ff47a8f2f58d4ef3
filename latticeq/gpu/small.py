"""Products by few tokens: what is compiled and how many blocks are started (``cuda/small.cu``)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from latticeq.gpu.device import cupy, function
from latticeq.gpu.launch import launch_early
from latticeq.gpu.memory import buffer, zeros
from latticeq.gpu.tokens import Operand
from latticeq.gpu.weights import Weights

__all__ = ["MOST_TOKENS", "Plan", "multiply_few", "plan"]

MOST_TOKENS = 64
"""Tokens of one call: their sums are in registers."""


@dataclass(frozen=True)
class Plan:
    """How a product is cut.

    Attributes
    ----------
    token_tiles : int
        Of eight tokens.
    tiles : int
        Of sixteen rows, that a warp has.
    warps, row_warps : int
        Warps of a block, and how many of them have rows of their own.
    ahead : int
        Steps of 128 columns that a warp has asked memory for.
    blocks : int
        Of threads, that a multiprocessor is to hold at least.
    splits : int
        Of the columns, over blocks.
    """

    token_tiles: int
    tiles: int = 1
    warps: int = 8
    row_warps: int = 1
    ahead: int = 2
    blocks: int = 2
    splits: int = 1

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled with."""
        return {
            "TOKEN_TILES": self.token_tiles,
            "TILES": self.tiles,
            "WARPS": self.warps,
            "ROW_WARPS": self.row_warps,
            "AHEAD": self.ahead,
            "BLOCKS": self.blocks,
        }


@cache
def plan(tiles: int, steps: int, tokens: int, multiprocessors: int) -> Plan:
    """Return how a product of `tiles` x 16 rows and `steps` x 128 columns by tokens is cut."""
    token_tiles = next(count for count in (1, 2, 4, 8) if tokens <= 8 * count)
    many_rows = token_tiles < 4 and tiles >= 3 * multiprocessors
    if many_rows and steps >= 8:
        return Plan(token_tiles, warps=4, ahead=3, blocks=4)
    warps = 8
    while warps > 1 and warps > steps:
        warps //= 2
    splits = max(1, min(2 * multiprocessors // tiles, steps // (2 * warps)))
    return Plan(token_tiles, warps=warps, splits=splits, blocks=2 if token_tiles < 4 else 1)


def multiply_few(
    weights: Weights, operand: Operand, bias: Any, out: Any, how: Plan | None = None
) -> None:
    """Multiply up to `MOST_TOKENS` tokens: writes out, (T, M) float32 and contiguous.

    Parameters
    ----------
    weights : Weights
    operand : Operand
    bias : (M,) float32, or 0
    out : (T, M) float32
    how : Plan, optional
        Another than `plan` gives.
    """
    tokens, tiles, steps = operand.tokens, weights.tiles, weights.steps
    how = how or plan(tiles, steps, tokens, _multiprocessors(cupy().cuda.runtime.getDevice()))
    kernel = function("small", "multiply", **weights.constants, **how.constants)
    across = -(-tiles // (how.tiles * how.row_warps))
    partial: Any = 0
    arrived: Any = 0
    if how.splits > 1:
        partial = buffer("partial sums", (how.splits, tokens, 16 * tiles), "float32")
        arrived = zeros("arrived", across)
    launch_early(
        kernel,
        (across, how.splits),
        (32 * how.warps,),
        (*weights.arrays, weights.row_scale, bias, operand.halves, operand.scale, out, tokens,
         weights.shape[0], tiles, steps, partial, arrived),
    )  # fmt: skip


@cache
def _multiprocessors(device: int) -> int:
    return int(cupy().cuda.Device(device).attributes["MultiProcessorCount"])
