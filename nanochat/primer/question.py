"""The `Question` type, and how questions are divided into a training and a test split."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

Split = Literal["train", "test"]
Messages = list[dict[str, Any]]

TEST_PERCENT = 10  # enough held-out questions in every family, and little training text is lost


@dataclass(frozen=True)
class Question:
    """One question with its known answer."""

    text: str
    answer: str  # a complete short sentence
    key: str  # the core of the answer
    identity: str  # hashed by split_of: equal identities are the same question
    expression: str = ""  # the calculator's input, if it is needed; its output is the key
    must_contain: str = ""  # graded in place of `key` where the key alone is ambiguous
    rivals: tuple[str, ...] = ()  # values of the same kind that a right answer does not contain
    kind: Literal["words", "number", "choice", "refusal"] = "words"  # how tasks.primer grades it
    unseen_wording: bool = False  # a phrasing that training never uses
    exact: tuple[str, ...] = ()  # what the answer copies from the question: never misspelled
    case_matters: bool = False  # the answer copies capitals, too

    def messages(self) -> Messages:
        """The question, and its answer as a text or as the parts of a tool call with a text."""
        parts = [
            {"type": "python", "text": self.expression},
            {"type": "python_output", "text": self.key},
            {"type": "text", "text": self.answer},
        ]
        return [
            {"role": "user", "content": self.text},
            {"role": "assistant", "content": parts if self.expression else self.answer},
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
        # An unseen phrasing is held out whatever its hash says.
        if split == "test" and question.unseen_wording:
            return question
        if split_of(question.identity) == split:
            return question


def draw_series(
    make: Callable[[Random, Split], Passage], rng: Random, split: Split, at_least: int,
    separator: str,
) -> list[Question]:  # fmt: skip
    """Questions of the split about one text, in random order; the first one contains the text."""
    questions: list[Question] = []
    while len(questions) < at_least:
        text, questions = make(rng, split)
        questions = [question for question in questions if split_of(question.identity) == split]
    rng.shuffle(questions)
    return [replace(questions[0], text=f"{text}{separator}{questions[0].text}"), *questions[1:]]


def one_of(rng: Random, *options: str) -> str:
    return rng.choice(options)
