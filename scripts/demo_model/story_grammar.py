"""Makes short children's stories from a grammar: the text that the bundled model learns from.

Every sentence was written for this project. A story has a cast: a hero, a friend, a helper, things and places, drawn
from stories/words.txt. The cast goes through the steps of one plot, a file of stories/plots. A step is a choice among
lines. In a line, [a|b] is a choice, {slot} a word of the cast, <name> a phrase of stories/common.txt. In a plot

    $slot: a|b      draws another word for the story
    =               begins a step, whose lines follow; "=?" begins a step that most stories leave out
    @name           is a step of stories/common.txt; "@name?" may be left out
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "stories"
MOST_WORDS = 165
KEPT = 0.3  # probability of an optional step
Template = tuple[object, ...]  # str, Slot, Phrase, and Choice among templates


@dataclass(frozen=True)
class Slot:
    """A word of the cast."""

    name: str


@dataclass(frozen=True)
class Phrase:
    """A phrase of common.txt, chosen anew in each place."""

    name: str


@dataclass(frozen=True)
class Choice:
    """One of several templates."""

    options: tuple[Template, ...]


@dataclass(frozen=True)
class Step:
    """A step of a plot: one of these lines. An optional step may be left out."""

    lines: tuple[Template, ...]
    optional: bool = False


@dataclass
class Plot:
    """The steps of a kind of story, and the words that all steps share."""

    steps: list[Step] = field(default_factory=list)
    words: dict[str, Template] = field(default_factory=dict)


def parse(line: str) -> Template:
    """Parse a line. Raises ValueError if brackets do not match."""
    parts, rest = _sequence(line, line, "")
    if rest:
        raise ValueError(f"unbalanced brackets in {line!r}")
    return parts


def _sequence(text: str, line: str, end: str) -> tuple[Template, str]:
    """Parse text up to one of the characters of end. Returns the template and the rest of the text."""
    parts: list[object] = []
    while text and text[0] not in end:
        if text[0] == "[":
            options = []
            while text[0] != "]":
                option, text = _sequence(text[1:], line, "|]")
                if not text:
                    raise ValueError(f"unbalanced brackets in {line!r}")
                options.append(option)
            parts.append(Choice(tuple(options)))
            text = text[1:]
            continue
        match = re.match(r"\{(\w+)\}|<(\w+)>|[^][{}<>|]+", text)
        if not match:
            raise ValueError(f"unexpected {text[0]!r} in {line!r}")
        slot, phrase = match.groups()
        parts.append(Slot(slot) if slot else Phrase(phrase) if phrase else match[0])
        text = text[match.end() :]
    return tuple(parts), text


def sections(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the "= name" sections of words.txt or common.txt, with their lines."""
    name, lines = "", list[str]()
    for line in path.read_text().splitlines():
        if line.startswith("= "):
            if name:
                yield name, lines
            name, lines = line[2:], []
        elif line.strip() and not line.startswith("#"):
            lines.append(line.strip())
    yield name, lines


@lru_cache(maxsize=1)
def word_lists() -> dict[str, tuple[str, ...]]:
    """Return the word lists of words.txt."""
    return {name: tuple("|".join(lines).split("|")) for name, lines in sections(FOLDER / "words.txt")}


@lru_cache(maxsize=1)
def phrases() -> dict[str, tuple[Template, ...]]:
    """Return the steps and phrases of common.txt."""
    return {name: tuple(map(parse, lines)) for name, lines in sections(FOLDER / "common.txt")}


@lru_cache(maxsize=1)
def plots() -> dict[str, Plot]:
    """Return every plot by the name of its file."""
    return {path.stem: read_plot(path) for path in sorted((FOLDER / "plots").glob("*.txt"))}


def read_plot(path: Path) -> Plot:
    """Read a plot. Raises ValueError if brackets do not match, KeyError for a step that does not exist."""
    plot = Plot()
    lines: list[Template] = []
    optional = False

    def close() -> None:
        if lines:
            plot.steps.append(Step(tuple(lines), optional))
            lines.clear()

    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        if line.startswith("$"):
            name, _, value = line[1:].partition(":")
            plot.words[name] = parse(f"[{value.strip()}]")
        elif line.startswith("@"):
            close()
            plot.steps.append(Step(phrases()[line[1:].rstrip("?")], line.endswith("?")))
        elif line in ("=", "=?"):
            close()
            optional = line == "=?"
        elif not line.startswith("#"):
            lines.append(parse(line))
    close()
    return plot


def expand(template: Template, words: dict[str, str], rng: random.Random) -> str:
    """Make a text of a template. All options of a choice are equally likely."""
    text = []
    for part in template:
        if isinstance(part, Choice):
            text.append(expand(rng.choice(part.options), words, rng))
        elif isinstance(part, Phrase):
            text.append(expand(rng.choice(phrases()[part.name]), words, rng))
        elif isinstance(part, Slot):
            text.append(words[part.name])
        else:
            text.append(str(part))
    return "".join(text)


