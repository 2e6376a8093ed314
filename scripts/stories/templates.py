"""The notation of stories, and what fills it.

A plot is a list of steps, separated by blank lines; each line of a step is one way to tell it, and
"-" is to leave it out. In a line

    [a|b]            one of these; may be nested
    <rule>           one line of a shared rule of openings.py
    {slot}           a word chosen once per story: a slot of the plot, or a character
    {hero.he}        a form of a character: he, him, his, himself, He, His, a, full, call; see cast.py

Sentences get their capital letters and nouns their "an" at the end, so templates need neither; only
a sentence that follows a quotation is written with its capital, since '"Yes!" said Tom.' goes on with
a small letter. Used by story.py and by the plots.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_RULE = re.compile(r"<(\w+)>")
_SENTENCE_START = re.compile(r'(?:^|[.!?] )"?[a-z]')
_A_BEFORE_VOWEL = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])")


@dataclass(frozen=True)
class Plot:
    """One kind of story.

    heroes        whom it can happen to
    text          the steps
    slots         name -> alternatives separated by "|"; both may be tuples, separated by "/", whose
                  parts belong together: {"baby/sound": "kitten/Meow|puppy/Woof"}
    with_friend   whether the friend may be there from the start
    """

    heroes: Literal["children", "animals", "all"]
    text: str
    slots: Mapping[str, str] = field(default_factory=dict)
    with_friend: bool = False

    def steps(self) -> list[list[str]]:
        """The alternatives of each step."""
        return [lines_of(step) for step in self.text.split("\n\n")]


def lines_of(text: str) -> list[str]:
    """The lines of a text that is indented for reading."""
    return [line.strip() for line in text.strip().splitlines()]


class Teller:
    """Fills the templates of one story: the same slots from its beginning to its end."""

    def __init__(self, rng: random.Random, rules: Mapping[str, str], slots: dict[str, object]) -> None:
        self.slots = slots
        self._rng = rng
        self._rules = rules

    def choose_slots(self, slots: Mapping[str, str]) -> None:
        """Add slots, given as Plot.slots."""
        for names, alternatives in slots.items():
            words = self._rng.choice(alternatives.split("|")).split("/")
            for name, word in zip(names.split("/"), words, strict=True):
                self.slots[name] = self.fill(word.strip())

    def fill(self, template: str) -> str:
        """template with every choice made and every slot filled."""
        text, before = template, ""
        while text != before:
            before = text
            text = _RULE.sub(lambda match: self._rng.choice(lines_of(self._rules[match[1]])), text)
            text = _CHOICE.sub(lambda match: self._rng.choice(match[1].split("|")), text)
        return text.format_map(self.slots)

    def sentences(self, template: str) -> str:
        """template as it is to be printed."""
        text = " ".join(self.fill(template).split())
        text = _A_BEFORE_VOWEL.sub(r"\1n ", text)
        return _SENTENCE_START.sub(lambda match: match[0][:-1] + match[0][-1].upper(), text)
