"""Spelling and counting letters, the calendar, and which of two is larger or comes next."""

from random import Random

from nanochat.primer import names, world
from nanochat.primer.phrasing import Paraphrases, as_typed
from nanochat.primer.question import Question, Split
from nanochat.primer.world import a, capitalized

_NAMES = tuple(row.name.lower() for rows in (world.PEOPLE, world.TOWNS) for row in rows)

SPELLING = Paraphrases.table("""
spell: how do you spell {w} | spell {w} | spell the word {w} | how is {w} spelled | spell {w}
spell: can you spell {w} | what are the letters of {w} | which letters are in {w} | spell {w} for me
spell: how is the word {w} written | how do I write {w} | can you spell the word {w} | {w} spelled
spell: how do you write {w} | spell out {w} | what letters are in {w} | spell: {w}
spell clause: how to spell {w} | how {w} is spelled | how {w} is written | how to write {w}
spell noun: the spelling of {w} | the letters of {w} | the letters of the word {w}
spell unseen: letter by letter, what is {w} | which letters make up {w} | take {w} apart
count: how many {l} are in {w} | how many {l}s are in {w} | how many times is {l} in {w}
count: how many letters {l} are in {w} | how often is the letter {l} in {w}
count: how many {l}'s are in {w} | count the letter {l} in {w} | count the {l}s in {w}
count: how many {l} does {w} have | how many {l} in {w} | how many times does {l} occur in {w}
count: how many {l}s does the word {w} have | how many {l}s in {w}
count clause: how many {l} are in {w} | how often {l} is in {w} | how many {l}s are in {w}
count noun: the number of {l}s in {w} | the number of letters {l} in {w}
count unseen: in {w}, how many letters are {l} | {w} has how many {l}
""")  # fmt: skip


def _spelled_word(rng: Random, split: Split) -> str:
    """A word or a name in lower case, most of them of no list of the world."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(world.WORDS)
    if kind < 0.4:
        return rng.choice(_NAMES)
    if kind < 0.55:
        return names.open_name(rng, split)[0].lower()
    return names.open_word(rng, split)


def _shown(rng: Random, word: str, split: Split) -> str:
    # More often in training: names of the world are tokens, and the answers are in lower case.
    return capitalized(word) if rng.random() < (0.1 if split == "test" else 0.25) else word


def spelling_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A word letter by letter, or how often a letter is in it (through the calculator)."""
    return (_spell if rng.random() < 0.6 else _count)(rng, split, unseen)


def _spell(rng: Random, split: Split, unseen: bool) -> Question:
    word = _spelled_word(rng, split)
    core = SPELLING["spell"].pick(rng, split, unseen=unseen)
    if not unseen and rng.random() < 0.08:
        core = rng.choice(
            ("spell my name, it is {w}", "spell my name: {w}", "my name is {w}, spell it")
        )
    letters = "-".join(word)  # the hyphens keep each letter a token of its own
    return Question(
        text=as_typed(rng, core.format(w=_shown(rng, word, split))),
        answer=f"The word {word} is spelled {letters}.",
        key=letters,
        identity=f"spell|{word}|{core}",
        unseen_wording=unseen,
        exact=(word,),
    )


def _count(rng: Random, split: Split, unseen: bool) -> Question:
    word = _spelled_word(rng, split)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(world.LETTERS)  # or none
    core = SPELLING["count"].pick(rng, split, unseen=unseen)
    number = word.count(letter)
    return Question(
        text=as_typed(rng, core.format(l=letter, w=_shown(rng, word, split))),
        answer=f"The letter {letter} occurs {number} time{'s' * (number != 1)} in {word}.",
        key=str(number),
        identity=f"count|{word}|{letter}|{core}",
        # With a space before it the word is the same tokens as in the question.
        expression=f"' {word}'.count('{letter}')",
        kind="number",
        unseen_wording=unseen,
        exact=(word, letter, f"{letter}s"),
    )


