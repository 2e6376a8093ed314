"""Stand-ins: strings that replace the names of special tokens in a chat template's own text.

They mark, in the rendered text, the names that the template wrote. A stand-in is 128 random bits, written in lone
surrogates. No message contains these, and filters such as upper, trim and striptags do not change them. All are low
surrogates, because JSON would join a high one and a low one to one character.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# A stand-in as it is, or as ASCII JSON and Python's repr() escape it.
_STAND_IN = re.compile("(\udfff[\udc00-\udcff]{16}" r"|\\udfff(?:\\udc[0-9a-f]{2}){16})")
_SURROGATES = re.compile("[\ud800-\udfff]+")


class StandIns:
    """Random stand-ins for some names, different for every object.

    Attributes:
        by_name: the stand-in of each name: by_name["<|im_end|>"].
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Draw a stand-in for each name; empty names are skipped."""
        self.by_name = {name: _draw() for name in names if name}
        self._names = {stand_in: name for name, stand_in in self.by_name.items()}
        self._names |= {_escaped(stand_in): name for stand_in, name in self._names.items()}

    def split(self, text: str) -> list[str]:
        """Split a rendered text at the stand-ins.

        Fragments of stand-ins, which a template may leave when it cuts a string, are removed.

        Returns:
            Texts and names in turn. The first and last part are texts. Texts may be empty.
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


def _escaped(stand_in: str) -> str:
    return stand_in.encode("ascii", "backslashreplace").decode()
