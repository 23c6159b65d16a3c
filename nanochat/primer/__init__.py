"""The built-in synthetic world: endless simple text, and questions with known answers.

    document(seed, index)                          a text for pretraining
    conversation(seed, index, split="train")       a conversation for the chat stages

Both depend on their arguments only: every machine makes the same world, and any index is reached
without making those before it. Questions of split "test" never occur in training: a hash of the
question decides its split (see question.py). Training questions are typed as people type (see
noise.py); test questions are not, except in `PROBES`, which measure one kind of difficulty each.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from nanochat.primer import base_text
from nanochat.primer.copying import list_question, list_series, repeat_question
from nanochat.primer.facts import fact_question
from nanochat.primer.memory import memory_conversation
from nanochat.primer.names import is_in, is_open_name
from nanochat.primer.noise import NOISE, UNSEEN_NOISE, as_people_type, in_their_letters
from nanochat.primer.numbers import sum_question
from nanochat.primer.problems import long_problem, word_problem
from nanochat.primer.question import Messages, Question, Split, draw, split_of, stable_hash
from nanochat.primer.reading import reading_question, reading_series
from nanochat.primer.relations import relation_question, two_hops
from nanochat.primer.talk import choice_question, choice_series, talk_question
from nanochat.primer.unknown import unknown_question
from nanochat.primer.words import calendar_question, ordering_question, spelling_question

Stage = Literal["mid", "sft", "rl"]

# Families with phrasings that are kept for tests; of the others only the questions are held out.
_PHRASED: dict[str, Callable[[Random, Split, bool], Question]] = {
    "facts": fact_question,
    "unknown": unknown_question,
    "reading": reading_question,
    "arithmetic": sum_question,
    "spelling": spelling_question,
    "calendar": calendar_question,
    "ordering": ordering_question,
    "repeat": repeat_question,
    "talk": talk_question,
}
_QUESTIONS: dict[str, Callable[..., Question]] = {
    **_PHRASED,
    "relations": relation_question,
    "word_problems": word_problem,
    "long_problems": long_problem,
    "choice": choice_question,
    "lists": list_question,
}
# Several questions about one text: more practice per token than one question per text.
_SERIES = {"reading": reading_series, "choice": choice_series, "lists": list_series}
FAMILIES = (
    "facts", "relations", "unknown", "reading", "arithmetic", "word_problems", "long_problems",
    "spelling", "calendar", "ordering", "choice", "repeat", "lists", "talk", "memory",
)  # fmt: skip

# Relative frequencies. Families that are learned last get most: those that copy from the context.
# Set by trial on the CPU tier of speedrun.sh (dev/LOG.md).
SHARES: dict[Stage, dict[str, float]] = {
    "mid": {
        "facts": 9, "relations": 10, "unknown": 4, "reading": 14, "arithmetic": 7,
        "word_problems": 2, "long_problems": 1, "repeat": 7, "lists": 7, "spelling": 11,
        "calendar": 6, "ordering": 10, "choice": 6, "talk": 1, "memory": 5,
    },
    "sft": {
        "facts": 8, "relations": 15, "unknown": 12, "reading": 16, "arithmetic": 10,
        "word_problems": 2.5, "long_problems": 1.25, "repeat": 8, "lists": 2, "spelling": 23,
        "calendar": 4, "ordering": 13, "choice": 3, "talk": 2.5, "memory": 8,
    },
    "rl": {"long_problems": 1},  # needs an expression of its own making, which a reward can judge
}  # fmt: skip
# Questions that are typed as people type: first what is asked, then all the ways to type it.
NOISY_SHARE: dict[Stage, float] = {"mid": 0.3, "sft": 0.7, "rl": 0.6}
EARLIER_TURNS_SHARE = 0.2  # of training conversations begin with unrelated turns
SERIES_SHARE = 0.7  # of the families in _SERIES; the rest looks as in the test split

# What a probe asks: a noise operator, or what training never has: phrasings, compositions of
# facts, and names and words of no training text.
_NOISY = tuple(
    name for name in FAMILIES if name not in ("choice", "lists", "repeat", "long_problems")
)
_WITH_NAMES = ("reading", "memory", "spelling", "repeat")
PROBES = (*NOISE, *UNSEEN_NOISE, "unseen phrasings", "unseen compositions", "unseen names")


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

    family: one of FAMILIES or, in split "test", of PROBES; None for the stage's mixture.
    """
    rng = _rng("conversation", split, seed, index, stage, family or "")
    if family in PROBES:
        return _graded(_probe(rng, str(family)), str(family))
    shares = SHARES[stage]
    family = family or rng.choices(list(shares), list(shares.values()))[0]
    turns = _turns(rng, split, family)
    if split == "train":
        # Not before a choice, whose list is long already, nor before a conversation with turns.
        if family != "choice" and len(turns) == 1 and rng.random() < EARLIER_TURNS_SHARE:
            turns = [*_unrelated_turns(rng), *turns]
        share = NOISY_SHARE[stage]
        turns = [turn if turn.case_matters else _noisy(rng, turn, share) for turn in turns]
        turns = _with_names_as_typed(turns)
    return _graded(turns, family)


