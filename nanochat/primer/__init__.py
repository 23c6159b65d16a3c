"""The built-in synthetic world: endless simple text, and questions with known answers.

    document(seed, index)                          a text for pretraining
    conversation(seed, index, split="train")       a conversation for the chat stages

Both depend on their arguments only: every machine makes the same world, and any index is reached
without making those before it. Random draws are made in a fixed order, so adding or moving one
changes all texts; that is a new world, with another `fingerprint`. Questions of split "test" never
occur in training: a hash of the question decides its split (see question.py).
"""

import hashlib
from pathlib import Path
from random import Random
from typing import Any, Literal

from nanochat.primer import base_text
from nanochat.primer.copying import list_question, list_series, repeat_question
from nanochat.primer.facts import fact_question, unknown_question
from nanochat.primer.numbers import sum_question, word_problem
from nanochat.primer.question import Messages, Question, Split, draw, stable_hash
from nanochat.primer.reading import reading_question, reading_series
from nanochat.primer.talk import choice_question, choice_series, memory_conversation, talk_question
from nanochat.primer.words import calendar_question, ordering_question, spelling_question

Stage = Literal["mid", "sft", "rl"]

_QUESTIONS = {
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
# Several questions about one text: more practice per token than one question per text.
_SERIES = {"reading": reading_series, "choice": choice_series, "lists": list_series}
FAMILIES = (*_QUESTIONS, "memory")

# Relative frequencies. Families that are learned last get most: those that copy from the context
# (reading, choice, lists), and in sft also spelling. Set by trial on the CPU tier of speedrun.sh.
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
    "rl": {"word_problems": 1},  # needs an expression of its own making, which a reward can judge
}  # fmt: skip
# Half of midtraining answers with the key alone: fewer tokens that only repeat the question.
TERSE_SHARE = {"mid": 0.5, "sft": 0.0, "rl": 0.0}
EARLIER_TURNS_SHARE = 0.25  # of training conversations begin with unrelated turns
SERIES_SHARE = 0.8  # of the families in _SERIES; the rest looks as in the test split


def document(seed: int, index: int, split: Literal["train", "val"] = "train") -> str:
    """A text of the world; questions in a text of split "val" are those of split "test"."""
    rng = _rng("document", split, seed, index)
    return base_text.document(rng, "train" if split == "train" else "test")


def fingerprint() -> str:
    """A hash of the sources; it changes whenever the texts may, so that stored text is remade."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def conversation(
    seed: int, index: int, split: Split = "train", family: str | None = None, stage: Stage = "sft"
) -> dict[str, Any]:
    """A conversation of one or several turns, and how its last answer is graded.

    family: one of FAMILIES, or None for the stage's mixture.
    """
    rng = _rng("conversation", split, seed, index, stage, family or "")
    is_terse = rng.random() < TERSE_SHARE[stage]
    shares = SHARES[stage]
    family = family or rng.choices(list(shares), list(shares.values()))[0]
    earlier, question = _last_question(rng, split, family, is_terse)
    # Not before a choice, whose list is long already, nor before a conversation with turns.
    may_add = split == "train" and family != "choice" and not earlier
    if may_add and rng.random() < EARLIER_TURNS_SHARE:
        earlier = _unrelated_turns(rng, is_terse)
    return {
        "messages": [*earlier, *question.messages(terse=is_terse)],
        "family": family,
        "answer": question.must_contain or question.key,
        "rivals": list(question.rivals),
        "kind": question.kind,
        "unseen_wording": question.unseen_wording,
    }


def _last_question(
    rng: Random, split: Split, family: str, is_terse: bool
) -> tuple[Messages, Question]:
    """The question that is graded, and the messages that it needs before it."""
    if family == "memory":
        return memory_conversation(rng, split, is_terse)
    # In tests one question at a time, so that each is graded on its own.
    if split == "train" and rng.random() < SERIES_SHARE and family in _SERIES:
        *turns, question = _SERIES[family](rng, "train")
        return _messages(turns, is_terse), question
    return [], draw(_QUESTIONS[family], rng, split)


def _unrelated_turns(rng: Random, is_terse: bool) -> Messages:
    """One or two turns on something else, so that questions also come later in a conversation."""
    makers = (talk_question, talk_question, fact_question, sum_question, calendar_question)
    turns = [draw(rng.choice(makers), rng, "train") for _ in range(rng.randint(1, 2))]
    return _messages(turns, is_terse)


def _messages(turns: list[Question], is_terse: bool) -> Messages:
    return [message for turn in turns for message in turn.messages(terse=is_terse)]


def _rng(*parts: object) -> Random:
    return Random(stable_hash(repr(parts)))
