"""Plots whose hero is a child. Notation: templates.py."""

from __future__ import annotations

from .templates import Plot

LOST_BABY = Plot(
    "children",
    """
    {when}, {hero} was walking home when {hero.he} heard a small sound. "{sound}! {sound}!"
    {when}, {hero} was playing outside. "{sound}! {sound}!" said someone in the grass.
    {when}, {hero} heard a tiny voice behind a bush. "{sound}!" it said.

    it was a {baby}. It was [all alone|wet and cold|lost and afraid].
    there was a tiny {baby}, and it was [all alone|wet and cold|lost and afraid].

    "where is your mother, little {baby}?" asked {hero}. But the {baby} only said, "{sound}."
    "are you lost?" asked {hero}. "{sound}," said the {baby} sadly.
    -

    {hero} picked it up [gently|carefully]. "Let's find your mother," {hero.he} said.
    {hero} put the {baby} into {hero.his} warm hat. "<comfort>," {hero.he} said. "We will find your mother."

    first {hero} looked in the barn, but nobody was there. Then {hero.he} looked by the pond.
    "have you seen a {parent}?" {hero} asked a {helper.noun}. "Yes, by the big gate," said {helper}.
    {hero} walked from house to house and asked everyone. But nobody had seen a {parent}.

    <at_last>, {hero} saw a {parent} by the gate. When she saw the {baby}, she ran to it as fast as she could.
    and there was the mother {parent}! She was looking for her baby everywhere.
    "{sound}!" called the {baby}. A big {parent} came out of the grass. It was the mother!

    the {baby} was safe [and warm|again]. {hero} was {glad}.
    the {parent} looked at {hero} as if she wanted to say thank you.
    the {baby} jumped for joy. "Goodbye, little {baby}," said {hero}.
    -

    every day after that, {hero} went to see the {baby}.
    <day_is_over>
    <day_is_over>
    -
    """,
    {
        "baby/parent/sound": "kitten/cat/Meow|puppy/dog/Woof|duckling/duck/Quack|lamb/sheep/Baa|chick/hen/Peep"
        "|piglet/pig/Oink|calf/cow/Moo"
    },
)

RAINY_DAY = Plot(
    "children",
    """
    {when}, {hero} wanted to go to the [park|beach|playground]. But it began to rain.
    {when}, {hero} wanted to play outside. But big gray clouds came, and it rained and rained.
    {when}, it was raining. The rain fell on the roof and ran down the window.

    {hero} looked out of the window. <felt_sad>
    "now I can't play outside," said {hero}. <felt_sad>
    "go away, rain!" said {hero}. But the rain did not stop.
    -

    then {hero.his} {elder.kind} had an idea. "Let's {plan}," {elder.he} said.
    "I know what we can do," said {hero.his} {elder.kind}. "Let's {plan}!"
    {hero.his} {elder.kind} came into the room. "Do you want to {plan}?" {elder.he} asked.

    "{address}, that is a great idea!" said {hero}. {result}
    {hero} jumped up. {result}
    {result} "I love this," said {hero}.

    {hero} laughed and forgot all about the rain.
    it was so much fun that {hero} did not hear the rain any more.
    they laughed and worked all afternoon.
    -

    when they looked outside again, the rain had stopped. There was a big rainbow [in the sky|over the houses].
    then the sun came out, and {hero} saw a rainbow with all its colors.
    after a while, the rain stopped. {hero} ran outside and jumped into every puddle.

    "rainy days can be fun too," said {hero}.
    "I hope it will rain again tomorrow," said {hero}, and they both laughed.
    <day_is_over>
    -
    """,
    {
        "plan/result": "build a tent out of blankets/They put blankets over the chairs and sat inside with a lamp."
        "|bake cookies/They mixed butter, sugar and flour, and soon the whole house smelled sweet."
        "|make paper boats/They folded ten little boats and let them swim in the bathtub."
        "|paint a big picture/They painted a green dragon with yellow wings."
        "|make some music/{hero} played the drum on a pot, and {hero.his} {elder.kind} sang."
        "|play a game/They played until every card had been on the table ten times."
        "|make shadow animals/They held up their hands, and a rabbit and a wolf danced on the wall."
    },
)

