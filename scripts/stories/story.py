"""Composes stories: draws a cast, a plot and an opening, and tells them step by step. Used by train_demo_model.py."""

from __future__ import annotations

import random

from .cast import draw_cast
from .openings import ANIMAL_SLOTS, CHILD_SLOTS, COMMON_SLOTS, ONE_HERO, RULES, THAT_DAY, TWO_FRIENDS
from .plots_for_all import PLOTS as PLOTS_FOR_ALL
from .plots_of_animals import PLOTS as PLOTS_OF_ANIMALS
from .plots_of_children import PLOTS as PLOTS_OF_CHILDREN
from .templates import Teller, lines_of

PLOTS = (*PLOTS_FOR_ALL, *PLOTS_OF_CHILDREN, *PLOTS_OF_ANIMALS)


def tell(rng: random.Random) -> list[str]:
    """One story, step by step: each is one or more whole sentences, and joined by spaces they are the text."""
    plot = rng.choice(PLOTS)
    is_child = plot.heroes == "children" or (plot.heroes == "all" and rng.random() < 0.5)
    cast = draw_cast(rng, is_child)
    teller = Teller(rng, RULES, dict(vars(cast)))
    teller.choose_slots(COMMON_SLOTS | (CHILD_SLOTS if is_child else ANIMAL_SLOTS))

    opening, when, night, pal = (
        ONE_HERO,
        "One day|One day|One morning|One afternoon",
        "One night",
        "{hero.his} friend {friend}",
    )
    style = rng.random()
    if plot.with_friend and style < 0.5:
        opening, pal = TWO_FRIENDS, "{friend}"
    elif style > 0.75:
        # The opening tells the time already.
        opening, when, night = THAT_DAY, "That day|Later that day|A little later|Soon", "That night"
    teller.choose_slots({"when": when, "night": night, "pal": pal})
    teller.choose_slots(plot.slots)

    steps = [rng.choice(step) for step in (lines_of(opening), *plot.steps())]
    if rng.random() < 0.1:
        steps.append("The end.")
    return [teller.sentences(step) for step in steps if step != "-"]
