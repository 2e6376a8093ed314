"""Text of others stays on one line, short, and steers no terminal."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllama2 import CheckpointError, Pyllama2Error
from pyllama2.shown import LIMIT, for_json, for_terminal, one_line, shown, shown_value

TEXTS = st.text(st.characters(), max_size=400)  # lone surrogates included


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(TEXTS)
def test_nothing_is_left_to_obey(text: str) -> None:
    for safe in (shown(text), one_line(text), shown_value(text), str(Pyllama2Error(text))):
        assert safe.isprintable() and len(safe) <= 1100
        safe.encode()
    if text.isprintable() and len(text) <= LIMIT:
        assert shown(text) == text


@given(TEXTS)
def test_messages_that_are_safe_stay_as_they_are(text: str) -> None:
    assert one_line(one_line(text)) == one_line(text) or len(one_line(text)) > 400


def test_spelling() -> None:
    assert shown("a\x1b[2J\tb\n\u202e\x9b\udcff\u2028\x7f") == r"a\x1b[2J\tb\n\u202e\x9b\udcff\u2028\x7f"
    assert shown("h\u00e9 \u72d0 \U0001f98a ~\\") == "h\u00e9 \u72d0 \U0001f98a ~\\"
    assert shown(b"a\xff\x1b") == r"a\xff\x1b" and shown(Path("a\x1bb")) == r"a\x1bb"
    assert shown(ValueError("a\rb")) == r"a\rb"
    assert one_line("a path\nof two lines\r\nand \x1b[m\n") == r"a path\nof two lines\r\nand \x1b[m"


@pytest.mark.slow
def test_long_texts_keep_both_ends() -> None:
    for text in ("begin" + "x" * 5_000_000 + "end", "begin" + "\x1b" * 5_000_000 + "end"):
        for safe in (shown(text), one_line(text)):
            assert len(safe) < 1100 and safe.startswith("begin") and safe.endswith("end")
    assert str(CheckpointError("/long/" * 700 + ": the reason")).endswith(": the reason")


def test_values_of_any_kind() -> None:
    class Evil:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown_value(2**70) == str(2**70) and shown_value("2") == "'2'" and shown_value(True) == "True"
    assert shown_value(10**5000) == "an integer of 16610 bits"  # which str() refuses
    assert "Evil" in shown_value(Evil())
    for value in ([0] * 10**6, "x" * 10**6, b"\x1b" * 10**6, {i: i for i in range(10**5)}, np.zeros((99, 99)), Evil):
        assert len(shown_value(value)) < 3 * LIMIT and shown_value(value).isprintable()


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("a\x1b")))
    assert isinstance(error, CheckpointError) and str(error) == r"a\x1b"


def test_a_terminal_gets_words_and_lines_only() -> None:
    text = "\u00e9\x1b]52;c;QQ==\x07\r\nb\tc\x9b2J\x00\r\u202e"
    assert for_terminal(text, Terminal()) == "\u00e9\\x1b]52;c;QQ==\\x07\nb\tc\\x9b2J\\x00\u202e"
    assert for_terminal(text, io.StringIO()) == text


@pytest.mark.parametrize("text", ["\x1b\x9b\x7f\u202e\u2066\n\u00e9", "\udcff", '"\\'])
def test_json_says_the_same(text: str) -> None:
    safe = for_json(json.dumps(text, ensure_ascii=False))
    assert safe.isprintable() and json.loads(safe) == text