LEARNING = Plot(
    "children",
    """
    {hero} wanted to learn to {skill}. All {hero.his} friends could do it.
    more than anything, {hero} wanted to {skill}.
    "I wish I could {skill}," {hero} often said.

    {when}, {hero.he} tried it for the first time. But {hero.he} {failed}.
    {when}, {hero} went outside to try. {hero.he} tried once, and {hero.he} {failed}.

    {hero.he} tried again, and again {hero.he} {failed}.
    {hero} tried once more. It did not work.
    -

    "I can't do it," said {hero}. <felt_sad>
    "it is too hard!" {hero.he} cried. <felt_sad>
    "I will never learn it," said {hero}. <felt_sad>

    "everything is hard at first," said {hero.his} {elder.kind}. "Try a little every day."
    {pal} saw it and said, "I could not do it at first. Don't give up!"
    "nobody can do it the first time," said {hero.his} {elder.kind}. "You will learn it if you keep trying."

    so {hero} tried every day. Each time it was a little better.
    {hero} did not give up. {hero.he} tried in the morning, and {hero.he} tried in the evening.
    the next day, {hero} tried again, and the day after that too.

    then one day, it worked! {hero} could {skill} all by {hero.himself}.
    and after a week, {hero} did it! "Look! I can {skill}!" {hero.he} called.
    "{address}, look at me!" called {hero}. {hero.he} could do it!

    everyone clapped. <felt_glad>
    {hero.his} {elder.kind} was very proud. <felt_glad>
    <felt_glad> "I only had to keep trying," {hero.he} said.
    -

    <day_is_over>
    now {hero} is not afraid to try new things.
    """,
    {
        "skill/failed": "ride a bike/fell off the bike|swim/swallowed some water|skate/slipped and fell"
        "|whistle/made no sound at all|climb the big tree/slid down again|jump rope/tripped over the rope"
        "|stand on one leg/fell over|catch a ball/dropped it|walk on stilts/fell into the grass"
    },
)

KITE = Plot(
    "children",
    """
    {when}, {hero} and {pal} went to a hill with a {color} kite. The wind was strong.
    {when}, {hero} and {pal} made a {color} kite. They ran up a hill to let it fly.

    the kite went up and up, higher than the trees. "Look how it flies!" called {hero}.
    up went the kite, as high as the birds. {friend} clapped and jumped.
    -

    then the wind turned, and the kite got stuck in a tall tree.
    but then {hero} lost the string. The kite came down in the top of a tall tree.

    "oh no!" said {friend}. {hero} jumped and jumped, but the tree was too tall.
    {hero} pulled the string, but the kite did not move. {friend} tried it too, but nothing happened.
    -

    a {rescuer} saw them. The {rescuer} {rescue}.
    "our kite is stuck!" {hero} said to a {rescuer}. So the {rescuer} {rescue}.

    the kite was free! It came down like a leaf.
    and the {color} kite was free again. It did not even have a hole.

    "thank you!" said {hero} and {friend}. They shared their [apples|cookies|cake] with the {rescuer}.
    "you are so kind," said {hero}. "Do you want to fly the kite with us?"
    -

    the kite danced in the sky until the sun went down.
    <friends_ever_after>
    <day_is_over>
    """,
    {
        "color": "red|blue|yellow|green|orange|purple|white",
        "rescuer/rescue": "little squirrel/ran up the tree and pushed the kite out of the branches"
        "|friendly farmer/brought a long ladder and climbed up|black bird/flew up and pulled the string free"
        "|tall man/held out a long stick and reached the kite|brave monkey/jumped from branch to branch and got it"
        "|strong girl/climbed up and threw it down",
    },
    with_friend=True,
)

BROKEN_THING = Plot(
    "children",
    """
    {when}, {hero} was playing with a ball in the house. "Not inside!" {hero.his} {elder.kind} had said.
    {when}, {hero} ran through the house. "Do not run inside," {hero.his} {elder.kind} had said.

    crash! The {thing} fell down and broke.
    but {hero} did not listen. Crash! {hero.he} hit the {thing}, and it broke.

    {hero} was afraid. {hero.he} hid the pieces under the bed.
    {hero} hid the pieces behind a chair and said nothing.

    all day, {hero} felt bad. At dinner, {hero.he} could not eat a thing.
    {hero} could not play, and {hero.he} could not sleep.
    -

    <at_last>, {hero.he} went to {hero.his} {elder.kind}. "I broke the {thing}," {hero.he} said. "I am so sorry."
    "I have to tell the truth," thought {hero}. "I broke the {thing}, {address}," {hero.he} said [softly|slowly].

    "thank you for telling me the truth," said {hero.his} {elder.kind}.
    "I am a little sad," said {hero.his} {elder.kind}. "But it is brave to tell the truth."

    together they put the pieces back with glue.
    they fixed the {thing} together. It was not like new, but {hero} liked it even more.

    {hero} felt much better. After that, {hero.he} only ran and played outside.
    from that day on, {hero} always told the truth.
    <day_is_over>
    -
    """,
    {"thing": "blue vase|big cup|white plate|flower pot|glass bowl|old clock|teapot|picture of the sea|yellow lamp"},
)

