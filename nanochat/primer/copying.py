"""Copying from the context in its simplest form: repeat a text, find a row of a list.

These two families teach the attention heads that reading and multiple choice need: with letters A
to D alone a small model keeps guessing for a long time (dev/LOG.md).
"""

from collections.abc import Callable
from random import Random

from nanochat.primer import world
from nanochat.primer.question import Paraphrases, Passage, Question, Split, draw_series
from nanochat.primer.words import WORDS

_RANDOM_ITEMS: tuple[Callable[[Random], str], ...] = (
    lambda rng: str(rng.randint(0, 9999)),
    lambda rng: str(rng.randint(0, 99)),
    lambda rng: rng.choice(WORDS),
    lambda rng: "-".join(rng.choices(world.LETTERS, k=rng.randint(2, 3))),
    lambda rng: rng.choice(world.PEOPLE).name,
    lambda rng: rng.choice(world.SPOTS),
    lambda rng: f"{rng.choice(world.COLOURS)} {rng.choice(world.ITEMS)}",
)

_REQUESTS = Paraphrases(
    "Say after me: {x}.", "Repeat this: {x}.", "Please repeat: {x}", "Copy this: {x}.",
    "Say it again: {x}.", "repeat after me: {x}", "Say this: {x}.", "Write this down: {x}.",
    "Can you say this? {x}.", "Tell me again: {x}.",
    unseen=("Please say after me: {x}.", "Can you repeat this? {x}."),
)  # fmt: skip


def random_items(rng: Random, at_least: int, at_most: int) -> str:
    """Unrelated words, numbers, letters and things: only copying can continue them."""
    items = [rng.choice(_RANDOM_ITEMS)(rng) for _ in range(rng.randint(at_least, at_most))]
    return ", ".join(items)


def repeat_question(rng: Random, split: Split) -> Question:
    """A request to repeat a few words."""
    wording, is_unseen = _REQUESTS.pick(rng, split)
    items = random_items(rng, 2, 3)
    return Question(
        text=wording.format(x=items),
        answer=f"{items}.",
        key=items,
        identity=f"repeat|{items}",
        unseen_wording=is_unseen,
    )


_COLUMNS = (
    *[world.COLOURS] * 3,  # of eight: colours are the values of most multiple-choice questions
    WORDS,
    tuple(person.name for person in world.PEOPLE),
    tuple(dict.fromkeys(person.dish for person in world.PEOPLE)),
    tuple(animal.name for animal in world.ANIMALS),
    tuple(town.name for town in world.TOWNS),
)
# Half of the lists have one of 40 names beside each value: these are learned within 50 steps, and
# letters after them. With letters alone nothing is learned in 250 steps.
_NAMES = tuple(f" {name}" for name in world.CHILDREN)
# The whole alphabet: among four letters a guess is right too often to be unlearned.
_LETTERS = tuple(f"={letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_FIND = ("Find {x}.", "And {x}?", "Where is {x}?", "What stands beside {x}?")


def list_series(rng: Random, split: Split) -> list[Question]:
    """A list of values with a name or a letter beside each, and questions about its rows."""
    return draw_series(_list, rng, split, at_least=1, separator="\n")


def _list(rng: Random) -> Passage:
    values = rng.sample(rng.choice(_COLUMNS), rng.randint(3, 4))
    labels = rng.sample(rng.choice((_NAMES, _LETTERS)), len(values))
    rows = [value + label for value, label in zip(values, labels, strict=True)]
    text = "".join(f"- {row}\n" for row in rows)
    questions = [
        Question(
            text=rng.choice(_FIND).format(x=value), answer=f"It is {row}.", key=row,
            identity=f"lists|{text}|{value}",
        )
        for value, row in zip(values, rows, strict=True)
    ]  # fmt: skip
    return text, questions


def list_question(rng: Random, split: Split) -> Question:
    """A list, and a question about one of its rows."""
    return list_series(rng, split)[0]
