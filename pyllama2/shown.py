"""Text of others in what people read: messages, logs, terminals. It stays on one line, short, and steers nothing.

    shown("a\x1b[2J\nb")     a\x1b[2J\nb, with backslashes: names out of files, paths, what a library says
    shown_value(value)       the same of repr(value), whatever that is: arguments
    one_line(message)        a whole message, made of such parts or not
    for_terminal(text)       a model's words: every line of them, without control characters

What is not to be printed is spelled as Python does: control characters, also those above 127, which terminals obey too;
marks that turn the direction of text; lone surrogates, which stand for the bytes of file names that are not UTF-8.
"""

from __future__ import annotations

import os
import re
import sys
from reprlib import Repr
from typing import Any

LIMIT = 200
_MESSAGE_LIMIT = 500  # a path may be long, and the reason stands at the end
_LINE_BREAKS = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")
_CONTROLS = re.compile(r"\r(?=\n)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NOT_FOR_JSON = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object, limit: int = LIMIT) -> str:
    """text on one line of about limit characters at most: a string, bytes, a path, an exception."""
    if isinstance(text, os.PathLike):
        text = os.fspath(text)
    if isinstance(text, bytes):
        text = text[: 8 * limit].decode("utf-8", "backslashreplace")
    text = _cut(str(text), limit)
    if text.isprintable():
        return text
    return _cut("".join(char if char.isprintable() else repr(char)[1:-1] for char in text), 2 * limit)


def shown_value(value: object, limit: int = LIMIT) -> str:
    """How Python writes a value, on one line of about limit characters at most."""
    if isinstance(value, int) and abs(value) >> 256:
        return f"an integer of {value.bit_length()} bits"  # Python does not write very long ones
    brief = Repr()
    brief.maxstring = brief.maxother = limit
    try:
        return shown(brief.repr(value), limit)
    except Exception:  # whatever the __repr__ of a stranger's class does
        return f"a {shown(type(value).__name__)}"


def one_line(message: object) -> str:
    """A message on one line; of a very long one the beginning and the end."""
    return shown(_LINE_BREAKS.sub(" ", str(message)).strip(), _MESSAGE_LIMIT)


def for_terminal(text: str, stream: Any = None) -> str:
    """text as it is, unless stream (None: stdout) is a terminal: there, without what would steer it.

    Escape sequences move the cursor, rename the window, and fill the clipboard.
    """
    if not (sys.stdout if stream is None else stream).isatty():
        return text
    return _CONTROLS.sub(lambda found: "" if found[0] == "\r" else f"\\x{ord(found[0]):02x}", text)


def for_json(text: str) -> str:
    """JSON in which what must not get to a terminal is written as \\uXXXX."""
    return _NOT_FOR_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _cut(text: str, limit: int) -> str:
    """text, or its beginning and end."""
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end]} ... {text[-end:]}"