SNOWMAN = Plot(
    "children",
    """
    it was winter, and snow lay on all the roofs. {hero} put on a warm coat and ran outside with {pal}.
    it was a cold winter, and everything was white. {hero} and {pal} ran out into the snow.

    "let's build a snowman!" said {friend}. They rolled [three big balls|a big ball and a small ball].
    they rolled the snow into big balls and built a snowman. He was taller than {hero}!

    they gave him a carrot for a nose and two [stones|buttons|nuts] for eyes.
    {hero} found a carrot for his nose, and {friend} put a pot on his head.
    -

    "he looks cold," said {hero}. So {hero.he} gave the snowman {hero.his} {color} scarf.
    {hero} put {hero.his} own {color} scarf around the snowman. "Now you are warm," {hero.he} said.

    but the days got warmer, and the snowman became smaller and smaller.
    they played with the snowman every day. But then the snow began to melt.

    one day, only the {color} scarf was left in the wet grass. <felt_sad>
    in the end, there was only a carrot and a {color} scarf. <felt_sad>

    "<comfort>," said {hero.his} {elder.kind}. "Next winter the snow will come back."
    "he is not gone," said {hero.his} {elder.kind}. "He will come back with the snow."
    -

    and the next winter, they built an even bigger snowman.
    {hero} waited all year. Then the first snow fell. "Welcome back!" said {hero}.
    "goodbye, snowman!" said {hero}. "See you next winter!"
    """,
    {"color": "red|blue|green|yellow|warm|long|striped|orange"},
    with_friend=True,
)

BOAT = Plot(
    "children",
    """
    {when}, {hero} made a little boat out of {stuff}. It had a {color} sail.
    {when}, {hero} and {hero.his} {elder.kind} made a little boat out of {stuff}. Its sail was {color}.

    {hero} took it to the {water} and put it into the water. "Look how it swims!" {hero.he} said.
    down at the {water}, {hero.he} let it swim. The {color} sail was full of wind.

    but the wind grew strong. The boat went farther and farther away.
    then a big wind came and took the boat away. {hero} could not reach it.

    "come back, little boat!" called {hero}. <felt_sad>
    {hero} ran along the water, but the boat was too fast. <felt_sad>
    -

    a {swimmer} saw it. "Is this your boat?" asked the {swimmer}. "Yes!" said {hero}.
    "why are you so sad?" asked a {swimmer}. "My boat is gone," said {hero}.

    the {swimmer} swam after the boat and pushed it back to {hero}.
    the {swimmer} went across the water and came back with the boat.

    "thank you!" said {hero}. {hero.he} gave the {swimmer} some bread.
    <felt_glad> "You are my hero," {hero.he} said to the {swimmer}.
    -

    after that, {hero} tied a string to the boat. Now it could never get lost.
    from then on, {hero} and the {swimmer} met at the {water} every day.
    <day_is_over>
    """,
    {
        "stuff": "wood|paper|a nutshell|an old shoe|bark|a milk box",
        "color": "white|red|blue|yellow|green",
        "water": "pond|lake|river",
        "swimmer": "white duck|green frog|big fish|gray goose|brown otter|small turtle|white swan",
    },
)

