"""Spelling and counting letters, the calendar, and which of two is larger or comes next."""

from random import Random

from nanochat.primer import world
from nanochat.primer.question import Paraphrases, Question, Split, as_typed
from nanochat.primer.world import a, capitalized

_TERMS = {
    *(word for animal in world.ANIMALS for word in (animal.name, animal.food)),
    *(word for person in world.PEOPLE for word in (person.job, person.dish)),
    *(thing.name for thing in world.THINGS),
    *(name.lower() for name in (*world.DAYS, *world.MONTHS)),
} | {*world.ITEMS, *world.COLOURS, *world.SEASONS, *world.WEATHERS}
# Words of the world that can be spelled, in lower case; sorted, since sets have no stable order.
WORDS = tuple(sorted(term for term in _TERMS if " " not in term))

SPELLING = Paraphrases.table("""
spell: how do you spell {w} | spell {w} | spell the word {w} | how is {w} spelled
spell: can you spell {w} | what are the letters of {w} | tell me the letters of {w}
spell: which letters are in {w} | spell {w} for me | how is the word {w} written
spell: how do I write {w} | letter by letter, what is {w}
spell unseen: can you spell the word {w} | tell me how to spell {w}
count: how many {l} are in {w} | how many {l}s are in {w} | how many times is {l} in {w}
count: how many letters {l} are in {w} | how often is the letter {l} in {w}
count: count the letter {l} in {w} | count the {l}s in {w} | how many {l} does {w} have
count: how many times does {l} stand in {w} | tell me how many {l} are in {w} | how many {l} in {w}
count: how many {l} are there in the word {w}
count unseen: tell me how many times {l} is in {w} | how many {l}s are in the word {w}
""")  # fmt: skip


def spelling_question(rng: Random, split: Split) -> Question:
    """A word letter by letter, or how often a letter is in it (through the calculator)."""
    return _spell(rng, split) if rng.random() < 0.5 else _count(rng, split)


def _spell(rng: Random, split: Split) -> Question:
    word = rng.choice(WORDS)
    core, is_unseen = SPELLING["spell"].pick(rng, split)
    letters = "-".join(word)  # the hyphens keep each letter a token of its own
    return Question(
        text=as_typed(rng, core.format(w=word)),
        answer=f"The word {word} is spelled {letters}.",
        key=letters,
        identity=f"spell|{word}|{core}",
        unseen_wording=is_unseen,
    )


def _count(rng: Random, split: Split) -> Question:
    word = rng.choice(WORDS)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(world.LETTERS)  # or none
    core, is_unseen = SPELLING["count"].pick(rng, split)
    number = word.count(letter)
    return Question(
        text=as_typed(rng, core.format(l=letter, w=word)),
        answer=f"The letter {letter} is {number} time{'s' * (number != 1)} in {word}.",
        key=str(number),
        identity=f"count|{word}|{letter}|{core}",
        expression=f"'{word}'.count('{letter}')",
        kind="number",
        unseen_wording=is_unseen,
    )


CALENDAR = Paraphrases.table("""
after: what {u} comes after {x} | which {u} comes after {x} | what {u} follows {x}
after: what is the {u} after {x} | which {u} follows {x} | tell me the {u} after {x}
after: what comes after {x} | after {x} comes what {u} | do you know the {u} after {x}
after unseen: tell me what {u} comes after {x}
before: what {u} comes before {x} | which {u} comes before {x} | what is the {u} before {x}
before: tell me the {u} before {x} | what comes before {x} | before {x} comes what {u}
before: which {u} is before {x} | do you know the {u} before {x}
before unseen: tell me what {u} comes before {x}
season: in which season is {x} | which season is {x} in | what season is {x}
season: what is the season of {x} | tell me the season of {x} | {x} is in which season
season: what season does {x} belong to | which season does {x} belong to
season unseen: do you know what season {x} is
number: which number is the month of {x} | what number of the year is {x}
number: which month of the year is {x} | what number does {x} have in the year
number: tell me the number of the month {x} | what place does {x} have in the year
number unseen: tell me what number of the year {x} is
""")  # fmt: skip


