"""Plots whose hero may be a child or an animal. Notation: templates.py."""

from __future__ import annotations

from .templates import Plot

LOST_TOY = Plot(
    "all",
    """
    {hero} had a {toy} that {hero.he} loved very much.
    {hero} had a {toy}. {hero.he} took it everywhere.
    {hero.his} favorite thing was a {toy}.
    for {hero.his} birthday, {hero} got a {toy}. {hero.he} loved it at once.

    {when}, {hero} took the {toy} to the {place}. <fine>
    {when}, {hero} went to the {place} with {hero.his} {toy}. <fine>
    {when}, {hero} played with the {toy} at the {place}.

    {hero.he} ran and jumped. But when it was time to go home, the {toy} was gone[.|!]
    after a while, {hero.he} sat down to [rest|eat an apple]. Where was the {toy}?
    {hero.he} fell asleep in the soft grass. When {hero.he} woke up, the {toy} was not there.
    {hero.he} looked away for a [moment|little while]. When {hero.he} looked back, the {toy} was gone[.|!]

    "oh no! I lost my {toy}!" [said|cried] {hero}. <felt_sad>
    {hero} looked [here and there|left and right|up and down], but {hero.he} could not find it. <felt_sad>
    "where is my {toy}?" said {hero}. <felt_sad>
    -

    {friend.full} saw {hero.him} and came over. "I will help you," said {friend}.
    just then, {pal} came by. "Why are you so sad?" asked {friend}. "My {toy} is gone," said {hero}.
    {hero} told {pal} about it.

    "<comfort>," said {friend}. "It can't be far away."
    "let's look for it together," said {friend}.
    "we will find it," said {friend}. "Four eyes see more than two."
    -

    they looked <search>. <at_last>, {friend} saw something <spot>. It was the {toy}!
    <at_last>, they found the {toy} <spot>.
    they looked <search>. "I see it!" called {friend}. The {toy} was <spot>.

    "thank you[|, {friend}|, thank you]!" said {hero}. <felt_glad>
    "hurray!" [cried|called] {hero} and gave {friend} a big hug.
    <felt_glad> "You are a good friend," {hero.he} said to {friend}.
    -

    after that, {hero} always took good care of the {toy}.
    then they both played with the {toy} until [the sun went down|it was time for dinner].
    <friends_ever_after>
    <day_is_over>
    """,
    {
        "toy": "red ball|blue kite|yellow hat|little drum|teddy bear|toy boat|toy train|green scarf|silver bell"
        "|wooden horse|purple umbrella|shiny key|white feather|golden button",
        "place": "park|beach|meadow|lake|hill|river|old bridge|playground",
    },
)

NEW_FRIEND = Plot(
    "all",
    """
    but {hero} had no one to play with. Sometimes {hero.he} felt lonely.
    {hero} had just come to a new home, and {hero.he} did not know anyone.
    more than anything, {hero} wanted to find a friend.

    {when}, {hero} saw a {friend.noun} {where}. {friend.he} was {doing}.
    {when}, {hero.he} went for a walk. There was a {friend.noun} {where}, all alone. {friend.he} was {doing}.

    {hero} took a deep breath and said, "Hello! May I play with you?"
    "hello," said {hero} in a small voice. "Can I play too?"
    {hero} was a little shy, but {hero.he} asked, "Do you want to play with me?"

    {friend} looked up and smiled. "Yes, please!" {friend.he} said.
    "of course!" said {friend}. "It is more fun with two."
    "oh yes!" said {friend}. "I was hoping that you would ask."

    they played {game} [all afternoon|until the sun went down|for a long time]. <laughed>
    first they played {game}. Then they [lay|sat] in the grass and looked at the clouds. <laughed>
    {friend} showed {hero} how to play {game}. <laughed>
    -

    when they were hungry, {friend} shared {food} with {hero}. It tasted [so good|very good|sweet].
    {hero} had {food} in {hero.his} bag, and they shared it.
    -

    then it was time to go home. "Will you come again tomorrow?" asked {friend}. "Yes, I will!" said {hero}.
    in the evening, {hero} said, "I have to go home now." "Come back soon!" said {friend}.
    "I am glad that I met you," said {hero}. "Me too," said {friend}.
    -

    <friends_ever_after>
    <friends_ever_after>
    {hero} was not lonely any more. <friends_ever_after>
    <day_is_over>
    """,
    {
        "where": "near a pond|under a big tree|by the river|on a bench|beside a fence|at the end of the road|on a hill",
        "doing": "building a tower of stones|looking at the clouds|drawing in the sand|singing a song|throwing a ball"
        "|making a chain of flowers|counting snails",
        "game": "hide and seek|with a ball|tag|in the sand|a funny game with sticks|at being pirates",
        "food": "an apple|a sandwich|a piece of cake|some bread and cheese|a sweet pear",
    },
)