BAKING = Plot(
    "children",
    """
    {when}, {hero} wanted to make {food} for {hero.his} {elder.kind}.
    {when}, {hero} said, "Today I will make {food} all by myself."
    it was {hero.his} {elder.kind}'s birthday, and {hero} wanted to make {food}.

    {hero} took flour, milk and eggs and mixed them. But then {hero.he} took the salt instead of the sugar!
    {hero.he} put flour and eggs into a bowl. But {hero.he} did not see that the sugar was salt.

    {hero.his} {elder.kind} took a big bite and made a funny face. "Oh! That is very salty," {elder.he} said.
    {hero.his} {elder.kind} took a bite, and {elder.his} eyes grew big. "It is salty!" {elder.he} said.

    {hero} tried some too. It tasted like the sea! <felt_sad>
    "oh no, I took the salt!" said {hero}. <felt_sad>
    -

    but {hero.his} {elder.kind} laughed. "Let's try again together," {elder.he} said.
    "<comfort>," said {hero.his} {elder.kind}. "Everyone makes mistakes."

    this time, {hero} tasted the sugar first.
    they washed the bowl and started again. Soon the whole kitchen smelled good.

    now the {sweet} tasted sweet and warm. They ate everything up.
    it was the best {sweet} in the world. They ate until they were full.

    "next time I will look twice," said {hero}.
    they even gave some to the neighbors. "How good this is!" they all said.
    <day_is_over>
    -
    """,
    {
        "food/sweet": "a cake/cake|a nut bread/bread|a sweet bread/bread|an apple pie/pie|a big pudding/pudding"
        "|a pancake tower/pancake tower|a berry pie/pie"
    },
)

FIRST_DAY = Plot(
    "children",
    """
    it was the first day of school. {hero} held {hero.his} {elder.kind}'s hand very tight.
    it was time for {hero} to go to school for the first time. {hero.his} tummy felt funny.

    "what if nobody likes me?" {hero.he} asked. "Just be yourself," said {hero.his} {elder.kind}.
    "I want to stay with you, {address}," said {hero}. "I will come back soon," said {hero.his} {elder.kind}.
    -

    there were many children in the room. {hero} did not know any of them.
    the room was big and loud. {hero} sat down on a small chair and said nothing.
    -

    next to {hero.him} sat a {friend.noun}. {friend.he} looked afraid too.
    then {hero} saw a {friend.noun} in the corner. {friend.he} was crying.

    "hello," said {hero}. "Do you want to draw with me?" {friend} nodded.
    {hero} gave {friend} half of {hero.his} cookie. "Thank you," said {friend} and smiled a little.
    "I am afraid too," said {hero}. "But we can be afraid together." That made {friend} laugh.

    they drew a {drawing}, and the teacher put it on the wall.
    the teacher told a story about a {drawing}, and everyone laughed.
    they sang songs, and they drew a {drawing}.
    -

    in the afternoon, {hero.his} {elder.kind} came. "How was it?" {elder.he} asked. "Can I go again?" said {hero}.
    then the bell rang. "See you tomorrow!" called {friend}. "See you tomorrow!" called {hero}.

    <friends_ever_after>
    <day_is_over>
    school was not scary at all.
    """,
    {"drawing": "purple cow|dancing bear|blue house|flying fish|red dragon|big ship|happy sun|green elephant"},
)

GARDEN = Plot(
    "children",
    """
    {when}, {hero.his} {elder.kind} gave {hero} a tiny seed. "What will it be?" asked {hero}.
    {when}, {hero} found a little seed in an old box. "Put it into the ground," said {hero.his} {elder.kind}.

    {hero} dug a small hole, put the seed into it and gave it some water.
    {hero} planted the seed in a sunny place and gave it water.

    the next day, {hero} ran to look. There was only brown earth. <felt_sad>
    {hero} waited for three days. Nothing happened. "Wake up, little seed!" {hero.he} said.

    "good things take time," said {hero.his} {elder.kind}. "A seed needs sun and water."
    "is it broken?" asked {hero}. "No," said {hero.his} {elder.kind}. "It is growing where you can't see it."
    -

    so {hero} gave it water every day. Sometimes {hero.he} even sang to it.
    {hero} did not forget the seed. When it was hot, {hero.he} brought water.
    -

    then one morning, there was a tiny green leaf! "It is growing!" called {hero}.
    after two weeks, something green came out of the earth. {hero} danced around it.

    it grew and grew. By the end of the summer, it was {plant}.
    every day it was a little taller. And one day, it was {plant}!

    {hero} shared it with everyone. "I only had to wait," {hero.he} said.
    everyone came to see it. {hero} was {glad}.
    <day_is_over>
    -
    """,
    {
        "plant": "a sunflower as tall as the house|a pumpkin as big as a chair|a bush full of red berries"
        "|a tomato plant with twenty red tomatoes|a rose with a hundred flowers|a bean plant that reached the roof"
    },
)

PLOTS = (LOST_BABY, RAINY_DAY, LEARNING, KITE, BROKEN_THING, SNOWMAN, BOAT, BAKING, FIRST_DAY, GARDEN)
