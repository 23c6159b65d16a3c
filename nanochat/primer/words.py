"""Spelling and counting letters, days and months, and what comes before what."""

from nanochat.primer.question import Question, Rng, Split, dress, pick_wording
from nanochat.primer.world import (
    ANIMALS,
    DAYS,
    LETTERS,
    MONTHS,
    SEASON_OF_MONTH,
    SEASONS,
    a,
    words_to_spell,
)

WORDS = words_to_spell()

SPELL = (
    (
        "how do you spell {w}", "spell {w}", "spell the word {w}", "how is {w} spelled",
        "can you spell {w}", "what are the letters of {w}", "tell me the letters of {w}",
        "which letters are in {w}", "spell {w} for me", "how is the word {w} written",
        "how do I write {w}", "letter by letter, what is {w}",
    ),
    ("can you spell the word {w}", "tell me how to spell {w}"),
)  # fmt: skip
COUNT = (
    (
        "how many {l} are in {w}", "how many {l}s are in {w}", "how many times is {l} in {w}",
        "how many letters {l} are in {w}", "how often is the letter {l} in {w}",
        "count the letter {l} in {w}", "count the {l}s in {w}", "how many {l} does {w} have",
        "how many times does {l} stand in {w}", "tell me how many {l} are in {w}",
        "how many {l} in {w}", "how many {l} are there in the word {w}",
    ),
    ("tell me how many times {l} is in {w}", "how many {l}s are in the word {w}"),
)  # fmt: skip


def spelling_question(rng: Rng, split: Split) -> Question:
    """A word letter by letter, or how often a letter is in it (through the calculator)."""
    return _spell(rng, split) if rng.random() < 0.5 else _count(rng, split)


def _spell(rng: Rng, split: Split) -> Question:
    word = rng.choice(WORDS)
    core, is_unseen = pick_wording(rng, split, *SPELL)
    letters = "-".join(word)
    return Question(
        text=dress(rng, core.format(w=word)),
        answer=f"The word {word} is spelled {letters}.",
        key=letters,
        identity=f"spell|{word}|{core}",
        unseen_wording=is_unseen,
    )


def _count(rng: Rng, split: Split) -> Question:
    word = rng.choice(WORDS)
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(LETTERS)
    core, is_unseen = pick_wording(rng, split, *COUNT)
    number = word.count(letter)
    return Question(
        text=dress(rng, core.format(l=letter, w=word)),
        answer=f"The letter {letter} is {number} time{'s' * (number != 1)} in {word}.",
        key=str(number),
        identity=f"count|{word}|{letter}|{core}",
        expression=f"'{word}'.count('{letter}')",
        result=str(number),
        kind="number",
        unseen_wording=is_unseen,
    )


CALENDAR: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "after": (
        (
            "what {u} comes after {x}", "which {u} comes after {x}", "what {u} follows {x}",
            "what is the {u} after {x}", "which {u} follows {x}", "tell me the {u} after {x}",
            "what comes after {x}", "after {x} comes what {u}", "do you know the {u} after {x}",
        ),
        ("tell me what {u} comes after {x}",),
    ),
    "before": (
        (
            "what {u} comes before {x}", "which {u} comes before {x}", "what is the {u} before {x}",
            "tell me the {u} before {x}", "what comes before {x}", "before {x} comes what {u}",
            "which {u} is before {x}", "do you know the {u} before {x}",
        ),
        ("tell me what {u} comes before {x}",),
    ),
    "season": (
        (
            "in which season is {x}", "which season is {x} in", "what season is {x}",
            "what is the season of {x}", "tell me the season of {x}", "{x} is in which season",
            "what season does {x} belong to", "which season does {x} belong to",
        ),
        ("do you know what season {x} is",),
    ),
    "number": (
        (
            "which number is the month of {x}", "what number of the year is {x}",
            "which month of the year is {x}", "what number does {x} have in the year",
            "tell me the number of the month {x}", "what place does {x} have in the year",
        ),
        ("tell me what number of the year {x} is",),
    ),
}  # fmt: skip