SHARING = Plot(
    "all",
    """
    {when}, {hero} and {pal} found a {thing}. They both wanted it.
    {when}, {hero} and {pal} were playing outside. There was only one {thing}.
    {when}, {hero} was playing with a {thing}. Then {pal} came and wanted to play with it too.

    "it is mine!" said {hero}. "No, it is mine!" said {friend}. They [shouted|pulled] and pulled.
    "I want the {thing}!" said {hero}. "No, I want it!" said {friend}. They were both very angry.
    {hero} took the {thing} and would not let go. "You can't have it," {hero.he} said. {friend} began to cry.
    "you can't play with it," said {hero}. "That is not fair!" said {friend}, and a tear ran down {friend.his} face.

    a {helper.noun} came by and heard them. "Why are you so loud?" asked {helper}. "You can share it."
    just then, a {helper.noun} came down the road. "You can take turns," said {helper}. "Then nobody has to be sad."
    {hero} saw how sad {friend} was. Now the {thing} was no fun at all.
    {hero} played alone for a while, but it was not much fun.
    -

    {hero} thought about it. "I am sorry, {friend}," {hero.he} said. "You can go first."
    "I am sorry," said {hero}. "Let's [share|take turns]." {friend} [smiled|nodded].
    {hero} held out the {thing}. "Here, it is your turn," {hero.he} said. "I am sorry too," said {friend}.
    -

    first it was {friend}'s turn, and then it was {hero}'s turn. They laughed and played [all day|until it was dark].
    so they took turns with the {thing}. They had so much fun that they forgot the time.
    they made up a new game for two. It was the best game ever.

    "it is more fun to play together," said {hero}.
    "sharing is better than fighting," said {friend}.
    now {hero} knew that it is good to share.
    -

    <friends_ever_after>
    <day_is_over>
    """,
    {
        "thing": "red wagon|big drum|blue bucket|jump rope|spinning top|yellow kite|wooden boat|soft blanket|green ball"
        "|golden trumpet|toy castle"
    },
    with_friend=True,
)

STRANGE_SOUND = Plot(
    "all",
    """
    {night}, {hero} could not sleep. It was very dark [and quiet|outside].
    {night}, {hero} was lying in bed. The moon was shining, and everything was quiet.
    {night}, {hero} woke up. It was so dark that {hero.he} could not see a thing.

    then {hero.he} heard a [strange|funny|scary] sound. {sound}! What was that?
    {sound}! "What is that?" [said|whispered] {hero}.
    all at once, there was a sound at the window. {sound}!

    {hero} pulled the blanket over {hero.his} head. "Is it a monster?" {hero.he} thought.
    {hero.his} heart beat very fast. {hero.he} was afraid to move.
    {hero} held {hero.his} pillow very tight. There it was again. {sound}!
    -

    "{address}!" called {hero}. {hero.his} {elder.kind} came with a lamp. "Let's look together," {elder.he} said.
    {hero} wanted to hide, but {hero.he} wanted to know what it was. So {hero.he} took a lamp and went to look.
    "I will be brave," said {hero}. {hero.he} took a deep breath and went to the window.

    and what was it? It was only {cause}.
    there was no monster at all. It was {cause}!
    {hero} began to laugh. It was only {cause}!

    "how silly of me," said {hero}. "I was afraid of nothing."
    "hello, you!" said {hero}. "Now I am not afraid any more."
    {hero} laughed at {hero.himself}. "That is not scary at all," {hero.he} said.
    -

    {hero} went back to bed. Soon {hero.he} was fast asleep.
    {hero} lay down again, and this time the sound was like a song. {hero.he} fell asleep with a smile.
    after that, {hero} was not afraid of the dark [any more|again].
    """,
    {
        "sound/cause": "Tap, tap, tap/a branch that was dancing in the wind|Scratch, scratch/a tiny mouse with a nut"
        "|Whoo, whoo/an owl that sat in the tree|Plop, plop/the rain that dripped from the roof"
        "|Creak, creak/the old garden gate|Crunch, crunch/a hungry hedgehog with an apple"
        "|Bump, bump/a beetle that could not find the way out|Hum, hum/the wind that sang in the chimney"
    },
)