def articled(text: str) -> str:
    """Put "a" before consonants and "an" before vowels."""
    return re.sub(r"\b([Aa])n? (?=([aeiou]|honest)?)", lambda m: m[1] + ("n " if m[2] else " "), text)


def cast(rng: random.Random) -> dict[str, str]:
    """Draw the words of a story's slots."""
    lists = word_lists()
    words = {name: rng.choice(options) for name, options in lists.items()}
    is_female = rng.random() < 0.5
    words |= _person("", is_female, rng, taken=())
    # One is "he" and the other "she", so that it is always clear who is meant.
    friend = _person("2", not is_female, rng, taken=(words["kind"], words["trait"]))
    words |= {"friend": friend["name"], "a_friend": friend["a_hero"], "friend_named": friend["hero_named"]}
    words |= {"friend_kind": friend["kind"]}
    words |= {"he2": friend["he2"], "him2": friend["him2"], "his2": friend["his2"]}
    parent_is_female = words["parent"] in ("mother", "grandmother", "aunt", "big sister")
    words["he3"], words["him3"], words["his3"] = _pronouns(parent_is_female)
    kinds = (words["kind"], words["friend_kind"], words["parent"])
    helper = rng.choice([kind for kind in lists["helper_kind"] if kind not in kinds])
    words["helper"] = articled(f"a {words['helper_look']} {helper}")
    words["the_helper"], words["bare_helper"] = f"the {words['helper_look']} {helper}", helper
    material = rng.choice(("hard", "soft"))
    thing = rng.choice([thing for thing in lists[f"{material}_thing"] if thing != words["garment"]])
    words["thing"], words["bare_thing"] = f"{words[f'{material}_look']} {thing}", thing
    words["a_thing"] = articled(f"a {words['thing']}")
    words["a_garment"] = articled(f"a {words['garment_look']} {words['garment']}")
    return words


def _pronouns(is_female: bool) -> tuple[str, str, str]:
    return ("she", "her", "her") if is_female else ("he", "him", "his")


def _person(suffix: str, is_female: bool, rng: random.Random, taken: Iterable[str]) -> dict[str, str]:
    """Draw a child or an animal without the taken words: name, kind, pronouns, and how it is introduced."""
    lists = word_lists()

    def draw(name: str) -> str:
        return rng.choice([word for word in lists[name] if word not in taken])

    is_animal = rng.random() < 0.5
    child = "girl" if is_female else "boy"
    kind = draw("animal") if is_animal else draw(f"{child}_person")
    name, trait, size = draw(child), draw("trait"), draw("size")
    other = rng.choice([word for word in lists["trait"] if word != trait])
    garment_look, garment = draw("garment_look"), draw("garment")
    clothes = f"{garment_look} {garment}"
    looks = rng.choice((f"{trait}", f"{size}, {trait}", f"{trait} and {other}", f"{size}"))
    wears = rng.choice((f" with a {clothes}", f" in a {clothes}", "", ""))
    words = {"name": name, "kind": kind, "trait": trait, "garment_look": garment_look, "garment": garment}
    words |= {"a_hero": articled(f"a {looks} {kind}{wears}")}
    words["hero_named"] = articled(f"a {looks} {kind} {rng.choice(('named', 'called'))} {name}{wears}")
    words["title"] = f"{name} the {kind}" if is_animal else articled(f"{name}, a {trait} {kind},")
    he, him, his = _pronouns(is_female)
    return words | {f"he{suffix}": he, f"him{suffix}": him, f"his{suffix}": his, f"himself{suffix}": him + "self"}


def story(rng: random.Random) -> str:
    """Make a story of at most MOST_WORDS words, as one paragraph. All plots are equally likely."""
    plot = plots()[rng.choice(list(plots()))]
    while True:
        text = _story(plot, rng)
        if text.count(" ") < MOST_WORDS:
            return text


def _story(plot: Plot, rng: random.Random) -> str:
    words = cast(rng)
    for name, template in plot.words.items():
        words[name] = expand(template, words, rng)
        words["bare_" + name] = re.sub(r"^(an?|the) ", "", words[name])
        words["the_" + name] = "the " + words["bare_" + name]
    words["The_thing"] = "The " + words["thing"]
    words |= {word[0].upper() + word[1:]: text[0].upper() + text[1:] for word, text in words.items()}
    steps = [step for step in plot.steps if not step.optional or rng.random() < KEPT]
    return articled(" ".join(expand(rng.choice(step.lines), words, rng) for step in steps))


def held_out_stories(count: int, seed: int = 0) -> list[str]:
    """Make stories that are not in the corpus of the same seed."""
    return [story(random.Random(f"{seed} held out {number}")) for number in range(count)]


def training_stories(count: int, seed: int = 0) -> list[str]:
    """Make the first stories of the corpus."""
    return [story(random.Random(f"{seed} training {number}")) for number in range(count)]


if __name__ == "__main__":
    print(*training_stories(5), sep="\n\n")
