"""How stories begin, the slots that every story has, and the phrases that many plots share. Notation: templates.py."""

from __future__ import annotations

COMMON_SLOTS = {
    "trait": "kind|brave|curious|clever|cheerful|friendly|happy",
    "virtue": "gentle|lively|polite|funny|helpful|good to others|full of ideas",
    "glad": "happy|glad|happy and proud",
    "sad": "sad|very sad|unhappy|so sad",
}
CHILD_SLOTS = {
    "home": "in a small house near the forest|in a little village by the sea|on a farm with many animals|in a big city"
    "|in a yellow house on a hill|at the edge of a quiet town|near a blue lake|in a tall house with a red door"
    "|in a small town|next to an old mill|at the end of a long road|in a white house by the river",
    "hobby": "draw pictures|sing songs|dance|run and jump|read books|climb trees|look at the stars|pick flowers"
    "|play outside|collect shells|tell funny stories|play the drum|feed the birds|build towers|ask questions",
}
ANIMAL_SLOTS = {
    "home": "in a green forest|in a big forest|on a small farm|near a blue lake|at the foot of a hill"
    "|in a sunny meadow|by a quiet river|in a cozy house under an old oak tree|behind a red barn"
    "|in a warm green valley|near a little bridge",
    "hobby": "run and jump|sleep in the sun|sing songs|play hide and seek|look for berries|splash in the water"
    "|roll in the grass|listen to the wind|count the clouds|smell the flowers|dance in the rain|watch the bees",
}

ONE_HERO = """
    once upon a time, there was <a_hero>. [<about>|]
    once upon a time, there was <a_hero>. [<about>|]
    once upon a time there was <a_hero> who lived {home}. [<about>|]
    once upon a time, {home}, there lived <a_hero>. [<about>|]
    once upon a time, <a_hero> lived {home}. [<about>|]
    there once was <a_hero> who loved to {hobby}.
    there was once <a_hero>. [<about>|]
    long ago, <a_hero> lived {home}. [<about>|]
    a long time ago, there was <a_hero> who lived {home}. [<about>|]
    {hero} was a {trait} {hero.kind} who lived {home}. [<about>|]
    {hero} was a very {trait} {hero.kind}. <about_home>
    {hero.full} lived {home}. [<about>|]
    {hero.full} loved to {hobby}. <about_home>
    {home} lived <a_hero>. [<about>|]
    this is [the|a] story of <a_hero>. <about_home>
    let me tell you about <a_hero>. <about_home>
    [hello|hello there|good evening|hello, my dear]! This is a story about <a_hero>. [<about>|]
    do you know the story of {hero}? {hero.he} was a {trait} {hero.kind} who lived {home}.
    "hello!" said {hero} to everyone [on the road|who came by]. {hero.he} was a {trait} {hero.kind} who lived {home}.
    "good morning, [sun|world]!" said {hero}. {hero} was a {hero.kind} who loved to {hobby}.
    [every day|every morning|in the evening], {hero} liked to {hobby}. {hero.he} was a {trait} {hero.kind}.
"""

THAT_DAY = """
    one [day|morning|afternoon], <a_hero> was [walking down the road|sitting under a tree|looking for something to do].
    one [day|morning], <a_hero> woke up early. [<about>|]
    one [day|morning], {hero} woke up early. {hero.he} was a {trait} {hero.kind} who lived {home}.
    one day, something [special|strange|wonderful] happened to <a_hero>. [<about>|]
    it was a [quiet|lovely|beautiful] day. {hero} <was_glad>. [<about>|]
    it was [early in the morning|a new day], and {hero} <was_glad>.
    today was a special day for {hero}. {hero.he} was a {trait} {hero.kind} who loved to {hobby}.
"""

