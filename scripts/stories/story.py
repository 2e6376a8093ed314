"""Composes stories: draws a plot, a cast and an opening, and tells them step by step. Used by train_demo_model.py."""

from __future__ import annotations

import random

from .cast import draw_cast
from .openings import ANIMAL_SLOTS, CHILD_SLOTS, COMMON_SLOTS, ONE_HERO, RULES, THAT_DAY, TWO_FRIENDS
from .plots_for_all import PLOTS as PLOTS_FOR_ALL
from .plots_of_animals import PLOTS as PLOTS_OF_ANIMALS
from .plots_of_children import PLOTS as PLOTS_OF_CHILDREN
from .templates import Plot, Teller, lines_of

PLOTS = (*PLOTS_FOR_ALL, *PLOTS_OF_CHILDREN, *PLOTS_OF_ANIMALS)
MAX_WORDS = 125


def tell(rng: random.Random) -> list[str]:
    """One story, step by step: each is one or more whole sentences, and joined by spaces they are the text."""
    plot = rng.choice(PLOTS)
    is_child = plot.heroes == "children" or (plot.heroes == "all" and rng.random() < 0.5)
    teller = Teller(rng, RULES, dict(vars(draw_cast(rng, is_child))))
    teller.choose_slots(COMMON_SLOTS | (CHILD_SLOTS if is_child else ANIMAL_SLOTS))
    opening = _choose_opening(rng, plot, teller)
    teller.choose_slots(plot.slots)
    while True:
        steps = [teller.sentences(rng.choice(lines)) for lines in (lines_of(opening), *plot.steps())]
        if rng.random() < 0.1:
            steps.append("The end.")
        if sum(len(step.split()) for step in steps) <= MAX_WORDS:
            return [step for step in steps if step != "-"]


def _choose_opening(rng: random.Random, plot: Plot, teller: Teller) -> str:
    """The lines to begin with; fills the slots of what they tell already: the time, and who the friend is."""
    when, night = "One day|One day|One morning|One afternoon", "One night"
    pal = "{hero.his} friend {friend}"
    opening, style = ONE_HERO, rng.random()
    if style < 0.25:
        opening, when, night = THAT_DAY, "That day|Later that day|A little later|Soon", "That night"
    elif plot.with_friend and style < 0.65:
        opening, pal = TWO_FRIENDS, "{friend}"
    teller.choose_slots({"when": when, "night": night, "pal": pal})
    return opening