CALENDAR = Paraphrases.table("""
after: what {u} comes after {x} | which {u} comes after {x} | what {u} follows {x}
after: what {u} is after {x} | which {u} follows {x} | what comes after {x}
after: after {x} comes what {u} | and after {x}
after clause: what {u} comes after {x} | which {u} follows {x}
after noun: the {u} after {x} | the next {u} after {x}
after unseen: once {x} is over, what {u} begins | {x} is followed by what {u}
before: what {u} comes before {x} | which {u} comes before {x} | what {u} is before {x}
before: what comes before {x} | before {x} comes what {u} | which {u} is before {x} | and before {x}
before clause: what {u} comes before {x} | which {u} is before {x}
before noun: the {u} before {x}
before unseen: {x} comes after which {u} | what {u} ends when {x} begins
season: in which season is {x} | which season is {x} in | what season is {x} | what season is {x} in
season: {x} is in which season | what season does {x} belong to | which season does {x} belong to
season clause: what season {x} is in | in which season {x} is
season noun: the season of {x}
season unseen: what time of the year is {x} | to which season does {x} belong
number: which number is the month of {x} | what number of the year is {x}
number: which month of the year is {x} | what number does {x} have in the year
number: what place does {x} have in the year
number clause: what number of the year {x} is | which month of the year {x} is
number noun: the number of the month {x}
number unseen: as which month of the year does {x} count
""")  # fmt: skip
_ORDINALS = world.words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)
_FIXED = (  # topics with one answer each
    (("how many days are in a week", "how many days does a week have",
    "how many days are there in a week"),
     "A week has 7 days.", "7 days"),
    (("how many months are in a year", "how many months does a year have"),
    "A year has 12 months.", "12 months"),
    (("how many seasons are there", "how many seasons are in a year"), "A year has 4 seasons.",
    "4 seasons"),
    (("name the seasons", "what are the seasons", "what are the four seasons", "list the seasons"),
     "The seasons are spring, summer, autumn and winter.", "spring, summer, autumn and winter"),
    (("name the days of the week", "what are the days of the week", "list the days",
    "which days are there"),
     f"The days are {', '.join(world.DAYS[:-1])} and Sunday.", ", ".join(world.DAYS[:-1])),
    (("name the months", "what are the months of the year", "list the months",
    "which months are there"),
     f"The months are {', '.join(world.MONTHS[:-1])} and December.", ", ".join(world.MONTHS[:-1])),
)  # fmt: skip


def calendar_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """Days, months and seasons."""
    if not unseen and rng.random() < 0.25:
        return _more_of_the_calendar(rng)
    # Twice as many neighbors as seasons and numbers, which have only twelve questions each.
    topic = rng.choice(("after", "after", "before", "before", "season", "number"))
    core = CALENDAR[topic].pick(rng, split, unseen=unseen)
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
        unseen_wording=unseen,
    )


def _more_of_the_calendar(rng: Random) -> Question:
    kind = rng.random()
    season, index = rng.choice(world.SEASONS), rng.randrange(12)
    if kind < 0.35:
        cores, answer, key = rng.choice(_FIXED)
        core = rng.choice(cores)
    elif kind < 0.55:
        months = [month for month in world.MONTHS if world.SEASON_OF_MONTH[month] == season]
        key = f"{months[0]}, {months[1]} and {months[2]}"
        core = rng.choice(
            ("which months are in {s}", "name the months of {s}", "what months are in {s}")
        )
        core, answer = core.format(s=season), f"{key} are in {season}."
    elif kind < 0.8:
        month = world.MONTHS[index]
        core = rng.choice(("what is the {n} month", "which month is the {n}",
        "what month is number {i}",
                           "which is the {n} month of the year",
                           "what is month {i} of the year"))  # fmt: skip
        core = core.format(n=_ORDINALS[index], i=index + 1)
        answer, key = f"{month} is month number {index + 1} of the year.", month
    else:
        month, shown = (
            world.MONTHS[index],
            rng.choice((season, world.SEASON_OF_MONTH[world.MONTHS[index]])),
        )
        truth = world.SEASON_OF_MONTH[month]
        key = f"so {'yes' if shown == truth else 'no'}"
        core = rng.choice(("is {m} in {s}", "is {m} a month of {s}", "does {m} belong to {s}"))
        core = core.format(m=month, s=shown)
        answer = f"Is it {shown}? {month} is in {truth}, {key}."
    return Question(text=as_typed(rng, core), answer=answer, key=key, identity=f"calendar|{core}")


