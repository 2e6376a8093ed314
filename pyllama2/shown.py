"""Foreign text in messages, logs and terminals. It becomes short, stays on one line, and cannot control a terminal.

    shown("a\x1b[2J\nb")     a\x1b[2J\nb, with backslashes: names from files, paths, messages of libraries
    shown_value(value)       shown(repr(value)), safe for any object: arguments
    one_line(message)        a whole message
    for_terminal(text)       a model's output: all lines of it, without control characters

What must not be printed is escaped as Python does: control characters (also those above 127, which terminals obey too),
marks that change the direction of text, and lone surrogates, which stand for bytes of file names that are not UTF-8.
"""

from __future__ import annotations

import os
import re
import sys
from reprlib import Repr
from typing import Any

LIMIT = 200
_MESSAGE_LIMIT = 500  # a path may be long, and the reason comes last
_CONTROLS = re.compile(r"\r(?=\n)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_FOR_JSON = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object, limit: int = LIMIT) -> str:
    """Return text on one line of at most about limit characters. text: a string, bytes, a path, an exception."""
    if isinstance(text, os.PathLike):
        text = os.fspath(text)
    if isinstance(text, bytes):
        text = text[: 8 * limit].decode("utf-8", "backslashreplace")
    text = _cut(str(text), limit)
    if text.isprintable():
        return text
    return _cut("".join(char if char.isprintable() else repr(char)[1:-1] for char in text), 2 * limit)


def shown_value(value: object, limit: int = LIMIT) -> str:
    """Return repr(value) on one line of at most about limit characters."""
    if isinstance(value, int) and abs(value) >> 256:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to print very long ones
    brief = Repr()
    brief.maxstring = brief.maxother = limit
    try:
        return shown(brief.repr(value), limit)
    except Exception:  # a foreign class's __repr__ may raise anything
        return f"a {shown(type(value).__name__)}"


def one_line(message: object) -> str:
    """Return a message on one line; line breaks inside are escaped, too. A long one keeps its beginning and end."""
    return shown(str(message).strip(), _MESSAGE_LIMIT)


def for_terminal(text: str, stream: Any = None) -> str:
    """Return text unchanged, or with control characters escaped if stream is a terminal. stream: None is stdout.

    Escape sequences can move the cursor, rename the window, and fill the clipboard.
    """
    if not (sys.stdout if stream is None else stream).isatty():
        return text
    return _CONTROLS.sub(lambda match: "" if match[0] == "\r" else f"\\x{ord(match[0]):02x}", text)


def for_json(text: str) -> str:
    """Return JSON text in which characters that must not reach a terminal are written as \\uXXXX."""
    return _NOT_FOR_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _cut(text: str, limit: int) -> str:
    """text, or the beginning and end of a long one."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end]} ... {text[-end:]}"