TWO_FRIENDS = """
    once upon a time, there were two friends, {hero.full} and {friend.full}. <together>
    once upon a time, {hero.full} and {friend.full} lived {home}. <together>
    once upon a time, there was <a_hero>. {hero.his} best friend was a {friend.noun}. <together>
    {hero.full} and {friend.full} were [best|good|very good] friends. <together>
    {hero.full} and {friend.full} [went outside to play|walked along the road|sat in the grass] one day. <together>
    {hero.full} and {friend.full} went to the [park|lake|beach|meadow|playground|river]. <together>
    there were once two friends, {hero.full} and {friend.full}. <together>
    one day, {hero.full} and {friend.full} [wanted to play|met under the big tree|went for a walk]. <together>
    {hero} had a good friend. It was a {friend.noun}. <together>
"""

RULES = {
    "a_hero": """
        a {hero.noun}
        a {trait} {hero.noun}
    """,
    "about": """
        {hero.he} loved to {hobby}.
        {hero.he} liked to {hobby} [every day|all day long|more than anything else].
        everyone [liked|loved] {hero.him} because {hero.he} was so {virtue}.
        {hero.he} was always {virtue}, and {hero.he} loved to {hobby}.
        nobody was as {virtue} as {hero.he} was.
        {hero.he} always had a smile for everyone.
    """,
    "about_home": """
        {hero.he} lived {home}.
        {hero.he} and {hero.his} {elder.kind} lived {home}.
        {hero.his} home was {home}.
    """,
    "together": """
        they did everything together.
        they played together every day.
        they loved to {hobby}.
        they liked to {hobby} together.
        they always had a lot of fun.
        they were never far apart.
    """,
    "was_glad": """
        was in a good mood
        was very happy
        could not wait to go outside
        had a big smile
    """,
    "fine": """
        the sun was shining [and the sky was blue|and the birds were singing|in the blue sky].
        it was a [warm|sunny|lovely] day[| and the sky was blue].
        the birds were singing in the trees.
        there was not a cloud in the sky.
        a [soft|gentle|warm] wind was blowing.
        the air was [warm|fresh] and the grass was green.
        white clouds moved slowly across the sky.
    """,
    "felt_sad": """
        {hero} was {sad}.
        {hero.he} was {sad}.
        {hero.he} felt {sad}.
        {hero.he} began to cry.
        a [big|small] tear ran down {hero.his} face.
        {hero.he} wanted to cry.
    """,
    "felt_glad": """
        {hero} was {glad}.
        {hero.he} was so happy.
        {hero} [laughed|danced|jumped] for joy.
        {hero} had a big smile on {hero.his} face.
        {hero} felt warm inside.
        {hero.he} could not stop smiling.
    """,
    "comfort": """
        do not worry
        don't worry
        don't be sad
        do not cry
    """,
    "at_last": """
        at last
        finally
        after a long time
        in the end
    """,
    "search": """
        behind every tree
        in the tall grass
        under the bench
        near the water
        all around
    """,
    "spot": """
        under a green bush
        behind a big rock
        beside an old fence
        between the flowers
        on top of a little hill
    """,
    "laughed": """
        they laughed and laughed.
        it was so much fun.
        they had a lot of fun.
        how they laughed!
    """,
    "friends_ever_after": """
        from that day on, {hero} and {friend} were [best|good|the best of] friends.
        after that, {hero} and {friend} played together every day.
        {hero} and {friend} [stayed|were] friends forever.
        and {hero} and {friend} were always [kind to|good to|there for] each other.
        it was good to have a friend.
    """,
    "day_is_over": """
        that night, {hero} slept very well.
        that night, {hero} fell asleep with a smile.
        {hero} went home and told {hero.his} {elder.kind} [all about it|the whole story].
        {hero} never forgot that day.
        it was the best day ever.
        it had been a [wonderful|very good|lovely] day.
        when the [stars|moon and the stars] came out, {hero} was still smiling.
        and [from that day on|after that], {hero} was [a little braver|happy every day|never sad for long].
        {hero} went to bed [tired and happy|with a happy heart].
    """,
}
