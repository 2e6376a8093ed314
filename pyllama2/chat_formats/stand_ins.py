"""What the names of special tokens are replaced by in a chat template's own text, and found again by.

A stand-in is 128 random bits in characters that no message holds, lone surrogates, and that upper,
trim, striptags and the like leave as they are. They are low surrogates, since JSON would make one
character of a high one and a low one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# A stand-in, or how JSON in ASCII and Python's repr() spell it.
_STAND_IN = re.compile("(\udfff[\udc00-\udcff]{16}" r"|\\udfff(?:\\udc[0-9a-f]{2}){16})")
_SURROGATES = re.compile("[\ud800-\udfff]+")


class StandIns:
    """Stand-ins for names, drawn anew for every object: by_name["<|im_end|>"]."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.by_name = {name: _draw() for name in names if name}
        self._names = {stand_in: name for name, stand_in in self.by_name.items()}
        self._names |= {_spelled(stand_in): name for stand_in, name in self._names.items()}

    def split(self, text: str) -> list[str]:
        """Texts and names in turn, a text first and last; where two names follow each other there is an empty text.

        Pieces of stand-ins, left where a template took one apart, are left out.
        """
        parts = [""]
        for part in _STAND_IN.split(text):
            if part in self._names:
                parts += [self._names[part], ""]
            else:
                parts[-1] += _SURROGATES.sub("", part)
        return parts


def _draw() -> str:
    return "\udfff" + "".join(chr(0xDC00 + byte) for byte in os.urandom(16))


def _spelled(stand_in: str) -> str:
    return stand_in.encode("ascii", "backslashreplace").decode()
