"""Stop strings: end a text at the first of several strings, however the text is cut into chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class StopStrings:
    """Some stop strings, prepared once for any number of texts; to look for one costs the same for many as for few.

    Raises TypeError or ValueError unless stops are strings of at least one character.
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
        """Whether a stop string begins with text and goes on after it."""
        following = bisect_right(self._sorted, text)
        return following < len(self._sorted) and self._sorted[following].startswith(text)


class StopMatcher:
    """Looks for stop strings in a text that arrives in chunks.

    The match is the one that starts earliest in the text; of two that start together, the shorter
    (it is complete first). Text is held back only while it may still become a stop string, and
    what is given out does not depend on the chunks.
    """

    def __init__(self, stops: StopStrings | Sequence[str]) -> None:
        self._stops = stops if isinstance(stops, StopStrings) else StopStrings(stops)
        self._held = ""
        self._found: tuple[int, str] | None = None  # where in it the earliest complete match starts
        self._matched: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is certain by now and the stop string that ended it, None while none did.

        Once a string has matched, everything after it is ignored.
        """
        if self._matched is not None:
            return "", self._matched
        known = len(self._held)
        self._held += text
        self._find(known)
        open_start = self._open_match()
        if self._found is None or open_start < self._found[0]:  # an earlier match may still come about
            certain, self._held = self._held[:open_start], self._held[open_start:]
            if self._found is not None:
                self._found = self._found[0] - open_start, self._found[1]
            return certain, None
        return self._end()

    def flush(self) -> tuple[str, str | None]:
        """At the end of the text: the text held back, and the stop string in it, if there is one."""
        return ("", self._matched) if self._matched is not None else self._end()

    def _end(self) -> tuple[str, str | None]:
        start, stop = (len(self._held), None) if self._found is None else self._found
        certain, self._held, self._matched = self._held[:start], "", stop
        return certain, stop

    def _find(self, known: int) -> None:
        """Look for complete matches that end after the first known characters held."""
        held = self._held
        for length in self._stops.lengths:  # shorter ones first, so that they win a tie
            end = len(held) - length + 1 if self._found is None else min(self._found[0], len(held) - length + 1)
            for start in range(max(0, known - length + 1), end):
                if held[start] in self._stops.first_characters and held[start : start + length] in self._stops.all:
                    self._found = start, held[start : start + length]
                    break

    def _open_match(self) -> int:
        """Start of the longest suffix held that is the beginning of a stop string; the length if none is."""
        length = len(self._held)
        longest = self._stops.lengths[-1] if self._stops.lengths else 0
        for start in range(max(0, length - longest + 1), length):
            if self._held[start] in self._stops.first_characters and self._stops.may_become_one(self._held[start:]):
                return start
        return length
