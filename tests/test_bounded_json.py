"""JSON of others: what is refused, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama2 import bounded_json
from pyllama2.bounded_json import parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.slow
@given(VALUES)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is not valid JSON .Expecting value"),
        (b"{'a': 1}", "is not valid JSON .Expecting property name"),
        (b'"\xff"', "is not valid JSON .'utf-8' codec can't decode byte 0xff"),
        (b"[" * 99_999, "is not valid JSON .too deeply nested"),
        (b"9" * 5000, "is not valid JSON"),
        (b'[{"a": {"b\\n": 1, "c": 2, "b\\n": 3}}]', r"an object has the key 'b\\n' twice"),
        (b"[" + b"0," * 100_000 + b"0]", "has more than 100000 values"),
    ],
)
def test_what_is_refused(text: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        parse_json(text, max_values=100_000)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_a_large_text_must_be_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_json, "_MAX_WIDE_BYTES", 10)
    assert parse_json('"\u00e4bcdefg"'.encode()) == "\u00e4bcdefg"
    assert parse_json(b'"abcdefghi"') == "abcdefghi"
    with pytest.raises(ValueError, match="has 11 bytes, and more than 10 must be ASCII"):
        parse_json('"\u00e4bcdefgh"'.encode())
