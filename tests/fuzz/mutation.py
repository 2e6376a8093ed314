"""Damages, made from random numbers: of bytes, of JSON values, and of the JSON that begins a safetensors file."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

_NUMBERS = (0, 1, 2, 3, 7, 8, 31, 32, 64, 127, 128, 255, 256, 1000, 4096, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 24)
_LARGE = tuple(number for bits in (31, 32, 40, 62, 63, 64) for number in ((1 << bits) - 1, 1 << bits))
_WORDS = (
    b"\n", b"\0", b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"true", b"-1", b"1e999", b"NaN", b"\\ud800",
    b"\xff", b"\xc3", b"\xf0\x9f\xa6\x99", b"\xe2\x96\x81", b"GGUF", b"PK\3\4", b"PK\1\2", b"PK\5\6", b"\x80\x02",
    b"ctorch\n", b"(", b")", b"R", b"Q", b"q\0", b"h\0", b"t", b"u", b"{%", b"%}", b"{{", b"}}", b"<s>", b"\x1b[2J",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308,
    float("inf"), float("nan"), "", "a", " ", "\u2581", "\ud800", "é", "🦙", "<s>", "\x1b[2J", "a\nb", "0", "x" * 300,
    [], {}, [[]], [None], [1, 2], {"": 0}, [[[[[[]]]]]], {"type": "Sequence"}, "ByteLevel", "Sequence", "(a+)+$",
)  # fmt: skip


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """data with one to six damages somewhere."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(_DAMAGES)(changed, random)
    return bytes(changed)


def mutate_head(data: bytes, random: Random) -> bytes:
    """data with damages in its first 2 KB, where the tiny files of a format with its header in front have it."""
    return mutate_bytes(data[:2048], random) + data[2048:] if random.random() < 0.9 else mutate_bytes(data, random)


def _flip(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.randrange(256)


def _number(data: bytearray, random: Random) -> None:
    """A number of 1 to 8 bytes that is likely to matter, or one near the number that was there."""
    size = random.choice((1, 2, 4, 4, 8, 8))
    if len(data) < size:
        return
    at = random.randrange(len(data) - size + 1)
    number = random.choice((random.choice(_NUMBERS), random.choice(_LARGE), len(data)))
    if random.random() < 0.4:
        number = int.from_bytes(data[at : at + size], "little") + random.randint(-2, 2)
    data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")


def _insert(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.choice(_WORDS) if random.random() < 0.7 else random.randbytes(random.randint(1, 16))


def _overwrite(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    word = random.choice(_WORDS)
    data[at : at + len(word)] = word


def _part(data: bytearray, random: Random) -> slice:
    start = random.randrange(len(data) + 1)
    return slice(start, min(len(data), start + random.choice((1, 1, 2, 4, 8, 16, 64, 256))))


def _remove(data: bytearray, random: Random) -> None:
    del data[_part(data, random)]


def _copy(data: bytearray, random: Random) -> None:
    """Bytes from one place put in at another, or over what is there."""
    part = data[_part(data, random)]
    at = random.randrange(len(data) + 1)
    data[at : at + (len(part) if random.random() < 0.5 else 0)] = part


def _cut(data: bytearray, random: Random) -> None:
    if random.random() < 0.3:
        del data[random.randrange(len(data) + 1) :]


_DAMAGES: tuple[Callable[[bytearray, Random], None], ...] = (
    _flip, _flip, _set, _number, _number, _number, _insert, _overwrite, _remove, _copy, _cut,
)  # fmt: skip


def mutate_json(data: bytes, random: Random) -> bytes:
    """The JSON text data with one to three values changed; sometimes, and when it is no JSON, its bytes."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    try:
        holder = [json.loads(data)]
    except (ValueError, RecursionError):
        return mutate_bytes(data, random)
    for _ in range(random.choice((1, 1, 2, 3))):
        _change_value(holder, random)
    return _dump(holder[0])


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """A safetensors file with changes in its header, whose length is right again; as often any bytes change."""
    end = 8 + int.from_bytes(data[:8], "little")
    if random.random() < 0.5 or end > len(data):
        return mutate_bytes(data, random)
    header = mutate_json(data[8:end].rstrip(), random)
    header += b" " * (-(8 + len(header)) % 64)
    return struct.pack("<Q", len(header)) + header + data[end:]


def _change_value(root: Any, random: Random) -> None:
    """One value anywhere below root: replaced, removed, moved, or a little different."""
    places = list(_places(root))
    parent, key = random.choice(places)
    value = parent[key]
    action = random.randrange(8)
    if isinstance(value, str) and value[:1] == "{" and random.random() < 0.8:  # JSON in a string, as in our file
        parent[key] = mutate_json(value.encode("utf-8", "surrogatepass"), random).decode("utf-8", "replace")
    elif action < 3:
        parent[key] = _near(value, random)
    elif action == 3 and parent is not root:
        del parent[key]
    elif action == 4:
        other, place = random.choice(places)
        parent[key] = json.loads(_dump(other[place]))
    elif action == 5 and isinstance(parent, dict):
        parent[random.choice(list(parent)) if random.random() < 0.5 else _near(key, random)] = value
    else:
        parent[key] = copy.deepcopy(random.choice(_VALUES))


def _places(node: Any) -> Any:
    """Every (container, key) below a node."""
    for key in range(len(node)) if isinstance(node, list) else list(node):
        yield node, key
        if isinstance(node[key], (dict, list)):
            yield from _places(node[key])


def _near(value: Any, random: Random) -> Any:
    """A value much like another."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        few = value % 2**64
        return random.choice((value + 1, value - 1, -value, few * 2, few << 32, float(few), str(few)))
    if isinstance(value, float):
        return random.choice((-value, value * 2, value / 2, 1e9 * value, round(value) if abs(value) < 1e9 else 0))
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        text = random.choice([v for v in _VALUES if isinstance(v, str)])
        return random.choice((value[:at] + text + value[at:], value[:at] + value[at + 1 :], value * 2, text))
    if isinstance(value, list):
        return random.choice((value * 2, value[:-1], value[::-1], [value], [*value, None]))
    return random.choice(([value], {"": value}, dict(list(value.items())[:-1]), None))


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
