"""The `Question` type, the train/test split, and how a question is phrased by a user."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from nanochat.primer.world import capitalized, words

Split = Literal["train", "test"]
Messages = list[dict[str, Any]]

TEST_PERCENT = 10  # enough held-out questions in every family, and little training text is lost
UNSEEN_SHARE = 0.15  # of test questions: the rest measures new questions in known paraphrases


@dataclass(frozen=True)
class Question:
    """One question with its known answer."""

    text: str
    answer: str  # a complete short sentence
    key: str  # the core of the answer; on its own it is the terse answer
    identity: str  # hashed by split_of: equal identities are the same question
    expression: str = ""  # the calculator's input, if it is needed; its output is the key
    must_contain: str = ""  # graded in place of `key` where the key alone is ambiguous
    rivals: tuple[str, ...] = ()  # values of the same kind that a right answer does not contain
    kind: Literal["words", "number", "choice"] = "words"  # how tasks.primer grades it
    unseen_wording: bool = False  # a paraphrase that training never uses

    def messages(self, *, terse: bool = False) -> Messages:
        """The question, and its answer as a text or as the parts of a tool call with a text."""
        # The answer to a choice stays complete: the value in it is what leads to the letter.
        is_key = terse and self.kind != "choice"
        text = capitalized(self.key) + "." if is_key else self.answer
        parts = [
            {"type": "python", "text": self.expression},
            {"type": "python_output", "text": self.key},
            {"type": "text", "text": text},
        ]
        return [
            {"role": "user", "content": self.text},
            {"role": "assistant", "content": parts if self.expression else text},
        ]


Passage = tuple[str, list[Question]]  # a text, and questions about it that do not contain it


def stable_hash(text: str) -> int:
    """64 bits that are the same in every process, unlike hash()."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def split_of(identity: str) -> Split:
    """The split of a question: one in ten is held out, by a hash of its identity.

    A hash, not a random draw: a question then has the same split in every document, conversation,
    seed and version of the world, so that nothing held out occurs in training by chance.
    """
    # Capitals and punctuation are ignored: a missing full stop does not make a new question.
    normalized = " ".join(re.findall(r"[a-z0-9+*/|-]+", identity.lower()))
    return "test" if stable_hash(normalized) % 100 < TEST_PERCENT else "train"


def draw(make: Callable[[Random, Split], Question], rng: Random, split: Split) -> Question:
    """The first question of `make` that belongs to the split (rejection sampling)."""
    while True:
        question = make(rng, split)
        # An unseen paraphrase is held out whatever its hash says.
        if split == "test" and question.unseen_wording:
            return question
        if split_of(question.identity) == split:
            return question


def draw_series(
    make: Callable[[Random], Passage], rng: Random, split: Split, at_least: int, separator: str
) -> list[Question]:
    """Questions of the split about one text, in random order; the first one contains the text."""
    questions: list[Question] = []
    while len(questions) < at_least:
        text, questions = make(rng)
        questions = [question for question in questions if split_of(question.identity) == split]
    rng.shuffle(questions)
    return [replace(questions[0], text=f"{text}{separator}{questions[0].text}"), *questions[1:]]


class Paraphrases:
    """Several ways to ask for the same thing; those in `unseen` are kept for the test split."""

    def __init__(self, *seen: str, unseen: tuple[str, ...]) -> None:
        self.seen, self.unseen = seen, unseen

    @classmethod
    def table(cls, text: str) -> dict[str, "Paraphrases"]:
        """Paraphrases by topic, from lines "topic: a | b"; those of "topic unseen" are held out."""
        options: dict[str, list[str]] = {}
        for line in text.strip().splitlines():
            topic, _, paraphrases = line.partition(": ")
            options.setdefault(topic, []).extend(paraphrases.split(" | "))
        return {
            topic: cls(*seen, unseen=tuple(options[f"{topic} unseen"]))
            for topic, seen in options.items()
            if not topic.endswith(" unseen")
        }

    def pick(self, rng: Random, split: Split) -> tuple[str, bool]:
        """A paraphrase, and whether it is one that training never uses."""
        if split == "test" and rng.random() < UNSEEN_SHARE:
            return rng.choice(self.unseen), True
        return rng.choice(self.seen), False


def one_of(rng: Random, *options: str) -> str:
    return rng.choice(options)


# A third of the openings is empty: most people begin with the question itself.
OPENINGS = (
    "", "", "", "", "", "", "Hi! ", "Hello! ", "Hey, ", "Please tell me: ", "Say, ",
    "Can you help me? ", "A question: ", "I have a question. ", "Do you know this? ", "So, ",
    "Okay, ", "Quick question: ", "Hello nanochat, ",
)  # fmt: skip
# First words of a request, which ends with a full stop; everything else ends with a question mark.
IMPERATIVES = words("""
    tell name spell count calculate add multiply divide work compute take subtract share I
""")  # fmt: skip


def as_typed(rng: Random, core: str) -> str:
    """A core such as "what colour is the fox" with greeting, capitals and punctuation, or without.

    The order of the draws is part of the world: another order changes every later text of a seed.
    """
    if "colour" in core and rng.random() < 0.4:  # both spellings; answers use "colour"
        core = core.replace("colour", "color")
    opening = rng.choice(OPENINGS)
    style = rng.random()
    if style < 0.12:  # typed in a hurry: lower case, no punctuation
        return opening.lower() + core
    end = "." if core.split()[0] in IMPERATIVES else "?"
    if style < 0.24:
        end = ", please" + end
    elif style < 0.34:
        end = ""
    if not opening or opening.endswith((". ", "! ", "? ")):  # not after a comma or a colon
        core = capitalized(core)
    return opening + core + end
