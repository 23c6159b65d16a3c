"""The built-in world: endless first-reader text, and questions with known answers.

    document(seed, index)                          a text for pretraining
    conversation(seed, index, split="train")       a conversation for the chat stages

Both depend on their arguments alone. Questions of split "test" never occur in training: a hash of
what is asked, and for numbers of the numbers, decides the side (see question.py).
"""

import hashlib
import random
from pathlib import Path
from typing import Any, Literal

from nanochat.primer import base_text
from nanochat.primer.facts import fact_question, unknown_question
from nanochat.primer.listening import list_question, repeat_question, several_rows
from nanochat.primer.numbers import sum_question, word_problem
from nanochat.primer.question import Question, Rng, Split, draw, exchange
from nanochat.primer.reading import reading_question, several_questions
from nanochat.primer.talk import (
    choice_question,
    memory_conversation,
    several_choices,
    talk_question,
)
from nanochat.primer.words import calendar_question, ordering_question, spelling_question

Stage = Literal["mid", "sft", "rl"]
Conversation = dict[str, Any]

_MAKERS = {
    "facts": fact_question,
    "unknown": unknown_question,
    "reading": reading_question,
    "arithmetic": sum_question,
    "word_problems": word_problem,
    "spelling": spelling_question,
    "calendar": calendar_question,
    "ordering": ordering_question,
    "choice": choice_question,
    "repeat": repeat_question,
    "lists": list_question,
    "talk": talk_question,
}
_MAKERS_OF_SEVERAL = {
    "reading": several_questions,
    "choice": several_choices,
    "lists": several_rows,
}
FAMILIES = (*_MAKERS, "memory")

# How often each stage sees a family: what is learned last is practised most.
SHARES: dict[Stage, dict[str, float]] = {
    "mid": {
        "facts": 9, "unknown": 3, "reading": 16, "arithmetic": 8, "word_problems": 4, "repeat": 5,
        "lists": 14, "spelling": 10, "calendar": 4, "ordering": 8, "choice": 14, "talk": 2,
        "memory": 5,
    },
    "sft": {
        "facts": 7, "unknown": 3, "reading": 22, "arithmetic": 8, "word_problems": 4, "repeat": 5,
        "lists": 8, "spelling": 13, "calendar": 3, "ordering": 11, "choice": 11, "talk": 3,
        "memory": 5,
    },
    "rl": {"word_problems": 1},
}  # fmt: skip
TERSE_SHARE = {"mid": 0.5, "sft": 0.0, "rl": 0.0}
FOLLOW_UP_SHARE = 0.25
SEVERAL_QUESTIONS_SHARE = 0.8


def document(seed: int, index: int, split: Literal["train", "val"] = "train") -> str:
    """A text of the world; those of split "val" hold only questions that are held out."""
    rng = _dice("document", split, seed, index)
    return base_text.document(rng, "train" if split == "train" else "test")


def fingerprint() -> str:
    """Changes whenever the world's texts may: what is made of an older world is not of this one."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def conversation(
    seed: int,
    index: int,
    split: Split = "train",
    family: str | None = None,
    stage: Stage = "sft",
) -> Conversation:
    """A conversation of one or several turns, and what its last answer is checked against.

    family: one of FAMILIES, or None for the stage's mixture.
    """
    rng = _dice("conversation", split, seed, index, stage, family or "")
    is_terse = rng.random() < TERSE_SHARE[stage]
    earlier, question, family = _last_question(rng, split, family, stage, is_terse)
    if split == "train" and family != "choice" and not earlier and rng.random() < FOLLOW_UP_SHARE:
        earlier = _small_beginning(rng, is_terse)
    return {
        "messages": [*earlier, *exchange(question, terse=is_terse)],
        "family": family,
        "answer": question.needle or question.key,
        "rivals": list(question.rivals),
        "kind": question.kind,
        "unseen_wording": question.unseen_wording,
    }


def _last_question(
    rng: Rng, split: Split, family: str | None, stage: Stage, is_terse: bool
) -> tuple[list[dict[str, Any]], Question, str]:
    shares = SHARES[stage]
    family = family or rng.choices(list(shares), list(shares.values()))[0]
    if family == "memory":
        earlier, question = memory_conversation(rng, split, is_terse)
        return list(earlier), question, family
    asks_several = split == "train" and rng.random() < SEVERAL_QUESTIONS_SHARE
    if asks_several and family in _MAKERS_OF_SEVERAL:
        *turns, question = _MAKERS_OF_SEVERAL[family](rng, "train")
        return _exchanges(turns, is_terse), question, family
    return [], draw(_MAKERS[family], rng, split), family


def _small_beginning(rng: Rng, is_terse: bool) -> list[dict[str, Any]]:
    """One or two turns on something else, so that questions also come later in a conversation."""
    makers = (talk_question, talk_question, fact_question, sum_question, calendar_question)
    turns = [draw(rng.choice(makers), rng, "train") for _ in range(rng.randint(1, 2))]
    return _exchanges(turns, is_terse)


def _exchanges(turns: list[Question], is_terse: bool) -> list[dict[str, Any]]:
    return [message for turn in turns for message in exchange(turn, terse=is_terse)]


def _dice(*parts: object) -> random.Random:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "little"))
