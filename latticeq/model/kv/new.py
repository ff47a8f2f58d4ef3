"""The right cache for a coding of keys and values."""

from __future__ import annotations

from latticeq.model.config import LlamaConfig
from latticeq.model.kv.cache import FloatCache, KVCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest import NestCache
from latticeq.model.kv.rows import RowCache

__all__ = ["new_cache"]


def new_cache(
    config: LlamaConfig, context: int, coding: KVCoding | None = None, layers: int | None = None
) -> KVCache:
    """Return an empty cache.

    Parameters
    ----------
    config : LlamaConfig
    context : int
        The most tokens that it can hold.
    coding : KVCoding, optional
        How to keep keys and values; in float32 if omitted.
    layers : int, optional
        How many layers to hold, instead of the model's.

    Raises
    ------
    InputError
        If `context` is out of range, or the coding does not fit the model.
    """
    if coding is None:
        return FloatCache(config, context, layers)
    kind = NestCache if NestCache.supports(coding) else RowCache
    return kind(config, context, coding, layers)