GIFT = Plot(
    "all",
    """
    it was almost {friend}'s birthday, but {hero} had no gift.
    it was almost {friend}'s birthday, and {hero} wanted to give {friend.him} something special.
    "tomorrow is {friend}'s birthday," thought {hero}. "What can I give {friend.him}?"

    {hero} looked [in every corner|all over the house], but {hero.he} found nothing good. <felt_sad>
    {hero} had no money to buy a gift. <felt_sad>
    {hero} thought and thought, but no idea came. <felt_sad>
    -

    {hero.he} asked {hero.his} {elder.kind}. "The best gifts come from the heart," said {hero.his} {elder.kind}.
    {hero.he} met a {helper.noun} and asked for help. "Make something with love," said {helper}.
    then {hero.he} had a good idea. "I know! I will make something!" {hero.he} said.
    -

    so {hero} worked all [day|afternoon|evening long] and made {gift}.
    {hero} went to work at once. It took a long time, but then {hero.he} had made {gift}.
    {hero} made {gift}. It was not easy, but {hero.he} did not give up.

    the next day, {hero} gave it to {friend}. "I made this for you," {hero.he} said [shyly|softly].
    on {friend}'s birthday, {hero} knocked at the door. "Happy birthday!" {hero.he} said. "This is for you."
    when {friend} saw the gift, {friend.his} eyes grew big. "Did you make this for me?" {friend.he} asked.
    -

    "it is beautiful!" said {friend}. "It is the best gift of all."
    "oh, thank you!" said {friend}. "I will keep it forever."
    {friend} was so happy that {friend.he} danced around the room.

    then they ate [cake|a big cake|cake with berries] and sang [songs|a birthday song] together.
    they played and danced until [late|the stars came out].
    -

    <friends_ever_after>
    <day_is_over>
    {hero} was {glad}, because it is good to make others happy.
    """,
    {
        "gift": "a necklace of shells|a crown of flowers|a card with a big red heart|a picture of the two of them"
        "|a little boat of wood|a warm blue scarf|a box full of pretty stones|a kite with a long tail"
        "|a song with five verses|a basket full of berries"
    },
)

LOST_WAY = Plot(
    "all",
    """
    {when}, {hero} saw a {lure} near the fence. "How pretty!" {hero.he} said and went after it.
    {when}, a {lure} came by. It was so beautiful that {hero} followed it.
    {when}, {hero} saw a {lure}. {hero.he} wanted to see it up close.

    the {lure} went over the hill and into the [dark|deep] forest. {hero} ran after it.
    {hero} followed the {lure} past the pond, over the bridge and into the forest.
    on and on they went, deeper and deeper into the forest.
    -

    then the {lure} was gone. There were only trees. Which way was home?
    soon {hero} could not see the {lure} any more. And {hero.he} did not know the way back.
    but then the {lure} was gone, and so was the path.

    it was getting dark, and {hero} was cold. {hero.he} sat down under a tree and began to cry.
    "{address}! Where are you?" called {hero}. But nobody came. <felt_sad>
    {hero.he} went left and then right, but every tree looked the same. <felt_sad>
    -

    a {helper.noun} heard {hero.him}. "What is wrong, {hero.call}?" asked {helper}. "I want to go home," said {hero}.
    then a {helper.noun} came along. "Are you lost?" asked {helper}. "Yes," said {hero}.

    "<comfort>," said {helper}. "Come with me. I know the way."
    "follow me," said {helper}. They walked until they came out of the forest.
    "do you hear the river?" asked {helper}. "It will lead us home."

    soon {hero} saw the lights of home. {hero.his} {elder.kind} gave {hero.him} a big hug.
    <at_last>, {hero} was home. {hero.his} {elder.kind} held {hero.him} for a long time.
    soon they saw a light. It was {hero.his} {elder.kind} with a lamp! "There you are!" {elder.he} said.

    "thank you!" {hero} said to {helper}. And {hero.he} never went into the forest alone again.
    "I will never run away alone again," said {hero}. And {hero.he} kept {hero.his} word.
    {helper} was invited to dinner, and they all ate hot soup together.
    -
    """,
    {
        "lure": "yellow butterfly|blue dragonfly|red bird|golden bee|tiny green frog|white butterfly|shiny beetle"
        "|gray moth|big soap bubble"
    },
)