def calendar_question(rng: Rng, split: Split) -> Question:
    """Days, months and seasons."""
    topic = rng.choice(("after", "after", "before", "before", "season", "number"))
    core, is_unseen = pick_wording(rng, split, *CALENDAR[topic])
    if topic in ("after", "before"):
        unit, ring = rng.choice((("day", DAYS), ("month", MONTHS), ("season", SEASONS)))
        at = rng.randrange(len(ring))
        key = ring[(at + (1 if topic == "after" else -1)) % len(ring)]
        text, about = core.format(u=unit, x=ring[at]), ring[at]
        first = key[0].upper() + key[1:]
        answer, values = f"{first} comes {topic} {about}.", ring
    elif topic == "season":
        about = rng.choice(MONTHS)
        key, values = SEASON_OF_MONTH[about], SEASONS
        text, answer = core.format(x=about), f"{about} is in {key}."
    else:
        at = rng.randrange(12)
        about, key, values = MONTHS[at], str(at + 1), ()
        text, answer = core.format(x=about), f"{about} is month number {key} of the year."
    return Question(
        text=dress(rng, text),
        answer=answer,
        key=key,
        identity=f"calendar|{core}|{about}",
        rivals=tuple(value for value in values if value not in (key, about)),
        kind="number" if topic == "number" else "words",
        unseen_wording=is_unseen,
    )


ORDER: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "size": (
        (
            "which is bigger, {x} or {y}", "what is bigger, {x} or {y}",
            "who is bigger, {x} or {y}", "is {x} or {y} bigger",
            "which of the two is bigger, {x} or {y}", "tell me which is bigger, {x} or {y}",
            "which one is larger, {x} or {y}",
        ),
        ("tell me which one is larger, {x} or {y}",),
    ),
    "number": (
        (
            "which is more, {x} or {y}", "what is more, {x} or {y}", "is {x} or {y} more",
            "which number is larger, {x} or {y}", "which number is bigger, {x} or {y}",
            "what is the larger number, {x} or {y}", "tell me which is more, {x} or {y}",
            "which of the numbers {x} and {y} is larger",
        ),
        ("tell me which number is larger, {x} or {y}",),
    ),
    "next": (
        (
            "what number comes after {x}", "which number comes after {x}",
            "what is the next number after {x}", "count on from {x}", "what comes right after {x}",
            "which number follows {x}",
        ),
        ("tell me what number comes after {x}",),
    ),
    "letter": (
        (
            "which letter comes after {x}", "what letter comes after {x}",
            "what is the letter after {x}", "which letter follows {x} in the alphabet",
            "tell me the letter after {x}", "what comes after {x} in the alphabet",
        ),
        ("tell me which letter comes after {x}",),
    ),
}  # fmt: skip


def ordering_question(rng: Rng, split: Split) -> Question:
    """Sizes of animals, numbers up to a hundred, letters."""
    topic = rng.choice(("size", "size", "number", "number", "next", "next", "letter"))
    core, is_unseen = pick_wording(rng, split, *ORDER[topic])
    if topic == "size":
        i, j = rng.sample(range(len(ANIMALS)), 2)
        x, y = ANIMALS[i].name, ANIMALS[j].name
        key, other = (x, y) if i > j else (y, x)
        text = core.format(x=a(x), y=a(y))
        identity, needle = f"{x}|{y}", f"{key} is bigger"
        answer = f"{a(key)} is bigger than {a(other)}."
    elif topic == "number":
        i, j = rng.sample(range(1, 100), 2)
        text, key = core.format(x=i, y=j), str(max(i, j))
        identity, needle = f"{i}|{j}", f"{key} is more"
        answer = f"{key} is more than {min(i, j)}."
    elif topic == "next":
        i = rng.randrange(1, 100)
        text, key, identity = core.format(x=i), str(i + 1), str(i)
        needle, answer = f"{key} comes after", f"{key} comes after {i}."
    else:
        i = rng.randrange(25)
        text, key, identity = core.format(x=LETTERS[i]), LETTERS[i + 1], LETTERS[i]
        needle = f"letter {key} comes after"
        answer = f"The {needle} {LETTERS[i]}."
    return Question(
        text=dress(rng, text),
        answer=answer[0].upper() + answer[1:],
        key=key,
        needle=needle,
        identity=f"order|{core}|{identity}",
        unseen_wording=is_unseen,
    )
