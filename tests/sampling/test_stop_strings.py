"""StopMatcher against its definition: the earliest match in the whole text, however it is cut."""

from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllama2.sampling.stop_strings import StopMatcher


def definition(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the earliest match, and the match; the shorter of two at one place."""
    matches = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not matches:
        return text, None
    start, _, stop = min(matches)
    return text[:start], stop


def run(chunks: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    out = ""
    for chunk in chunks:
        text, stop = matcher.feed(chunk)
        out += text
        if stop is not None:
            return out, stop
    text, stop = matcher.flush()
    return out + text, stop


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


# Few letters, so that overlaps, nested stops and false starts are common.
@settings(deadline=None)
@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(0, 99), max_size=12),
)
def test_any_chunks_give_the_earliest_match(text: str, stops: list[str], places: list[int]) -> None:
    assert run(cut(text, places), stops) == definition(text, stops)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one\nUser: two", ["User:", "\n"], ("one", "\n")),  # the earliest, not the first listed
        ("abcd", ["bc", "abcd"], ("", "abcd")),  # an earlier start wins over an earlier end
        ("abcx", ["bc", "abcd"], ("a", "bc")),
        ("abcd", ["abcd", "abc"], ("", "abc")),  # same start: what is complete first
        ("aab", ["ab"], ("a", "ab")),
        ("STO", ["STOP"], ("STO", None)),  # held back, then given out at the end
        ("", ["x"], ("", None)),
        ("text", [], ("text", None)),
        ("日本語。はい", ["。"], ("日本語", "。")),
    ],
)
def test_cases(text: str, stops: list[str], expected: tuple[str, str | None]) -> None:
    assert run([text], stops) == expected
    assert run(list(text), stops) == expected


def test_only_a_possible_beginning_is_held_back() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.feed("a < b") == ("a < b", None)
    assert matcher.feed(" <en") == (" ", None)
    assert matcher.feed("x") == ("<enx", None)
    assert matcher.feed("<end") == ("", None)
    assert matcher.feed("> more") == ("", "<end>")


def test_nothing_comes_after_the_match() -> None:
    matcher = StopMatcher(["."])
    assert matcher.feed("a.b") == ("a", ".")
    assert matcher.feed("c") == ("", ".")
    assert matcher.flush() == ("", ".")


def test_flush_finds_a_match_that_waited_for_an_earlier_one() -> None:
    matcher = StopMatcher(["bc", "abcd"])
    assert matcher.feed("abc") == ("", None)
    assert matcher.flush() == ("a", "bc")


@pytest.mark.parametrize(("stops", "error"), [([""], ValueError), ("stop", TypeError), ([1], TypeError)])
def test_bad_stops_are_refused(stops: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        StopMatcher(stops)  # type: ignore[arg-type]


def test_many_stop_strings_cost_what_few_do() -> None:
    """Counted in calls, while the text is one that none of them is in, but the beginnings of all of them are."""

    def calls(n_stops: int) -> int:
        matcher = StopMatcher([f"stop {i}" for i in range(n_stops)])
        n_calls = 0

        def count(frame: object, event: str, what: object) -> None:
            nonlocal n_calls
            n_calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for _ in range(20):
                matcher.feed("do not sto")
                matcher.feed("p it")
        finally:
            sys.setprofile(None)
        return n_calls

    assert calls(5000) < 3 * calls(5)  # the numbers are of more lengths
