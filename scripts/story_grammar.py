"""Short children's stories out of a grammar: the text that the bundled demo model learns from.

Every sentence here was written for this project. A story is a hero, a place and one of several plots; a plot is a list
of steps, a step a choice among paraphrases, and {slots} are filled from the hero and his things. Used by
train_demo_model.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

GIRLS = ("Lily", "Anna", "Mia", "Emma", "Nora", "Lucy")
BOYS = ("Tom", "Ben", "Max", "Leo", "Sam", "Finn")
ANIMALS = ("rabbit", "fox", "bear", "mouse", "duck", "frog", "kitten", "puppy")
TRAITS = ("little", "kind", "brave", "shy", "curious", "clever", "cheerful", "quiet", "friendly", "gentle")
FEELINGS = ("happy", "glad", "proud", "cheerful")
SAD = ("sad", "worried", "upset")
WEATHER = (
    "The sun was shining.", "It was a warm day.", "The sky was blue.", "It was a cold morning.",
    "A soft wind was blowing.", "Birds were singing in the trees.", "There were white clouds in the sky.",
)  # fmt: skip
PLACES = {
    "in a small house near the forest": "the forest", "in a village by the sea": "the beach",
    "on a farm with green fields": "the meadow", "in a town with a big park": "the park",
    "next to a blue lake": "the lake", "at the foot of a tall hill": "the hill", "near an old garden": "the garden",
}  # fmt: skip
THINGS = ("red ball", "blue kite", "yellow hat", "toy boat", "little drum", "silver bell")
FOODS = ("cake", "bread", "soup", "honey")
HELPERS = (
    "an old turtle", "a wise owl", "a friendly bird", "a big dog", "a small mouse", "a white goat", "a tall girl",
    "an old man", "a kind woman", "a busy bee",
)  # fmt: skip
ENDINGS = (
    "From that day on, they were best friends.", "{Name} slept very well that night.", "It was the best day of all.",
     "And {name} never forgot that day.",
     "They all laughed and went home together.",
     "{Name} smiled the whole way home.",
    "And they lived happily ever after.", "That night, {name} told {their} mother all about it.",
    "{Name} was {happy}, and so was everyone else.", "After that, they played together every day.",
)  # fmt: skip


@dataclass
class Cast:
    """Who and what a story is about, as the words that fill its slots."""

    words: dict[str, str]

    @classmethod
    def draw(cls, rng: random.Random) -> Cast:
        """A hero with a home, a thing, a friend and a helper."""
        words: dict[str, str] = {}
        is_girl = rng.random() < 0.5
        if rng.random() < 0.65:
            words["name"] = rng.choice(GIRLS if is_girl else BOYS)
            words["kind"] = "girl" if is_girl else "boy"
        else:
            words["kind"] = rng.choice(ANIMALS)
            words["name"] = rng.choice(GIRLS if is_girl else BOYS)
        words["they"], words["them"], words["their"] = ("she", "her", "her") if is_girl else ("he", "him", "his")
        words["trait"] = rng.choice(TRAITS)
        words["home"], words["place"] = rng.choice(list(PLACES.items()))
        words["thing"] = rng.choice(THINGS)
        words["food"] = rng.choice(FOODS)
        friend_is_girl = rng.random() < 0.5
        friends = [n for n in (GIRLS if friend_is_girl else BOYS) if n != words["name"]]
        words["friend"] = rng.choice(friends)
        words["friend_they"] = "she" if friend_is_girl else "he"
        words["helper"] = rng.choice(HELPERS)
        words["the_helper"] = "the " + words["helper"].split(" ", 1)[1]
        words["happy"], words["sad"] = rng.choice(FEELINGS), rng.choice(SAD)
        words["weather"] = rng.choice(WEATHER)
        article = "an" if words["trait"][0] in "aeiou" else "a"
        words["a_hero"] = f"{article} {words['trait']} {words['kind']}"
        for slot in ("name", "they", "their", "the_helper", "helper", "friend", "friend_they"):
            words[slot[0].upper() + slot[1:]] = words[slot][0].upper() + words[slot][1:]
        return cls(words)


OPENINGS = (
    "Once upon a time, there was {a_hero} named {name}. {Name} lived {home}.",
    "Once upon a time, {a_hero} named {name} lived {home}.",
    "Once upon a time there was {a_hero}. {Their} name was {name}, and {they} lived {home}.",
    "There once was {a_hero} called {name} who lived {home}.",
    "{Name} was {a_hero} who lived {home}.",
    "A long time ago, {a_hero} named {name} lived {home}.",
)
LOVES = (
    "{They} loved to play near {place}.", "{They} liked to walk to {place} and look at the flowers.",
    "Every day, {they} went to {place} with {friend}.", "{Name} had a {thing} that {they} loved very much.",
    "{They} had a good friend named {friend}.", "In the evening, {they} liked to eat {food}.",
)  # fmt: skip

LOST = (
    ("One day, {name} took {their} {thing} to {place}.", "One morning, {name} went to {place} with {their} {thing}.",
     "One sunny day, {name} played with {their} {thing} near {place}."),
    ("{weather}",),
    ("{They} played and played. Then {they} looked around, and the {thing} was gone.",
     "{They} fell asleep under a tree. When {they} woke up, the {thing} was gone.",
     "Suddenly, a strong wind came and took the {thing} away."),
    ("{Name} was very {sad}. \"Where is my {thing}?\" {they} said.", "\"Oh no! My {thing}!\" cried {name}.",
     "{Name} looked here and there, but {they} could not find it. {They} was {sad}."),
    ("Then {helper} came by. \"Why are you so {sad}?\" asked {the_helper}.",
     "{Helper} heard {them} and came closer. \"What is wrong?\" asked {the_helper}."),
    ("\"I lost my {thing},\" said {name}. \"I will help you,\" said {the_helper}.",
     "{Name} told {the_helper} about the {thing}. \"Let us look for it together,\" said {the_helper}."),
    ("They looked behind every stone. At last, they found it under a bush.",
     "They looked up, and there it was, high in a tree. {The_helper} got it down.",
     "They walked to the water, and there was the {thing}!"),
    ("\"Thank you!\" said {name} and gave {the_helper} a big hug.",
     "\"Thank you so much,\" said {name}. \"You are a good friend.\"",
     "{Name} was so {happy} that {they} shared {their} {food} with {the_helper}."),
)  # fmt: skip
SHARE = (
    ("One day, {their} mother baked some {food}.", "One day, {name} made some {food} for lunch."),
    ("\"May I have some?\" asked {friend}.", "{Friend} came to the door. \"That smells so good,\" {friend_they} said."),
    ("{Name} wanted to keep it all. \"No, it is mine,\" {they} said.",
     "But {name} did not want to share. \"It is all for me,\" {they} said."),
    ("{Friend} was {sad} and went away.", "{Friend} said nothing and walked home alone."),
    ("{Name} ate alone, but the {food} did not taste so good.",
     "{Name} sat down to eat. It was very quiet in the house."),
    ("\"I was not nice to {friend},\" {name} thought.", "Then {name} thought about {their} friend and felt {sad}."),
    ("So {they} took the {food} and ran to {friend}.", "{They} put the {food} in a basket and went to find {friend}."),
    ("\"I am sorry,\" {they} said. \"Let us eat together.\"",
     "\"I am sorry, {friend}. Please have some,\" said {name}."),
    ("They sat down near {place} and ate. Now the {food} tasted very good.",
     "{Friend} smiled. They ate it all up, and it was very good."),
    ("{Name} learned that it is better to share.", "\"Sharing is more fun,\" said {name}."),
)  # fmt: skip
AFRAID = (
    ("{Name} had one problem. {They} was afraid of the dark.", "But {name} was afraid of the dark."),
    ("One night, {they} heard a sound outside. \"Who is there?\" {they} asked.",
     "One evening, {they} was near {place} when the sun went down."),
    ("It was very dark, and {name} could not see the way.", "Everything was dark, and {name} began to cry."),
    ("Then a small light came through the trees.", "Suddenly, {they} saw a little light."),
    ("It was {helper} with a lamp. \"Do not be afraid,\" said {the_helper}. \"I am here.\"",
     "\"Do not cry,\" said a soft voice. It was {helper}."),
    ("\"Look up,\" said {the_helper}. {Name} looked up and saw a thousand stars.",
     "{The_helper} showed {them} the moon and the stars."),
    ("\"How beautiful!\" said {name}. \"I could not see them in the day.\"",
     "{Name} had never seen anything so beautiful."),
    ("They walked home together under the stars.", "{The_helper} took {them} home."),
    ("After that, {name} was not afraid anymore.", "Now {name} was not afraid of the dark anymore."),
)  # fmt: skip
RESCUE = (
    ("One day, {name} was walking to {place}. {weather}",
     "One day, {they} went to {place} to pick some flowers. {weather}"),
    ("{They} heard a small voice. \"Help! Help!\"", "Suddenly, {they} heard someone cry for help."),
    ("It was {helper}. {The_helper} had fallen into a hole.",
     "It was {helper}, who was stuck in the mud.",
     "There was {helper} in the water."),
    ("\"Do not worry,\" said {name}. \"I will get you out.\"", "\"I am coming!\" called {name}."),
    ("{Name} found a long stick and held it out.",
     "{They} ran home and came back with a rope.",
     "{They} called {friend}, and they pulled together."),
    ("They pulled and pulled, and at last {the_helper} was free.",
     "It was hard work, but {they} did not give up. Soon {the_helper} was safe."),
    ("\"You saved me,\" said {the_helper}. \"Thank you!\"", "\"You are so brave,\" said {the_helper}."),
    ("{The_helper} gave {name} a {thing} to say thank you.", "As a gift, {name} got a {thing}."),
)  # fmt: skip
BUILD = (
    ("One day, {name} said to {friend}, \"Let us build a little house near {place}!\"",
     "One morning, {name} and {friend} wanted to build a little house.",
     "One day, {name} had an idea. \"Let us build a little house,\" {they} said to {friend}."),
    ("First, they looked for wood. Then they looked for nails.",
     "They needed wood and nails, and they worked all day."),
    ("But in the night, it rained, and the house fell down.",
     "But when it was done, the house fell down with a loud crash."),
    ("{Friend} was {sad}. \"It is too hard,\" {friend_they} said.", "\"We can not do it,\" said {friend}."),
    ("\"Let us try again,\" said {name}. \"We can do it.\"",
     "But {name} did not give up. \"We will try again tomorrow,\" {they} said."),
    ("{Helper} saw them and showed them how to do it.", "They asked {helper} for help, and {the_helper} said yes."),
    ("They worked together, and this time it was strong.",
     "This time they were slow and careful, and it did not fall down."),
    ("Everyone came to see it. \"Well done!\" they said.", "{Name} and {friend} were very proud."),
)  # fmt: skip
GIFT = (
    ("Tomorrow was {friend}'s birthday, and {name} had no gift.",
     "It was {friend}'s birthday. {Name} wanted to give {friend} a {thing}."),
    ("{Name} had no money. {They} was {sad}.", "But the {thing} in the shop cost too much."),
    ("Then {they} had an idea. {They} would make something.",
     "\"What can I do?\" {they} asked {helper}. \"Make something,\" said {the_helper}."),
    ("{Name} painted a picture of {place} with all the flowers in it.",
     "{Name} worked all night and made a {thing} out of wood."),
    ("The next day, {name} was shy. \"It is only a small gift,\" {they} said.",
     "At the party, {name} gave it to {friend}."),
    ("{Friend} opened it and smiled. \"It is beautiful!\" {friend_they} said.",
     "\"Did you make this for me?\" asked {friend}. \"I love it!\""),
    ("Then they ate {food} and danced.", "They all ate {food} and sang songs."),
)  # fmt: skip
PLOTS = (LOST, SHARE, AFRAID, RESCUE, BUILD, GIFT)


def story(rng: random.Random) -> str:
    """One story of 60 to 170 words."""
    cast = Cast.draw(rng)
    steps = [(rng.choice(OPENINGS),)]
    loves = rng.sample(LOVES, rng.choice((1, 1, 2)))
    steps += [(love,) for love in loves]
    steps += rng.choice(PLOTS)
    ending = rng.choice(ENDINGS)
    sentences = [rng.choice(step).format_map(cast.words) for step in steps]
    return " ".join([*sentences, ending.format_map(cast.words)])


if __name__ == "__main__":
    for seed in range(5):
        print(story(random.Random(seed)), end="\n\n")
