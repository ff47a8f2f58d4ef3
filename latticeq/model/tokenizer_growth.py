"""How much longer a tokenizer.json may make a text, told before it sees one.

Between a text and its tokens stand normalizers and pre-tokenizers, and behind them decoders, each a
chain of components. Some lengthen what they are given: ``ByteLevel`` spells a byte in up to two,
``Replace`` puts any text in place of any other. A chain multiplies that, so a file of a few
kilobytes could fill any memory: fifty ``ByteLevel`` make a text 2**50 times as long. Those of real
models have up to eight components, and lengthen a text tenfold at most.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from latticeq.errors import FormatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["check_growth"]

_MOST_COMPONENTS = 64
_MOST_GROWTH = 1024
_CHAINS = ("normalizers", "pretokenizers", "decoders")
_FACTORS = {
    "ByteLevel": 2,  # of the 256 characters that stand for bytes the last take two bytes
    "Metaspace": 4,
    "NFC": 3,
    "NFD": 3,
    "NFKC": 11,  # U+FDFA: three bytes become 33
    "NFKD": 11,
    "Lowercase": 3,
    "BertNormalizer": 3,
    "Precompiled": 11,  # of sentencepiece: NFKC and a little more
}
"""By how much a component makes the UTF-8 of a text longer at most; others do not."""


def check_growth(backend: Backend) -> None:
    """Refuse a tokenizer whose components could make a text far longer than it is.

    Raises
    ------
    FormatError
        Naming the chain.
    """
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        part = getattr(backend, name)
        if part is None:
            continue
        components = list(_components(json.loads(part.__getstate__())))
        if len(components) > _MOST_COMPONENTS:
            raise FormatError(
                f"its {name} has {len(components)} components; at most {_MOST_COMPONENTS} are taken"
            )
        growth = 1
        for component in components:
            growth *= _factor(component)
        if growth > _MOST_GROWTH:
            raise FormatError(
                f"its {name} could make a text {growth:.3g} times as long; at most {_MOST_GROWTH} "
                "times is taken"
            )


def _components(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the components of a chain, and of those inside it."""
    if state.get("type") != "Sequence":
        yield state
        return
    for name in _CHAINS:
        for inner in state.get(name, ()):
            yield from _components(inner)


def _factor(component: Mapping[str, Any]) -> int:
    kind = component.get("type")
    if kind == "Prepend":
        return 1 + _nbytes(component.get("prepend", ""))
    if kind == "Replace":
        content, pattern = _nbytes(component.get("content", "")), component.get("pattern", {})
        found = _nbytes(pattern.get("String", "")) if isinstance(pattern, Mapping) else 0
        # An expression, and the empty text, may be found between any two bytes.
        return max(1, -(-content // found)) if found else 1 + content
    return _FACTORS.get(str(kind), 1)


def _nbytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