ORDER = Paraphrases.table("""
bigger: which is bigger, {x} or {y} | what is bigger, {x} or {y} | who is bigger, {x} or {y}
bigger: is {x} or {y} bigger | which of the two is bigger, {x} or {y}
bigger: which one is larger, {x} or {y} | what is larger, {x} or {y} | {x} or {y}, which is bigger
bigger: which animal is bigger, {x} or {y}
bigger clause: which is bigger, {x} or {y} | whether {x} or {y} is bigger
bigger noun: the bigger one of {x} and {y}
bigger unseen: if {x} meets {y}, who is the big one | between {x} and {y}, which is larger
smaller: which is smaller, {x} or {y} | what is smaller, {x} or {y} | is {x} or {y} smaller
smaller: who is smaller, {x} or {y} | which animal is smaller, {x} or {y}
smaller: {x} or {y}, which is smaller
smaller clause: which is smaller, {x} or {y} | whether {x} or {y} is smaller
smaller noun: the smaller one of {x} and {y}
smaller unseen: between {x} and {y}, which is the small one
more: which is more, {x} or {y} | what is more, {x} or {y} | is {x} or {y} more
more: what is bigger, {x} or {y} | which number is larger, {x} or {y}
more: which number is bigger, {x} or {y} | is {x} or {y} bigger
more: which of the numbers {x} and {y} is larger | what is larger, {x} or {y}
more: which is bigger, {x} or {y}
more clause: which is more, {x} or {y} | which number is larger, {x} or {y}
more noun: the larger number, {x} or {y} | the bigger one of {x} and {y}
more unseen: between {x} and {y}, which number is greater
next: what number comes after {x} | which number comes after {x} | what is after {x}
next: what comes after {x} | count on from {x} | what comes right after {x}
next: which number follows {x}
next clause: what number comes after {x} | which number follows {x}
next noun: the next number after {x} | the number after {x}
next unseen: if I count and say {x}, what do I say next
last: what number comes before {x} | which number comes before {x} | what is before {x}
last: what comes before {x}
last clause: what number comes before {x}
last noun: the number before {x}
last unseen: {x} comes right after which number
letter: which letter comes after {x} | what letter comes after {x} | what comes after the letter {x}
letter: which letter follows {x} in the alphabet | what comes after {x} in the alphabet
letter clause: which letter comes after {x} | what letter follows {x}
letter noun: the letter after {x} | the next letter after {x}
letter unseen: in the alphabet, {x} is followed by what
""")  # fmt: skip


def ordering_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """Sizes of animals, numbers up to a hundred, letters of the alphabet."""
    # Letters are rarer: there are only 25 such questions, and thousands of pairs.
    topic = rng.choice(("bigger", "bigger", "smaller", "more", "next", "last", "letter"))
    if topic == "more" and not unseen and rng.random() < 0.15:
        return _extreme(rng)
    if topic in ("bigger", "smaller"):
        return _sizes(rng, split, topic, unseen)
    core = ORDER[topic].pick(rng, split, unseen=unseen)
    if topic == "more":
        i, j = rng.sample(range(1, rng.choice((100, 100, 1000))), 2)
        text, key = core.format(x=i, y=j), str(max(i, j))
        identity, must_contain = f"{i}|{j}", f"{key} is more"
        answer = f"Of {i} and {j}, {must_contain}."
    elif topic in ("next", "last"):
        i = rng.randrange(1, 100)
        step, side = (1, "after") if topic == "next" else (-1, "before")
        text, key, identity = core.format(x=i), str(i + step), str(i)
        must_contain = f"{side} {i} comes {key}"
        answer = f"{must_contain}."
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
        unseen_wording=unseen,
    )


def _extreme(rng: Random) -> Question:
    """The biggest or the smallest of all animals."""
    word, row = rng.choice((("biggest", world.ANIMALS[-1]), ("smallest", world.ANIMALS[0])))
    core = rng.choice(("what is the {e} animal", "which animal is the {e}", "name the {e} animal"))
    return Question(
        text=as_typed(rng, core.format(e=word)), answer=f"The {row.name} is the {word} animal.",
        key=row.name, identity=f"order|{core}|{word}",
    )  # fmt: skip


def compared(x: str, y: str) -> tuple[str, str, str]:
    """A sentence on which of two animals is bigger, without its full stop; the bigger, the smaller.

    It says both before one of them, and always the bigger one. If it said the one that is asked
    for, bigger or smaller, a single word would take two decisions.
    """
    sizes = [animal.name for animal in world.ANIMALS]  # sorted by size
    smaller, bigger = sorted((x, y), key=sizes.index)
    return f"Of {a(x)} and {a(y)}, the {bigger} is bigger", bigger, smaller


def _sizes(rng: Random, split: Split, topic: str, unseen: bool) -> Question:
    """Which of two animals is bigger or smaller."""
    x, y = (animal.name for animal in rng.sample(world.ANIMALS, 2))
    said, bigger, smaller = compared(x, y)
    key = bigger if topic == "bigger" else smaller
    is_yes_no = not unseen and rng.random() < 0.25
    core = (
        f"is {{x}} {topic} than {{y}}"
        if is_yes_no
        else ORDER[topic].pick(rng, split, unseen=unseen)
    )
    must_contain = f"{key} is {topic}"
    answer = said if topic == "bigger" else f"{said} and the {smaller} is smaller"
    if is_yes_no:
        must_contain = f"so {'yes' if key == x else 'no'}"
        answer = f"{answer}, {must_contain}"
    article = (lambda noun: f"the {noun}") if rng.random() < 0.2 else a
    return Question(
        text=as_typed(rng, core.format(x=article(x), y=article(y))), answer=f"{answer}.", key=key,
        must_contain=must_contain, identity=f"order|{core}|{x}|{y}", unseen_wording=unseen,
    )  # fmt: skip