KINDNESS = Plot(
    "all",
    """
    {when}, {hero} met a tiny {animal} on the road. It was thin and looked very hungry.
    {when}, {hero} heard a soft sound under a leaf. It was a tiny {animal}. "I am so hungry," it said.
    {when}, a tiny {animal} came to {hero}. "Please, can you give me something to eat?" it asked.

    {hero} had only one [piece of bread|little cake|apple], but {hero.he} gave half of it to the {animal}.
    {hero} was hungry too. But {hero.he} gave the {animal} [some of|half of] {hero.his} [bread|lunch].

    "thank you," said the {animal}. "One day I will help you too." {hero} only smiled.
    "you are kind," said the {animal}. "I will not forget it."

    a few days later, {hero} {trouble}. "Help! Help!" {hero.he} called.
    the next week, {hero} {trouble}. Nobody was there to help.

    then {hero} heard a small voice. It was the {animal}! It {rescue}.
    but the {animal} had heard {hero.him}. "I am here!" it called. It {rescue}.

    soon {hero} was safe. "You were kind to me," said the {animal}, "and now I am kind to you."
    and so {hero} was free again. "Thank you, little {animal}!" {hero.he} said.
    -

    {hero} learned that even the smallest friend can be a big help.
    after that, {hero} shared {hero.his} lunch with the {animal} every day.
    <day_is_over>
    from that day on, {hero} and the {animal} were good friends.
    """,
    {
        "animal/trouble/rescue": "mouse/was caught in an old net/bit the net until there was a big hole"
        "|sparrow/fell into a deep hole/flew away and came back with {hero.his} {elder.kind} and a rope"
        "|squirrel/could not get down from a tall tree/showed {hero.him} the way down, branch by branch"
        "|ant/got stuck under a heavy branch/called a hundred friends, and together they moved the branch"
        "|firefly/was lost in a dark cave/made a bright light and showed {hero.him} the way out"
        "|mole/fell into a pit with steep walls/dug a tunnel that led {hero.him} out"
    },
)

WISH = Plot(
    "all",
    """
    {night}, {hero} looked up at the sky. A star fell down and landed in the grass. It was small and bright.
    {night}, {hero} saw a light outside. It was a little star that had fallen from the sky.
    {night}, a little star knocked at the window. "I am tired," it said. "May I rest here?" {hero} let it in.

    "hello," said the star. "You may make one wish."
    "because you have found me, I will give you a wish," said the star.
    "you have a kind face," said the star. "Tell me your wish, and it will come true."

    {hero} could wish for [a bag of gold|a mountain of cake|a big castle].
    what a hard choice! {hero} could have [a hundred toys|a golden crown|all the cake in the world].
    -
    -

    but then {hero.he} thought of {pal}, who {sorrow}.
    then {hero.he} remembered {pal}. {friend} {sorrow}.

    "I do not need anything," said {hero}. "I wish that {wish}."
    "I know my wish," said {hero}. "I wish that {wish}."

    "that is a good wish," said the star. It began to shine, and {result}.
    the star smiled and grew brighter and brighter. All at once, {result}.

    {friend} was so happy that {friend.he} danced. {hero} danced too.
    "it is like magic!" said {friend}. {hero} only smiled.
    {friend} laughed, and {hero} was happy because {friend} was happy.
    -

    then the star flew back into the sky.
    the star went home to the moon. But {hero} never forgot it.
    <day_is_over>
    <friends_ever_after>
    """,
    {
        "sorrow/wish/result": "was ill and had to stay in bed/{friend} gets well/{friend} jumped out of bed and laughed"
        "|had lost {friend.his} way home/{friend} finds the way/a path of light led {friend} home"
        "|had no warm coat for the winter/{friend} gets a warm coat/a soft red coat fell into {friend}'s arms"
        "|was sad because {friend.his} garden was dry/it rains on {friend}'s garden/soft rain fell on every flower"
        "|was always alone/{friend} is never alone again/everyone came to {friend}'s house with cake and music"
    },
)

