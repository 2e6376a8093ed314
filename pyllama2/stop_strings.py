"""Stop strings: end a text at the first of several strings, however the text is cut into chunks.

Used by llama.py, for every sequence with stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Looks for stop strings in a text that arrives in chunks.

    The match is the one that starts earliest in the text; of two that start together, the shorter
    (it is complete first). Text is held back only while it may still become a stop string, and
    what is given out does not depend on the chunks.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises TypeError or ValueError unless stops are strings of at least one character."""
        if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
            raise TypeError("stop strings must be a sequence of strings")
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self._stops = sorted(stops, key=len)
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self._matched: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is certain by now and the stop string that ended it, None while none did.

        Once a string has matched, everything after it is ignored.
        """
        if self._matched is not None:
            return "", self._matched
        self._held += text
        start, stop = self._complete_match()
        open_start = self._open_match()
        if stop is None or open_start < start:  # an earlier match may still come about
            certain, self._held = self._held[:open_start], self._held[open_start:]
            return certain, None
        return self._end_at(start, stop)

    def flush(self) -> tuple[str, str | None]:
        """At the end of the text: the text held back, and the stop string in it, if there is one."""
        if self._matched is not None:
            return "", self._matched
        return self._end_at(*self._complete_match())

    def _end_at(self, start: int, stop: str | None) -> tuple[str, str | None]:
        certain, self._held, self._matched = self._held[:start], "", stop
        return certain, stop

    def _complete_match(self) -> tuple[int, str | None]:
        """Start of the first stop string held and the string; the length and None when there is none."""
        best: tuple[int, str | None] = len(self._held), None
        for stop in self._stops:  # shorter ones first, so that they win a tie
            start = self._held.find(stop, 0, best[0] + len(stop) - 1)
            if start >= 0:
                best = start, stop
        return best

    def _open_match(self) -> int:
        """Start of the longest suffix held that is the beginning of a stop string; the length if none is."""
        length = len(self._held)
        for start in range(max(0, length - self._longest + 1), length):
            suffix = self._held[start:]
            if any(len(stop) > len(suffix) and stop.startswith(suffix) for stop in self._stops):
                return start
        return length
