"""The kernels of a cache of codewords, by the cell of the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from latticeq.model.kv.nest_attention import ATTEND
from latticeq.model.kv.nest_kernels import APPEND, APPEND_MANY, DECODE_HEAD

__all__ = ["CACHE_CELLS", "CacheCell"]


class CacheCell(NamedTuple):
    """The kernels of one cell; see `latticeq.model.kv.nest_kernels` for the layout.

    Parameters
    ----------
    append_rows : callable
        ``append_rows(x, first, last, basis, turn, code, page, place)`` codes the keys, or values,
        of tokens `first` to `last` of x, (T, G, K) float32, and writes them in one layer of a page.
        `basis`, (2, G, K), and `turn`, (K, K) float32, are of `latticeq.model.kv.basis`; `code` is
        q, the bits of a scale index, betas and 1 / betas, both (k,) float32, and whether the first
        scale that fits is taken; `page`, the output, has words (G, tiles, K / 8, 16) int32, scale
        indices (G, tiles, K / 8, 2 * bits) uint8 and norms (G, 16 * tiles) uint16; `place` is the
        position of token 0 in it.
    append_many : callable
        The same, a tile of positions a task: no two write to one byte.
    decode_head : callable
        ``decode_head(plan, kind, g, tiles, code, seen, out)`` decodes the keys (`kind` 0) or values
        (1) of kv head `g`: `plan`, (pages, 6) int64; `tiles` of a page; `code` as in `attend_one`;
        positions to decode, rounded up to a tile; `out`, keys (n, K, 64) or values (n, 64, K)
        float32, in tiles of 64 positions.
    attend_one : callable
        ``attend_one(q, bases, codes, plan, tiles, seen, heads, out)`` lets the queries of one
        token, (H, K) float32, attend to every position of a layer, the token's own included.
        `bases` are the basis and turn of queries, the basis of outputs and the turn back; `codes`
        the code of keys and that of values, each q, by what bytes are raised, the bits of a scale
        index, what each index multiplies integer points by, (16,) float32, and the tables of
        `latticeq.codes.words.word_tables`; `heads` a tuple of as many entries as query heads of one
        kv head go together; `out`, (H, K) float32, is the output.
    """

    append_rows: Callable[..., None]
    append_many: Callable[..., None]
    decode_head: Callable[..., None]
    attend_one: Callable[..., None]


CACHE_CELLS = {
    cell: CacheCell(APPEND[cell], APPEND_MANY[cell], DECODE_HEAD[cell], ATTEND[cell])
    for cell in ("voronoi", "cubic")
}
"""The cells that attention reads in place."""
