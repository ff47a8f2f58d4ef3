"""What a checkpoint codes while it runs: activations, keys and values, as config.json tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticeq.errors import FormatError, context
from latticeq.model.kv.coding import KVCoding
from latticeq.quantizers.coding import Coding, coding_from_config

__all__ = ["CacheCoding", "RunCoding"]

_FLAGS = ("rotate_keys", "rotate_values", "key_offset")


@dataclass(frozen=True)
class CacheCoding:
    """How keys and values are coded, but for the arrays: see `KVCoding`.

    Parameters
    ----------
    keys, values : Coding
    rotate_keys, rotate_values : bool
    key_offset : bool
        Whether the checkpoint holds a mean key for each kv head.
    """

    keys: Coding
    values: Coding
    rotate_keys: bool = True
    rotate_values: bool = True
    key_offset: bool = False

    def coding(self, width: int, offset: NDArray[np.float32] | None) -> KVCoding:
        """Return the coding of heads of a width, `offset` (L, G, K) the mean keys."""
        return KVCoding(
            self.keys.codec(width),
            self.values.codec(width),
            self.rotate_keys,
            self.rotate_values,
            key_offset=offset,
        )


@dataclass(frozen=True)
class RunCoding:
    """Everything that is coded while a model runs; None is float32.

    Parameters
    ----------
    inputs : Coding, optional
        Of the inputs of all quantized linears of the blocks.
    cache : CacheCoding, optional
    """

    inputs: Coding | None = None
    cache: CacheCoding | None = None

    def to_config(self) -> dict[str, Any]:
        """Return the two fields of a ``quantization_config``."""
        fields: dict[str, Any] = {"activations": None, "kv_cache": None}
        if self.inputs is not None:
            fields["activations"] = self.inputs.to_config()
        if self.cache is not None:
            flags = {name: value for name, value in asdict(self.cache).items() if name in _FLAGS}
            keys, values = self.cache.keys.to_config(), self.cache.values.to_config()
            fields["kv_cache"] = {"keys": keys, "values": values, **flags}
        return fields

    @classmethod
    def from_config(cls, quantized: Mapping[str, Any]) -> RunCoding:
        """Return what a ``quantization_config`` says, checked.

        Raises
        ------
        FormatError
            If a field is not well formed.
        """
        inputs, cache = quantized.get("activations"), quantized.get("kv_cache")
        with context("config.json: quantization_config.activations"):
            coding = None if inputs is None else coding_from_config(inputs)
        with context("config.json: quantization_config.kv_cache"):
            return cls(coding, None if cache is None else _cache_from_config(cache))


def _cache_from_config(cache: Any) -> CacheCoding:
    if not isinstance(cache, Mapping) or set(cache) != {"keys", "values", *_FLAGS}:
        raise FormatError(f"is {cache!r:.80}; it must have keys, values, {', '.join(_FLAGS)}")
    for name in _FLAGS:
        if not isinstance(cache[name], bool):
            raise FormatError(f"{name} is {cache[name]!r:.80}; it must be true or false")
    codings = {}
    for name in ("keys", "values"):
        with context(name):
            codings[name] = coding_from_config(cache[name])
    flags: dict[str, bool] = {name: cache[name] for name in _FLAGS}
    return CacheCoding(codings["keys"], codings["values"], **flags)
