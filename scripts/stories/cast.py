"""The characters of a story. Templates take names and pronouns from here; used by story.py."""

from __future__ import annotations

import random
from dataclasses import dataclass

_GIRLS = "Lily Anna Mia Rosa Emma Nora Lucy Clara Ella Ruby Zoe Sara Maya Amy Kate Grace"
_BOYS = "Tom Ben Max Leo Sam Finn Jack Theo Hugo Noah Tim Paul Adam Peter Felix Oscar"
_SHE_ANIMALS = "Bella Daisy Luna Poppy Lulu Rosie Molly Pepper Coco Honey"
_HE_ANIMALS = "Bruno Rex Milo Otto Benny Toby Rusty Teddy Pip Charlie"

# Put together, these make some hundreds of further names: the model must copy names, not know them.
_NAME_STARTS = "Al Bel Bor Dan El Fal Gan Han Il Jor Lin Mar Nel Ol Pal Quin Ron Sel Tam Ul Vin Wil Yar Zel"
_GIRL_ENDS = "a ia ina etta ora issa una ela"
_BOY_ENDS = "o en in us ard on bert ek ian"

_SPECIES = (
    "dog cat rabbit bear fox mouse duck bird frog hedgehog squirrel owl pony lamb turtle elephant lion "
    "monkey penguin pig goat donkey dragon kitten puppy"
)
_ANIMAL_SIZES = "little little little small young brown gray white"
_CHILD_SIZES = ("little", "little", "young", "")

_ELDERS = (
    ("mother", "Mom", True),
    ("mother", "Mom", True),
    ("father", "Dad", False),
    ("father", "Dad", False),
    ("grandmother", "Grandma", True),
    ("grandfather", "Grandpa", False),
)
_ANIMAL_HELPERS = (
    ("wise", "owl"), ("old", "turtle"), ("old", "goat"), ("friendly", "bear"), ("big", "deer"), ("gentle", "horse"),
    ("clever", "fox"), ("old", "badger"), ("gray", "goose"), ("big", "dog"), ("white", "swan"), ("black", "crow"),
)  # fmt: skip
_HUMAN_HELPERS = (
    ("old", "gardener"), ("kind", "baker"), ("friendly", "farmer"), ("young", "teacher"), ("old", "shepherd"),
    ("kind", "neighbor"), ("cheerful", "painter"), ("tall", "miller"), ("old", "fisher"), ("friendly", "clown"),
)  # fmt: skip


@dataclass(frozen=True)
class Character:
    """Someone in a story.

    name       "Lily"; None for the unnamed, who are called "the little fox"
    kind       "girl", "boy", the species, or what an elder is to the hero: "mother"
    size       an adjective, part of what the unnamed are called; may be empty
    is_female  which pronouns
    """

    name: str | None
    kind: str
    size: str
    is_female: bool

    def __str__(self) -> str:
        return self.name or f"the {self.call}"

    @property
    def call(self) -> str:
        """How others address the character: Lily, little fox."""
        return self.name or f"{self.size} {self.kind}".strip()

    @property
    def noun(self) -> str:
        """What the character is, to be put after an adjective: little girl named Lily, wise owl."""
        named = f" named {self.name}" if self.name else ""
        return f"{self.size} {self.kind}{named}".strip()

    @property
    def full(self) -> str:
        """The name, with the species of an animal: Pip the mouse."""
        if self.name and self.kind not in ("girl", "boy"):
            return f"{self.name} the {self.kind}"
        return str(self)

    @property
    def he(self) -> str:
        """He or she, in lower case."""
        return "she" if self.is_female else "he"

    @property
    def him(self) -> str:
        """Him or her."""
        return "her" if self.is_female else "him"

    @property
    def his(self) -> str:
        """His or her, before a noun."""
        return "her" if self.is_female else "his"

    @property
    def He(self) -> str:
        """He or She."""
        return self.he.capitalize()

    @property
    def His(self) -> str:
        """His or Her."""
        return self.his.capitalize()

    @property
    def himself(self) -> str:
        """Himself or herself."""
        return self.him + "self"


@dataclass(frozen=True)
class Cast:
    """The characters of one story.

    helper has no name. elder is a parent or grandparent of the hero, to be used as "{hero.his}
    {elder.kind}"; address is what the hero calls that person: "Mom".
    """

    hero: Character
    friend: Character
    helper: Character
    elder: Character
    address: str


def draw_cast(rng: random.Random, hero_is_child: bool) -> Cast:
    """Characters for a story about a child, or about an animal."""
    hero = _child(rng) if hero_is_child else _animal(rng, is_named=rng.random() < 0.6)
    friend = hero
    while friend.name == hero.name or (not hero_is_child and friend.kind == hero.kind):
        friend = _child(rng) if hero_is_child else _animal(rng, is_named=True)
    size, kind = rng.choice(_ANIMAL_HELPERS + _HUMAN_HELPERS if hero_is_child else _ANIMAL_HELPERS)
    while kind in (hero.kind, friend.kind):
        size, kind = rng.choice(_ANIMAL_HELPERS)
    elder, address, is_female = rng.choice(_ELDERS)
    return Cast(
        hero,
        friend,
        Character(None, kind, size, rng.random() < 0.5),
        Character(None, elder, "", is_female),
        address,
    )


def _child(rng: random.Random) -> Character:
    is_girl = rng.random() < 0.5
    if rng.random() < 0.1:
        name = _pick(rng, _NAME_STARTS) + _pick(rng, _GIRL_ENDS if is_girl else _BOY_ENDS)
    else:
        name = _pick(rng, _GIRLS if is_girl else _BOYS)
    return Character(name, "girl" if is_girl else "boy", rng.choice(_CHILD_SIZES), is_girl)


def _animal(rng: random.Random, *, is_named: bool) -> Character:
    is_female = rng.random() < 0.5
    name = _pick(rng, _SHE_ANIMALS if is_female else _HE_ANIMALS) if is_named else None
    return Character(name, _pick(rng, _SPECIES), _pick(rng, _ANIMAL_SIZES), is_female)


def _pick(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())