TOO_SMALL = Plot(
    "all",
    """
    {hero} was the smallest of all. "You are too small to help us," said {hero.his} brothers.
    {hero} had three big brothers. "You are too small to play with us," they always said.
    {hero} wanted to help everyone, but {hero.he} was so small. "Wait until you are big," they said.

    <felt_sad> "I wish I were big," {hero.he} said.
    "it is not fair," thought {hero}. <felt_sad>
    -

    {when}, {hero.his} {elder.kind} dropped a {thing} into a hole in the ground. It was very deep.
    {when}, {hero.his} {elder.kind} could not find the {thing}. It had fallen between two big rocks.

    everyone tried to reach it, but the hole was too narrow. "What can we do?" said {hero.his} {elder.kind}.
    the brothers tried with a stick and with a rope, but nothing helped.
    -

    "let me try," said {hero}. The brothers laughed, but {hero.his} {elder.kind} nodded.
    "I can do it," said {hero}. "I am small enough."
    -

    {hero} went down into the dark. It was cold there. But soon {hero.he} came back with the {thing}!
    {hero} crawled in, deeper and deeper. Then {hero.he} called, "I have it!"

    "you did it!" cried {hero.his} brothers. "It is good that you are small."
    {hero.his} {elder.kind} gave {hero.him} a kiss. "Small ones can do big things," {elder.he} said.
    everybody cheered. "We are sorry," said the brothers. "You can play with us now."

    {hero} was {glad}. {hero.he} did not want to be big any more.
    from that day on, nobody said that {hero} was too small.
    <day_is_over>
    -
    """,
    {"thing": "golden ring|house key|silver spoon|little bell|oil lamp|shiny coin"},
)

SICK_FRIEND = Plot(
    "all",
    """
    {when}, {hero} went to see {pal}. But {friend} was ill and had to stay in bed.
    {when}, {pal} did not come out to play. {friend} had a cold and was in bed.

    "I am so bored," said {friend}. "My head hurts, and I can't go outside."
    {friend} looked pale. "I can't even see the [sun|flowers|birds] from here," {friend.he} said.
    -

    {hero} wanted to make {friend} happy. {hero.he} ran home and thought.
    "I will think of something," said {hero}.
    {hero} felt sorry for {friend}. Then {hero.he} had an idea.
    -

    {hero.his} {elder.kind} cooked a pot of hot soup. {hero} carried it to {friend} very slowly.
    {hero} came back with a jar of honey and some hot tea.
    {hero} picked red and yellow flowers and put them next to the bed.

    then {hero} sat down and told a story about {tale}. {friend} laughed until the bed shook.
    after that, {hero} made up a song about {tale}. {friend} laughed and clapped.
    {hero} put on a little show about {tale}. "More, more!" called {friend}.

    {hero} came every day, and every day {friend} felt a little better.
    "I feel better already," said {friend}. "You are the best medicine."
    -

    after a week, {friend} was well again. They ran outside and played in the sun.
    <at_last>, {friend} could get up. "Now let's play!" {friend.he} said.
    -

    <friends_ever_after>
    <day_is_over>
    """,
    {
        "tale": "a dragon who was afraid of mice|a king without shoes|a cow that wanted to fly|a very lazy cloud"
        "|a fish that could sing|a giant who loved tiny cups|a pig with golden boots"
    },
    with_friend=True,
)

PLOTS = (LOST_TOY, NEW_FRIEND, SHARING, STRANGE_SOUND, GIFT, LOST_WAY, KINDNESS, WISH, TOO_SMALL, SICK_FRIEND)
