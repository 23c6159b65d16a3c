"""To say again what was said: the plainest practice of looking back."""

from collections.abc import Callable

from nanochat.primer.question import Dice, Question, Split, pick_wording
from nanochat.primer.words import WORDS
from nanochat.primer.world import COLOURS, ITEMS, LETTERS, PEOPLE, SPOTS

_SAYINGS: tuple[Callable[[Dice], str], ...] = (
    lambda dice: str(dice.randint(0, 9999)),
    lambda dice: str(dice.randint(0, 99)),
    lambda dice: dice.choice(WORDS),
    lambda dice: "-".join(dice.choices(LETTERS, k=dice.randint(2, 5))),
    lambda dice: dice.choice(PEOPLE).name,
    lambda dice: dice.choice(SPOTS),
    lambda dice: f"{dice.choice(COLOURS)} {dice.choice(ITEMS)[0]}",
)

_REQUESTS = (
    "Say after me: {x}.", "Repeat this: {x}.", "Please repeat: {x}", "Copy this: {x}.",
    "Say it again: {x}.", "repeat after me: {x}", "Say this: {x}.", "Write this down: {x}.",
    "Can you say this? {x}.", "Tell me again: {x}.",
)  # fmt: skip
_UNSEEN_REQUESTS = ("Please say after me: {x}.", "Can you repeat this? {x}.")


def sayings(dice: Dice, at_least: int, at_most: int) -> str:
    """Words, numbers, letters and things that have nothing to do with each other."""
    said = [dice.choice(_SAYINGS)(dice) for _ in range(dice.randint(at_least, at_most))]
    return ", ".join(said)


def repeat_question(dice: Dice, split: Split) -> Question:
    """A request to say again a few words."""
    wording, is_unseen = pick_wording(dice, split, _REQUESTS, _UNSEEN_REQUESTS)
    said = sayings(dice, 2, 5)
    return Question(
        text=wording.format(x=said),
        answer=f"{said}.",
        key=said,
        identity=f"repeat|{said}",
        unseen_wording=is_unseen,
    )