def calendar_question(rng: Random, split: Split) -> Question:
    """Days, months and seasons."""
    # Twice as many neighbors as seasons and numbers, which have only twelve questions each.
    topic = rng.choice(("after", "after", "before", "before", "season", "number"))
    core, is_unseen = CALENDAR[topic].pick(rng, split)
    if topic in ("after", "before"):
        units = (("day", world.DAYS), ("month", world.MONTHS), ("season", world.SEASONS))
        unit, values = rng.choice(units)
        index = rng.randrange(len(values))
        about = values[index]
        key = values[(index + (1 if topic == "after" else -1)) % len(values)]  # Sunday -> Monday
        text, answer = core.format(u=unit, x=about), f"{capitalized(key)} comes {topic} {about}."
    elif topic == "season":
        about = rng.choice(world.MONTHS)
        key, values = world.SEASON_OF_MONTH[about], world.SEASONS
        text, answer = core.format(x=about), f"{about} is in {key}."
    else:
        index = rng.randrange(12)
        about, key, values = world.MONTHS[index], str(index + 1), ()
        text, answer = core.format(x=about), f"{about} is month number {key} of the year."
    return Question(
        text=as_typed(rng, text),
        answer=answer,
        key=key,
        identity=f"calendar|{core}|{about}",
        rivals=tuple(value for value in values if value not in (key, about)),
        kind="number" if topic == "number" else "words",
        unseen_wording=is_unseen,
    )


ORDER = Paraphrases.table("""
size: which is bigger, {x} or {y} | what is bigger, {x} or {y} | who is bigger, {x} or {y}
size: is {x} or {y} bigger | which of the two is bigger, {x} or {y}
size: tell me which is bigger, {x} or {y} | which one is larger, {x} or {y}
size unseen: tell me which one is larger, {x} or {y}
number: which is more, {x} or {y} | what is more, {x} or {y} | is {x} or {y} more
number: which number is larger, {x} or {y} | which number is bigger, {x} or {y}
number: what is the larger number, {x} or {y} | tell me which is more, {x} or {y}
number: which of the numbers {x} and {y} is larger
number unseen: tell me which number is larger, {x} or {y}
next: what number comes after {x} | which number comes after {x}
next: what is the next number after {x} | count on from {x} | what comes right after {x}
next: which number follows {x}
next unseen: tell me what number comes after {x}
letter: which letter comes after {x} | what letter comes after {x} | what is the letter after {x}
letter: which letter follows {x} in the alphabet | tell me the letter after {x}
letter: what comes after {x} in the alphabet
letter unseen: tell me which letter comes after {x}
""")  # fmt: skip


def ordering_question(rng: Random, split: Split) -> Question:
    """Sizes of animals, numbers up to a hundred, letters of the alphabet."""
    # Letters are rarer: there are only 25 such questions, and thousands of pairs.
    topic = rng.choice(("size", "size", "number", "number", "next", "next", "letter"))
    core, is_unseen = ORDER[topic].pick(rng, split)
    if topic == "size":
        i, j = rng.sample(range(len(world.ANIMALS)), 2)
        x, y = world.ANIMALS[i].name, world.ANIMALS[j].name
        key, other = (x, y) if i > j else (y, x)  # world.ANIMALS is sorted by size
        text = core.format(x=a(x), y=a(y))
        identity, must_contain = f"{x}|{y}", f"{key} is bigger"
        answer = f"{a(key)} is bigger than {a(other)}."
    elif topic == "number":
        i, j = rng.sample(range(1, 100), 2)
        text, key = core.format(x=i, y=j), str(max(i, j))
        identity, must_contain = f"{i}|{j}", f"{key} is more"
        answer = f"{key} is more than {min(i, j)}."
    elif topic == "next":
        i = rng.randrange(1, 100)
        text, key, identity = core.format(x=i), str(i + 1), str(i)
        must_contain, answer = f"{key} comes after", f"{key} comes after {i}."
    else:
        i = rng.randrange(25)  # z has no successor
        identity, key = world.LETTERS[i], world.LETTERS[i + 1]
        text, must_contain = core.format(x=identity), f"letter {key} comes after"
        answer = f"The {must_contain} {identity}."
    return Question(
        text=as_typed(rng, text),
        answer=capitalized(answer),
        key=key,
        must_contain=must_contain,  # both values are in the answer: the key alone proves nothing
        identity=f"order|{core}|{identity}",
        unseen_wording=is_unseen,
    )
