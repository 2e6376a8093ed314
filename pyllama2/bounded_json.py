"""JSON from files of others: strict, and within bounded time and memory."""

from __future__ import annotations

import json
from typing import Any

from .shown import shown_value

# Parsed JSON takes more memory than its text: up to 100 times for many small values, four times for a text with
# characters beyond ASCII. These limits keep it within some 300 MB for a text of 100 MB.
MAX_VALUES = 500_000
_MAX_WIDE_BYTES = 25_000_000


def parse_json(text: bytes, max_values: int = MAX_VALUES) -> Any:
    """Parse JSON.

    Args:
        text: UTF-8.
        max_values: the most values that it may have.

    Returns:
        Dicts, lists, strings, numbers, booleans and None.

    Raises:
        ValueError: text is not JSON, an object has a key twice, or a limit is exceeded. The message goes on where a
            sentence began with the name of the text: "is not valid JSON (...)", "has more than 500000 values".
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > max_values:
        raise ValueError(f"has more than {max_values} values")
    if len(text) > _MAX_WIDE_BYTES and not text.isascii():
        raise ValueError(f"has {len(text)} bytes, and more than {_MAX_WIDE_BYTES} must be ASCII")
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        reason = "too deeply nested"
    except ValueError as error:  # UnicodeDecodeError is one
        reason = str(error)
    raise ValueError(f"is not valid JSON ({reason})")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {shown_value(repeated, 80)} twice")
    return values
