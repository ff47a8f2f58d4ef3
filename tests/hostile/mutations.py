"""Damage that is drawn from a seeded generator: of bytes, and of the values inside JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["damaged_bytes", "damaged_json", "damaged_value", "random_bytes"]

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31, 2**32, 2**53, 2**63, 2**64)
FLOATS = (0.5, -0.0, 1e-320, 1e-45, 65504.0, 65520.0, 3.5e38, 1e308, float("inf"), float("nan"))
TEXTS = ("", "a", "\0", "..", "../x", "/", "\ud800", "é", "日本", "true", "1", "{}", "%s", "{0}")


def random_bytes(rng: Random) -> bytes:
    """Return up to a few hundred bytes that mean nothing."""
    return rng.randbytes(rng.choice([0, 1, 7, 8, 9, 64, 300]))


def damaged_bytes(rng: Random, data: bytes) -> bytes:
    """Return bytes with one to four places changed, cut, repeated or overwritten."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4])):
        _damage(rng, found)
    return bytes(found)


def _damage(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    length = min(int(2 ** rng.uniform(0, 8)), len(data) - at)
    kind = rng.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, 0x22, 0x5B, 0x7B, 0x20])
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[at : at + length]
    elif kind == 4:
        data[at:at] = rng.randbytes(length)
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        number = rng.choice(NUMBERS) - rng.choice([0, 0, 1])
        code = rng.choice("BHIQ")
        size = struct.calcsize(code)
        data[at : at + size] = struct.pack(f"<{code}", number % 256**size)
    else:
        start = rng.randrange(len(data) + 1)
        data[at : at + length] = data[start : start + length]


def damaged_json(rng: Random, value: Any) -> bytes:
    """Return a JSON text with one to three values changed, now and then in its bytes as well."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = damaged_value(rng, value)
    data = json.dumps(value).encode()
    return damaged_bytes(rng, data) if rng.random() < 0.1 else data


def damaged_value(rng: Random, value: Any) -> Any:
    """Return a JSON value with one of the values inside it changed; the given one is not."""
    places: list[tuple[Any, ...]] = []
    _gather(value, (), places)
    return _replaced(rng, value, rng.choice(places))


def _gather(value: Any, place: tuple[Any, ...], found: list[tuple[Any, ...]]) -> None:
    found.append(place)
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:40]  # of long lists the beginning stands for all
    for key, inner in items:
        _gather(inner, (*place, key), found)


def _replaced(rng: Random, value: Any, place: tuple[Any, ...]) -> Any:
    if not place:
        return _other(rng, value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = place[0]
    if len(place) == 1 and rng.random() < 0.25:
        if isinstance(copy, dict) and rng.random() < 0.5:
            copy[rng.choice([*TEXTS, key.upper(), key + "x"])] = copy.pop(key)
        else:
            del copy[key]
        return copy
    copy[key] = _replaced(rng, copy[key], place[1:])
    return copy


def _other(rng: Random, value: Any) -> Any:
    """Return something in place of a value: near to it, of another type, or far too large."""
    near = _near(rng, value)
    makers: list[Callable[[], Any]] = [
        lambda: near,
        lambda: near,
        lambda: rng.choice([None, True, False]),
        lambda: (rng.choice(NUMBERS) - rng.choice([0, 0, 1])) * rng.choice([1, 1, -1]),
        lambda: rng.choice(FLOATS) * rng.choice([1, -1]),
        lambda: rng.choice(TEXTS) * rng.choice([1, 1, 1, 3000]),
        lambda: rng.choice([[], {}, [[]], {"a": {}}, [value], [value, value], {"a": value}]),
        lambda: 10 ** rng.choice([20, 400]),
        lambda: _nested(rng.choice([10, 200])),
    ]
    return rng.choice(makers)()


def _near(rng: Random, value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, value * 2, value // 2, -value, str(value)])
    if isinstance(value, float):
        return rng.choice([value * 2, -value, value * 1e30, value * 1e-30, str(value)])
    if isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(TEXTS) + value[at + rng.randrange(3) :]
    items = list(value.items()) if isinstance(value, dict) else list(value)
    rng.shuffle(items)
    cut = items[: rng.randrange(len(items) + 1)]
    return dict(cut) if isinstance(value, dict) else cut * rng.choice([1, 1, 2, 50])


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value
