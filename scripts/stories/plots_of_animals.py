"""Plots whose hero is an animal. Notation: templates.py."""

from __future__ import annotations

from .templates import Plot

RACE = Plot(
    "animals",
    """
    {when}, all the animals met for a big race. {hero} wanted to win.
    {when}, there was a race around the {place}. {hero} had waited for it all year.

    "ready, set, go!" called {helper}. Soon {hero} was the first.
    {helper} rang a bell, and off they went. {hero} ran as fast as the wind.
    -

    then {hero.he} heard a cry. {friend.full} had [tripped over a root|fallen into the mud|hit a stone].
    but what was that? {friend.full} had [fallen|slipped on a wet leaf].

    the others ran on. But {hero} stopped. "Are you hurt?" {hero.he} asked. "Yes, my leg hurts," said {friend}.
    {hero} went back. "Can you walk?" {hero.he} asked. "No," said {friend}.

    "lean on me," said {hero}. Slowly they walked on, side by side.
    {hero} helped {friend} up, and they went on together, step by step.
    -

    they came in last. But when they came, all the animals clapped.
    they were the last of all. {hero} looked down, but everybody cheered.

    "{hero} did not win the race," said {helper}, "but {hero.he} has the biggest heart."
    {helper} gave {hero} a crown of leaves. "This is for the kindest one," said {helper}.
    -

    <friends_ever_after>
    <day_is_over>
    {friend} gave {hero} a kiss, and that was better than any prize.
    """,
    {"place": "lake|forest|meadow|old mill|hill"},
)

WINTER_FOOD = Plot(
    "animals",
    """
    it was fall, and the leaves were red and yellow. {hero} worked all day and put {food} into {hero.his} home.
    the days grew short. {hero} looked for {food} and carried them home, one by one.

    "why do you work so hard?" asked {friend.full}. "Because winter is coming," said {hero}.
    {friend.full} only played and sang. "Winter is far away," {friend.he} said.
    -

    then the snow came. It was cold outside, but {hero} was warm and had enough to eat.
    one morning, everything was white. {hero} sat by the fire and ate some {food}.

    there was a knock at the door. It was {friend}. "I am so cold and hungry," {friend.he} said.
    {hero} heard someone cry outside. {friend} was sitting in the snow.

    {hero} looked at the {food}. Was it enough for two? {hero.he} thought about it.
    "all this work was mine," thought {hero}. But {friend} looked so thin.
    -

    "come in," said {hero}. "We will share." They ate soup and told stories all winter.
    {hero} opened the door. "There is room for two," {hero.he} said. {friend} came in and sang for {hero.him}.

    when spring came, {friend} said, "Next fall I will help you." And {friend.he} did.
    in spring, {friend} helped {hero} every day. "Thank you for the winter," {friend.he} said.
    -

    <friends_ever_after>
    <friends_ever_after>
    it had been the best winter of all.
    """,
    {"food": "nuts|apples|berries|seeds|mushrooms|carrots|pears"},
)

AFRAID = Plot(
    "animals",
    """
    but {hero} was afraid of {fear}. When the others {fun}, {hero.he} stayed at home.
    {hero} had one secret. {hero.he} was afraid of {fear}.

    "come with us!" called {friend.full}. "No, I can't," said {hero}. <felt_sad>
    "are you afraid?" asked {friend.full}. {hero} nodded.

    {when}, {hero.he} heard a cry. {friend} {trouble}! "Help me!" {friend.he} called.
    {when}, {friend} {trouble}. There was nobody else to help.

    {hero} was very afraid. But {friend} needed {hero.him}.
    "I am afraid," thought {hero}, "but I will go."
    -

    {hero} {brave} and pulled {friend} out. Soon they were both safe.
    {hero} {brave} and took {friend} by the hand. Soon they were both safe.

    "you saved me!" said {friend}. "You were so brave!"
    "I thought that you were afraid," said {friend}. "I was," said {hero}, "but you needed me."

    after that, {hero} was not afraid of {fear} any more.
    the next day, {hero} {fun} with all the others.
    -

    <friends_ever_after>
    <day_is_over>
    """,
    {
        "fear/fun/trouble/brave": "deep water/swam in the lake/had fallen into the lake/jumped into the water"
        "|the dark/danced in the moonlight/was caught in a dark cave/ran into the dark cave"
        "|the big hill/climbed the big hill/was stuck on top of the big hill/climbed up step by step"
        "|loud noises/made music/was lost in a loud storm/ran out into the storm"
        "|the old bridge/ran over the old bridge/was stuck in a hole in the old bridge/crawled over the bridge"
    },
)

