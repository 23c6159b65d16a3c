"""Drills of pretraining: a decision every few tokens, of kinds that answers need but rarely show.

In a conversation one word of twenty depends on a comparison, and is not learned in minutes; in a
drill it is one of five, and right after a few hundred steps (dev/LOG.md).
"""

import re
from random import Random

from nanochat.primer import world
from nanochat.primer.facts import fact_question
from nanochat.primer.names import open_name, open_word
from nanochat.primer.noise import as_people_type, misspelled
from nanochat.primer.numbers import sum_question
from nanochat.primer.question import Split, draw
from nanochat.primer.relations import relation_question
from nanochat.primer.unknown import elsewhere, strange_animal, unknown_name, unknown_question
from nanochat.primer.words import calendar_question, ordering_question, spelling_question
from nanochat.primer.world import a, capitalized

_ANIMALS = tuple(animal.name for animal in world.ANIMALS)
_TOWNS = tuple(town.name for town in world.TOWNS)
_PEOPLE = tuple(person.name for person in world.PEOPLE)
# What is asked and what is so, in the words of answers with yes or no, and values of both.
_COMPARED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Is it {x}? It is {y}, so {verdict}.", (*world.COLOURS, *world.MONTHS, *world.SEASONS)),
    ("Is it {a_x}? It is {a_y}, so {verdict}.", _ANIMALS),
    ("{A_x}? It has {a_y}, so {verdict}.", _ANIMALS),
    ("{A_x}? It is {a_y}, so {verdict}.", tuple(person.job for person in world.PEOPLE)),
    ("In {x}? It lives in {y}, so {verdict}.", _TOWNS),
    ("Is it {x}? {y} is the baker, so {verdict}.", _PEOPLE),
    ("Is it {x}? It eats {y}, so {verdict}.", tuple(animal.food for animal in world.ANIMALS)),
)


def comparisons(rng: Random, split: Split) -> str:
    """Whether two words are the same: "Is it green? It is blue, so no."."""
    lines = []
    for _ in range(rng.randint(4, 8)):
        sentence, values = rng.choice(_COMPARED)
        x = rng.choice(values)
        y = x if rng.random() < 0.5 else rng.choice(values)
        fields = {"x": x, "y": y, "a_x": a(x), "a_y": a(y), "A_x": capitalized(a(x))}
        lines.append(sentence.format(**fields, verdict="yes" if x == y else "no"))
    return " ".join(lines)


_SHORT = (
    fact_question, fact_question, relation_question, unknown_question, calendar_question,
    ordering_question, sum_question, spelling_question,
)  # fmt: skip


def corrections(rng: Random, split: Split) -> str:
    """Questions as people type them, each before the question as it is written with care."""
    lines = []
    for _ in range(rng.randint(2, 3)):
        question = draw(rng.choice(_SHORT), rng, split)
        typed = as_people_type(rng, question.text, question.exact, share=1.0)
        lines.append(f"{typed}\nYou mean: {question.text}")
    return "\n".join(lines)


def misspellings(rng: Random, split: Split) -> str:
    """Words of questions, misspelled and right: "wher: where. elehpant: elephant."."""
    lines = []
    for _ in range(rng.randint(3, 5)):
        question = draw(rng.choice(_SHORT), rng, split)
        text = question.text.lower() if rng.random() < 0.5 else question.text
        for _ in range(3):
            typed = misspelled(rng, text, question.exact)
            pairs = zip(re.split(r"[^\w']+", typed), re.split(r"[^\w']+", text), strict=True)
            lines += [f"{wrong}: {right}." for wrong, right in pairs if wrong != right]
    return " ".join(lines)


def known_or_not(rng: Random, split: Split) -> str:
    """Names of the world and others: "Mia: known. Zorbert: unknown."."""
    lines = []
    for _ in range(rng.randint(6, 12)):
        if rng.random() < 0.5:
            name = rng.choice(rng.choice((_PEOPLE, _TOWNS, _ANIMALS)))
            lines.append(f"{name}: known.")
        else:
            make = rng.choice((unknown_name, elsewhere, strange_animal))
            lines.append(f"{make(rng, split).removeprefix('the ')}: unknown.")
    return " ".join(lines)


_KEYS = (
    *[lambda rng, split: open_name(rng, split)[0]] * 2, open_word,
    lambda rng, split: rng.choice(rng.choice((_PEOPLE, _TOWNS, _ANIMALS, world.COLOURS))),
)  # fmt: skip


def lookups(rng: Random, split: Split) -> str:
    """Words with a letter each, and what stands beside which: "Mia=K Tom=B. Tom? Tom=B."."""
    keys = list(dict.fromkeys(rng.choice(_KEYS)(rng, split) for _ in range(rng.randint(3, 5))))
    rows = [
        f"{key}={letter}"
        for key, letter in zip(keys, rng.sample(world.LETTERS.upper(), len(keys)), strict=True)
    ]
    asked = [rng.randrange(len(keys)) for _ in range(rng.randint(4, 7))]
    return " ".join([*rows[:-1], f"{rows[-1]}.", *(f"{keys[i]}? {rows[i]}." for i in asked)])
