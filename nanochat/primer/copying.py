"""Copying from the context in its simplest form: repeat a text, find a row of a list.

These two families teach the attention heads that reading and multiple choice need: with letters A
to D alone a small model keeps guessing for a long time (dev/LOG.md).
"""

from collections.abc import Callable
from random import Random

from nanochat.primer import world
from nanochat.primer.names import open_name, open_word
from nanochat.primer.question import Passage, Question, Split, draw_series

# Words that are in no list of the world are most of what is repeated: they are copied by letters.
_RANDOM_ITEMS: tuple[Callable[[Random, Split], str], ...] = (
    lambda rng, split: str(rng.randint(0, 9999)),
    lambda rng, split: str(rng.randint(0, 99)),
    lambda rng, split: rng.choice(world.WORDS),
    lambda rng, split: "-".join(rng.choices(world.LETTERS, k=rng.randint(2, 3))),
    lambda rng, split: rng.choice(world.PEOPLE).name,
    lambda rng, split: rng.choice(world.SPOTS),
    lambda rng, split: f"{rng.choice(world.COLOURS)} {rng.choice(world.ITEMS)}",
    open_word,
    open_word,
    open_word,
    lambda rng, split: open_name(rng, split)[0],
    lambda rng, split: f"{open_word(rng, split)} {open_word(rng, split)}",
)

_REQUESTS = (
    "Say after me: {x}.", "Repeat this: {x}.", "Please repeat: {x}", "Copy this: {x}.",
    "Say it again: {x}.", "repeat after me: {x}", "Say this: {x}.", "Write this down: {x}.",
    "Can you say this? {x}.", "Tell me again: {x}.", "say {x}", "repeat {x}",
    "Can you say {x}?", "Please say {x}.", "Now say {x}.", "write {x}",
)  # fmt: skip
_UNSEEN_REQUESTS = (
    "Please say after me: {x}.",
    "Can you repeat this? {x}.",
    "Echo {x}.",
    "I say {x}, you say?",
)


def random_items(rng: Random, split: Split, at_least: int, at_most: int) -> str:
    """Unrelated words, numbers, letters and things: only copying can continue them."""
    count = rng.randint(at_least, at_most)
    return ", ".join(rng.choice(_RANDOM_ITEMS)(rng, split) for _ in range(count))


def repeat_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A request to repeat a few words."""
    wording = rng.choice(_UNSEEN_REQUESTS if unseen else _REQUESTS)
    items = random_items(rng, split, 1, 3)
    return Question(
        text=wording.format(x=items),
        answer=f"{items}.",
        key=items,
        identity=f"repeat|{items}",
        unseen_wording=unseen,
        exact=(items,),
        case_matters=True,
    )


_COLUMNS = (
    *[world.COLOURS] * 3,  # of eight: colours are the values of most multiple-choice questions
    world.WORDS,
    tuple(person.name for person in world.PEOPLE),
    tuple(dict.fromkeys(person.dish for person in world.PEOPLE)),
    tuple(animal.name for animal in world.ANIMALS),
    tuple(town.name for town in world.TOWNS),
)
# Half of the lists have one of 40 names beside each value: these are learned within 50 steps, and
# letters after them. With letters alone nothing is learned in 250 steps.
_NAMES = tuple(f" {name}" for name in world.CHILDREN)
# The whole alphabet: among four letters a guess is right too often to be unlearned.
_LETTERS = tuple(f"={letter}" for letter in world.LETTERS.upper())
_FIND = ("Find {x}.", "And {x}?", "Where is {x}?", "What stands beside {x}?")


def list_series(rng: Random, split: Split) -> list[Question]:
    """A list of values with a name or a letter beside each, and questions about its rows."""
    return draw_series(_list, rng, split, at_least=1, separator="\n")


def _list(rng: Random, split: Split) -> Passage:
    values = rng.sample(rng.choice(_COLUMNS), rng.randint(3, 4))
    labels = rng.sample(rng.choice((_NAMES, _LETTERS)), len(values))
    rows = [value + label for value, label in zip(values, labels, strict=True)]
    text = "".join(f"- {row}\n" for row in rows)
    questions = [
        Question(
            text=rng.choice(_FIND).format(x=value), answer=f"It is {row}.", key=row,
            identity=f"lists|{text}|{value}", exact=tuple(values),
            case_matters=True,
        )
        for value, row in zip(values, rows, strict=True)
    ]  # fmt: skip
    return text, questions


def list_question(rng: Random, split: Split) -> Question:
    """A list, and a question about one of its rows."""
    return list_series(rng, split)[0]
