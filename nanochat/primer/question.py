"""What a question is, how it is worded, and on which side of the split it falls."""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "test"]
Rng = random.Random
TEST_PERCENT = 10

Parts = list[dict[str, str]]


@dataclass(frozen=True)
class Question:
    """One question with its known answer."""

    text: str
    answer: str
    """A whole short sentence."""
    key: str
    """The heart of the answer; alone it is the terse answer."""
    identity: str
    """What makes it this question; decides whether it is trained on or held out."""
    expression: str = ""
    """For the calculator, when it takes one."""
    result: str = ""
    """What the calculator gives."""
    needle: str = ""
    """Words that the answer must hold, when the key alone would not tell right from wrong."""
    rivals: tuple[str, ...] = ()
    """What must not be in the answer."""
    kind: Literal["words", "number", "choice"] = "words"
    unseen_wording: bool = False
    """Asked in a way that training never uses."""

    def content(self, *, terse: bool) -> str | Parts:
        """The assistant's side of a conversation."""
        is_key = terse and self.kind != "choice"
        text = self.key[0].upper() + self.key[1:] + "." if is_key else self.answer
        if not self.expression:
            return text
        return [
            {"type": "python", "text": self.expression},
            {"type": "python_output", "text": self.result},
            {"type": "text", "text": text},
        ]


def side(identity: str) -> Split:
    """Where a question belongs: one in ten is held out, by a hash of what it is.

    Capitals and punctuation make no difference: who drops a full stop asks the same.
    """
    words = " ".join(re.findall(r"[a-z0-9+*/|-]+", identity.lower()))
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "little") % 100 < TEST_PERCENT else "train"


def draw(make: Callable[[Rng, Split], Question], rng: Rng, split: Split) -> Question:
    """Questions are made until one falls on the side that is asked for."""
    while True:
        question = make(rng, split)
        if split == "test" and question.unseen_wording:
            return question
        if side(question.identity) == split:
            return question


def pick_wording(
    rng: Rng, split: Split, wordings: Sequence[str], unseen: Sequence[str]
) -> tuple[str, bool]:
    """A way to ask, and whether it is one that training never uses."""
    if split == "test" and unseen and rng.random() < 0.15:
        return rng.choice(unseen), True
    return rng.choice(wordings), False


OPENINGS = (
    "", "", "", "", "", "", "Hi! ", "Hello! ", "Hey, ", "Please tell me: ", "Say, ",
    "Can you help me? ", "A question: ", "I have a question. ", "Do you know this? ", "So, ",
    "Okay, ", "Quick question: ", "Hello nanochat, ",
)  # fmt: skip


COMMANDS = (
    "tell", "name", "spell", "count", "calculate", "add", "multiply", "divide", "work", "compute",
    "take", "subtract", "share", "I",
)  # fmt: skip


def dress(rng: Rng, core: str) -> str:
    """A core such as "what colour is the fox" as somebody would type it."""
    if "colour" in core and rng.random() < 0.4:
        core = core.replace("colour", "color")
    opening = rng.choice(OPENINGS)
    roll = rng.random()
    if roll < 0.12:  # in a hurry: small letters, no mark
        return opening.lower() + core
    end = "." if core.split()[0] in COMMANDS else "?"
    if roll < 0.24:
        end = ", please" + end
    elif roll < 0.34:
        end = ""
    if not opening or opening.endswith((". ", "! ", "? ")):
        core = core[0].upper() + core[1:]
    return opening + core + end


def exchange(question: Question, *, terse: bool = False) -> list[dict[str, Any]]:
    """The question and its answer as two messages."""
    return [
        {"role": "user", "content": question.text},
        {"role": "assistant", "content": question.content(terse=terse)},
    ]