def _graded(turns: list[Question], family: str) -> dict[str, Any]:
    messages: Messages = [message for turn in turns for message in turn.messages()]
    last = turns[-1]
    return {
        "messages": messages,
        "family": family,
        "answer": last.must_contain or last.key,
        "rivals": list(last.rivals),
        "kind": last.kind,
    }


def _noisy(rng: Random, question: Question, share: float) -> Question:
    text = as_people_type(rng, question.text, question.exact, share)
    # A greeting before small talk may make one that is held out.
    if question.identity.startswith("talk|") and split_of(f"talk|{text}") == "test":
        return question
    return replace(question, text=text)


def _with_names_as_typed(turns: list[Question]) -> list[Question]:
    """Answers with the names of the user's own people, towns and pets in the user's letters."""
    asked, names = "", {word for turn in turns for word in turn.exact if is_open_name(word)}
    answered = []
    for turn in turns:
        asked += f" {turn.text}"
        answered.append(replace(turn, answer=in_their_letters(turn.answer, asked, names)))
    return answered


def _turns(rng: Random, split: Split, family: str) -> list[Question]:
    """The question that is graded, after those that it needs before it."""
    if family == "memory":
        return memory_conversation(rng, split)
    # In tests one question at a time, so that each is graded on its own.
    if split == "train" and rng.random() < SERIES_SHARE and family in _SERIES:
        return _SERIES[family](rng, "train")
    return [draw(_QUESTIONS[family], rng, split)]


def _unrelated_turns(rng: Random) -> list[Question]:
    """One or two turns on something else, so that questions also come later in a conversation."""
    makers = (talk_question, talk_question, fact_question, sum_question, calendar_question)
    return [draw(rng.choice(makers), rng, "train") for _ in range(rng.randint(1, 2))]


def _probe(rng: Random, probe: str) -> list[Question]:
    """The turns of a held-out conversation of a probe."""
    if probe == "unseen phrasings":
        make = _PHRASED[rng.choice(list(_PHRASED))]
        return [draw(lambda rng, split: make(rng, split, True), rng, "test")]
    if probe == "unseen compositions":
        return [draw(two_hops, rng, "test")]
    while True:
        turns = _turns(rng, "test", rng.choice(_WITH_NAMES if probe == "unseen names" else _NOISY))
        last = turns[-1]
        if probe == "unseen names":
            if any(not is_in("train", word) for word in (*last.exact, last.key) if word.isalpha()):
                return turns
            continue
        text = (NOISE | UNSEEN_NOISE)[probe](rng, last.text, last.exact)
        if text != last.text:
            return [*turns[:-1], replace(last, text=text)]


def _rng(*parts: object) -> Random:
    return Random(stable_hash(repr(parts)))


__all__ = [
    "FAMILIES",
    "PROBES",
    "SHARES",
    "Stage",
    "conversation",
    "document",
    "fingerprint",
    "split_of",
]
