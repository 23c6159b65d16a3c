"""Looking back at its plainest: to say again what was said, to find a row of a list.

A model that has learned this finds its way in stories and among the letters of a choice; one that
is only shown the letters A to D guesses them for long (dev/LOG.md).
"""

from collections.abc import Callable
from dataclasses import replace

from nanochat.primer.question import Question, Rng, Split, pick_wording, side
from nanochat.primer.words import WORDS
from nanochat.primer.world import (
    ANIMALS,
    BOYS,
    COLOURS,
    GIRLS,
    ITEMS,
    LETTERS,
    PEOPLE,
    SPOTS,
    TOWNS,
)

_SAYINGS: tuple[Callable[[Rng], str], ...] = (
    lambda rng: str(rng.randint(0, 9999)),
    lambda rng: str(rng.randint(0, 99)),
    lambda rng: rng.choice(WORDS),
    lambda rng: "-".join(rng.choices(LETTERS, k=rng.randint(2, 3))),
    lambda rng: rng.choice(PEOPLE).name,
    lambda rng: rng.choice(SPOTS),
    lambda rng: f"{rng.choice(COLOURS)} {rng.choice(ITEMS)[0]}",
)

_REQUESTS = (
    "Say after me: {x}.", "Repeat this: {x}.", "Please repeat: {x}", "Copy this: {x}.",
    "Say it again: {x}.", "repeat after me: {x}", "Say this: {x}.", "Write this down: {x}.",
    "Can you say this? {x}.", "Tell me again: {x}.",
)  # fmt: skip
_UNSEEN_REQUESTS = ("Please say after me: {x}.", "Can you repeat this? {x}.")


def sayings(rng: Rng, at_least: int, at_most: int) -> str:
    """Words, numbers, letters and things that have nothing to do with each other."""
    said = [rng.choice(_SAYINGS)(rng) for _ in range(rng.randint(at_least, at_most))]
    return ", ".join(said)


def repeat_question(rng: Rng, split: Split) -> Question:
    """A request to say again a few words."""
    wording, is_unseen = pick_wording(rng, split, _REQUESTS, _UNSEEN_REQUESTS)
    said = sayings(rng, 2, 3)
    return Question(
        text=wording.format(x=said),
        answer=f"{said}.",
        key=said,
        identity=f"repeat|{said}",
        unseen_wording=is_unseen,
    )


_COLUMNS = (
    COLOURS,
    COLOURS,
    COLOURS,
    WORDS,
    tuple(person.name for person in PEOPLE),
    tuple(dict.fromkeys(person.dish for person in PEOPLE)),
    tuple(animal.name for animal in ANIMALS),
    tuple(town.name for town in TOWNS),
)
_NAMES = tuple(f" {name}" for name in (*GIRLS, *BOYS))
_LETTERS = tuple(f"={letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_FIND = ("Find {x}.", "And {x}?", "Where is {x}?", "What stands beside {x}?")


def several_rows(rng: Rng, split: Split) -> list[Question]:
    """A list of things with a name or a letter beside each, and what stands beside which.

    The list stands before the first of the questions, which fall on one side of the split.
    """
    asked: list[Question] = []
    while not asked:
        things = rng.sample(rng.choice(_COLUMNS), rng.randint(3, 4))
        beside = rng.sample(rng.choice((_NAMES, _LETTERS)), len(things))
        rows = [thing + mark for thing, mark in zip(things, beside, strict=True)]
        text = "".join(f"- {row}\n" for row in rows)
        asked = [
            Question(
                text=rng.choice(_FIND).format(x=thing), answer=f"It is {row}.", key=row,
                identity=f"lists|{text}|{thing}",
            )
            for thing, row in zip(things, rows, strict=True)
        ]  # fmt: skip
        asked = [question for question in asked if side(question.identity) == split]
    rng.shuffle(asked)
    return [replace(asked[0], text=f"{text}\n{asked[0].text}"), *asked[1:]]


def list_question(rng: Rng, split: Split) -> Question:
    """A list, and a question about one of its rows."""
    return several_rows(rng, split)[0]
