"""Stop strings: end a text at the first of several strings, however the text is cut into chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class StopStrings:
    """Stop strings, prepared once for any number of texts. Many cost no more time than few.

    Args:
        stops: strings of at least one character.

    Attributes:
        all: the strings.
        lengths: their different lengths, ascending.
        first_characters: the characters that they begin with.

    Raises:
        TypeError: stops is not a sequence of strings.
        ValueError: a string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
            raise TypeError("stop strings must be a sequence of strings")
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self.all = frozenset(stops)
        self.lengths = sorted({len(stop) for stop in stops})
        self.first_characters = frozenset(stop[0] for stop in stops)
        self._sorted = sorted(self.all)

    def may_become_one(self, text: str) -> bool:
        """Whether a stop string begins with text and is longer."""
        following = bisect_right(self._sorted, text)
        return following < len(self._sorted) and self._sorted[following].startswith(text)


class StopMatcher:
    """Looks for stop strings in a text that arrives in chunks.

    The match that starts first in the text counts. Of two that start together, the shorter counts: it is complete
    first. Text is held back only while it may still become a stop string. The result does not depend on the chunks.
    """

    def __init__(self, stops: StopStrings | Sequence[str]) -> None:
        self._stops = stops if isinstance(stops, StopStrings) else StopStrings(stops)
        self._held = ""
        self._earliest: tuple[int, str] | None = None  # start in _held of the earliest complete match, and the string
        self._matched: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """Add text. After a match, everything is ignored.

        Returns:
            The text that is certain by now, and the stop string that ended it, or None.
        """
        if self._matched is not None:
            return "", self._matched
        known = len(self._held)
        self._held += text
        self._find(known)
        open_start = self._open_match()
        if self._earliest is None or open_start < self._earliest[0]:  # an earlier match may still come
            certain, self._held = self._held[:open_start], self._held[open_start:]
            if self._earliest is not None:
                self._earliest = self._earliest[0] - open_start, self._earliest[1]
            return certain, None
        return self._end()

    def flush(self) -> tuple[str, str | None]:
        """End the text. Returns the held text up to a stop string, and that string, or all of it and None."""
        return ("", self._matched) if self._matched is not None else self._end()

    def _end(self) -> tuple[str, str | None]:
        start, stop = (len(self._held), None) if self._earliest is None else self._earliest
        certain, self._held, self._matched = self._held[:start], "", stop
        return certain, stop

    def _find(self, known: int) -> None:
        """Look in the held text for complete matches that end after its first known characters."""
        held = self._held
        for length in self._stops.lengths:  # shorter ones first, so that they win a tie
            end = len(held) - length + 1 if self._earliest is None else min(self._earliest[0], len(held) - length + 1)
            for start in range(max(0, known - length + 1), end):
                if held[start] in self._stops.first_characters and held[start : start + length] in self._stops.all:
                    self._earliest = start, held[start : start + length]
                    break

    def _open_match(self) -> int:
        """Start of the longest suffix of the held text that begins a stop string; its length if there is none."""
        length = len(self._held)
        longest = self._stops.lengths[-1] if self._stops.lengths else 0
        for start in range(max(0, length - longest + 1), length):
            if self._held[start] in self._stops.first_characters and self._stops.may_become_one(self._held[start:]):
                return start
        return length