BIG_NOSE = Plot(
    "animals",
    """
    but {hero} did not like {hero.his} {part}. "Why is it so {bad}?" {hero.he} thought.
    {hero} had a very {bad} {part}. The others sometimes laughed about it. <felt_sad>

    {when}, {hero} hid behind a bush so that nobody would see it.
    {when}, {hero.he} put a big leaf over it. "Now nobody can see it," {hero.he} said.
    -

    a {helper.noun} saw {hero.him}. "Why do you hide?" asked {helper}. "My {part} is too {bad}," said {hero}.
    {hero.his} {elder.kind} asked, "What is the matter?" "I do not like my {part}," said {hero}.

    "one day you will need it just as it is," was the answer.
    "wait and see," was the answer. "Nobody has one like you."
    -

    that night, there was a storm, and {friend.full} did not come home.
    the next day, {friend.full} was lost. Nobody could find {friend.him}.

    "let me help," said {hero}. And because {hero.his} {part} was so {bad}, {hero.he} {use}.
    {hero} ran into the forest. {hero.his} {part} was so {bad} that {hero.he} {use}.

    "you found me!" cried {friend}. "What a wonderful {part} you have!"
    all the animals cheered. "What would we do without your {part}?" they said.
    -

    now {hero} was {glad} about {hero.his} {part}. {hero.he} never hid it again.
    from that day on, nobody laughed about it. And {hero} liked it just as it was.
    """,
    {
        "part/bad/use": "nose/big/could smell {friend} from far away"
        "|tail/long/could let it down into a hole and pull {friend} out"
        "|neck/long/could look over all the trees and see {friend}"
        "|coat/bright/was easy to see, and {friend} came out of the dark"
    },
)

NAP = Plot(
    "animals",
    """
    {when}, {hero} was tired and wanted to sleep. {hero.he} lay down {bed}.
    {when}, {hero} was looking for a good place to sleep. {hero.he} found one {bed}.

    but then {friend.full} came along and began to {noise}. "Please be quiet," said {hero}.
    just as {hero.he} closed {hero.his} eyes, {friend.full} began to {noise}.

    {hero} tried another place. But there, a {helper.noun} was [singing|talking to a bee|chopping wood].
    so {hero} went away and lay down by the pond. But there the frogs were [singing|having a party].
    -

    "will nobody let me sleep?" cried {hero}.
    "this is the loudest day of my life," said {hero}. {hero.he} was tired and a little angry.
    -

    {friend} heard it and was sorry. "I know a quiet place," {friend.he} said.
    {friend} came after {hero.him}. "I am sorry," {friend.he} said.

    {friend} made a soft bed of leaves and sang a quiet song. Soon {hero} was fast asleep.
    {friend} told everyone to be quiet. The whole forest was still, and {hero} slept and slept.

    when {hero} woke up, {hero.he} felt wonderful. "Now let's {noise} together!" {hero.he} said.
    in the evening, {hero} woke up. "Thank you, {friend}," {hero.he} said. "Let's play now!"
    -

    <friends_ever_after>
    <day_is_over>
    """,
    {
        "bed": "under a tree|in the hay|on a warm stone|between the roots of an oak|in the shade of the barn",
        "noise": "play the drum|sing very loudly|practice the trumpet|hammer on a board|jump up and down",
    },
)

PLOTS = (RACE, WINTER_FOOD, AFRAID, BIG_NOSE, NAP)
