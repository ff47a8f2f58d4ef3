"""The right cache for a coding of keys and values."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from latticeq.model.config import LlamaConfig
from latticeq.model.kv.cache import FloatCache, KVCache
from latticeq.model.kv.coding import KVCoding
from latticeq.model.kv.nest import NestCache
from latticeq.model.kv.rows import RowCache

__all__ = ["new_cache"]


def new_cache(
    config: LlamaConfig,
    context: int,
    coding: KVCoding | None = None,
    layers: int | None = None,
    dtype: DTypeLike = np.float32,
) -> KVCache:
    """Return an empty cache.

    Parameters
    ----------
    config : LlamaConfig
    context : int
        The most tokens that it can hold.
    coding : KVCoding, optional
        How to keep keys and values; as floats if omitted.
    layers : int, optional
        How many layers to hold, instead of the model's.
    dtype : np.dtype or type
        Of floats: float32 or float16.

    Raises
    ------
    InputError
        If `context` is out of range, or the coding does not fit the model.
    """
    if coding is None:
        return FloatCache(config, context, layers, dtype)
    kind = NestCache if NestCache.supports(coding) else RowCache
    return kind(config, context, coding, layers)
