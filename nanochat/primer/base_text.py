"""Pretraining documents: the world as prose, games and exercises."""

from collections.abc import Callable
from itertools import pairwise
from random import Random

from nanochat.primer import world
from nanochat.primer.copying import list_series, random_items
from nanochat.primer.drills import comparisons, corrections, known_or_not, lookups, misspellings
from nanochat.primer.facts import fact_question
from nanochat.primer.names import open_name, open_word, person_name
from nanochat.primer.noise import as_people_type
from nanochat.primer.numbers import in_words, sum_question
from nanochat.primer.problems import word_problem
from nanochat.primer.question import Split, draw, one_of, split_of
from nanochat.primer.reading import reading_question, reading_series, story
from nanochat.primer.relations import relation_question, reversed_fact
from nanochat.primer.talk import choice_series
from nanochat.primer.unknown import unknown_question
from nanochat.primer.words import (
    calendar_question,
    compared,
    ordering_question,
    spelling_question,
)
from nanochat.primer.world import a, capitalized, columns, plural

NOISY_SHARE = 0.5  # of the questions in base text


def document(rng: Random, split: Split) -> str:
    """A document of one of the kinds below; questions in it belong to `split`."""
    return rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0](rng, split)


# Of each inner tuple one sentence is used; {x} is the name or the pronoun.
_ABOUT_A_PERSON = (
    (
        "{x} lives in {town}.", "{x} has a house in {town}.", "The home of {name} is in {town}.",
        "{x} is at home in {town}.",
    ),
    (
        "{x} is {a_job}.", "{x} works as {a_job}.", "{x} is the {job} of {town}.",
        "The work of {name} is that of {a_job}.", "In {town} the {job} is {name}.",
    ),
    (
        "{x} has {a_pet}.", "{x} keeps {a_pet} as a pet.", "The pet of {name} is {a_pet}.",
        "{x} loves {her} pet, {a_pet}.", "At home {a_pet} waits for {name}.",
    ),
    (
        "{x} likes to eat {dish}.", "The favourite food of {name} is {dish}.",
        "For supper {x} likes {dish} best.", "{x} likes {dish} best.",
    ),
)  # fmt: skip
_ABOUT_AN_ANIMAL = (
    (
        "{x} is {colour}.", "the {name} has the colour {colour}.",
        "the {name} in the picture is {colour}.",
    ),
    (
        "{x} lives in {home}.", "the home of the {name} is {home}.",
        "in {home} you can find the {name}.", "at night {x} sleeps in {home}.",
    ),
    (
        "{x} eats {food}.", "{x} likes to eat {food}.", "the food of the {name} is {food}.",
        "give the {name} some {food} to eat.",
    ),
    (
        "{x} {sound}.", "when you come near, {x} {sound}.", "the {name} makes a sound: it {sound}.",
        "listen how {x} {sound}!",
    ),
    (
        "the young of {a_name} is called {a_young}.", "a baby of {a_name} is {a_young}.",
        "the young one is called {a_young}.",
    ),
)  # fmt: skip
_ABOUT_A_THING = (
    "The {name} is {colour}.", "{kind_sentence} The {name} is {colour}.",
    "There is {a_name}, and it is {colour}. {kind_sentence}",
    "What colour is the {name}? It is {colour}.",
)  # fmt: skip
_ABOUT_A_TOWN = (
    ("{name} lies {lies}.", "The town of {name} is {lies}."),
    (
        "{name} is known for {known_for}.", "People come to {name} for {known_for}.",
        "{name} is famous for {known_for}.",
    ),
)  # fmt: skip
_ABOUT_A_RESIDENT = (
    "{name} is the {job} of {town}.", "The {job} in {town} is {name}.",
    "{name} lives in {town} and works as {a_job}.",
)  # fmt: skip


def _portrait(rng: Random, split: Split) -> str:
    person = rng.choice(world.PEOPLE)
    lines = [rng.choice(sentences) for sentences in _ABOUT_A_PERSON]
    rng.shuffle(lines)
    head = one_of(
        rng,
        f"This is {person.name}. ", f"Do you know {person.name}? ", "",
        f"{person.name} got up early. ", f"Everybody in {person.town} knows {person.name}. ",
        f"It was a {rng.choice(world.WEATHERS)} day in {person.town}. ",
    )  # fmt: skip
    return head + _prose(rng, lines, person, person.name, person.pronoun)


def _nature(rng: Random, split: Split) -> str:
    animal = rng.choice(world.ANIMALS)
    lines = [rng.choice(sentences) for sentences in _ABOUT_AN_ANIMAL]
    rng.shuffle(lines)
    return _prose(rng, lines[: rng.randint(3, 5)], animal, f"the {animal.name}", "it")


def _prose(
    rng: Random, lines: list[str], row: world.Animal | world.Person, subject: str, pronoun: str
) -> str:
    """The lines as sentences about a subject: named in the first one, later more rarely."""
    words = dict(columns(row), her="his" if pronoun == "he" else "her")
    sentences = []
    for index, line in enumerate(lines):
        is_named = index == 0 or rng.random() < 0.4
        sentences.append(capitalized(line.format(x=subject if is_named else pronoun, **words)))
    return " ".join(sentences)


def _still_life(rng: Random, split: Split) -> str:
    """A few things, their colours and kinds."""
    lines = []
    for thing in rng.sample(world.THINGS, rng.randint(2, 4)):
        kind = capitalized(f"{a(thing.name)} is {a(thing.kind)}.")
        lines.append(rng.choice(_ABOUT_A_THING).format(**columns(thing), kind_sentence=kind))
    return one_of(rng, "", "Look at the picture. ", "Let us name some things. ") + " ".join(lines)


def _journey(rng: Random, split: Split) -> str:
    """A town, what it is known for, and who lives there."""
    town = rng.choice(world.TOWNS)
    lines = [rng.choice(sentences).format(**columns(town)) for sentences in _ABOUT_A_TOWN]
    people = [person for person in world.PEOPLE if person.town == town.name]
    for person in rng.sample(people, min(2, len(people))):
        lines.append(rng.choice(_ABOUT_A_RESIDENT).format(**columns(person)))
    rng.shuffle(lines)
    return " ".join(lines)


def _reversed_facts(rng: Random, split: Split) -> str:
    """Questions from a value to its subjects are not learned from the other direction."""
    return " ".join(reversed_fact(rng) for _ in range(rng.randint(3, 6)))


def _tale(rng: Random, split: Split) -> str:
    text, _ = story(rng, split)
    if rng.random() < 0.3:
        person, spot = rng.choice(world.PEOPLE), rng.choice(world.SPOTS)
        feeling = rng.choice(world.FEELINGS)
        text += f" {person.name} the {person.job} saw it all from {spot} and felt {feeling}."
    return text


def _question_and_answer(rng: Random, split: Split) -> str:
    makers = (
        fact_question, fact_question, relation_question, relation_question, reading_question,
        calendar_question, ordering_question, sum_question, word_problem, unknown_question,
        spelling_question,
    )  # fmt: skip
    form, lines = rng.choice(("Question: {}{} Answer: {}{}", "{0}{1} {2}{3}", "{0}{1} {2}{3}")), []
    for _ in range(rng.randint(1, 3)):
        question = draw(rng.choice(makers), rng, split)
        # Typed as people type, so that the tokenizer has words in all letters, small and large.
        text = as_people_type(rng, question.text.strip(), question.exact, NOISY_SHARE)
        mark = "" if text.endswith(("?", ".", "!")) else "?"
        # The calculation is written out: base text has no tool calls.
        work = f"{question.expression} = {question.key}. " if question.expression else ""
        lines.append(form.format(text, mark, work, question.answer))
    return " ".join(lines)


def _lesson(rng: Random, split: Split) -> str:
    # Stories most of all: finding who did what in a text is learned last.
    [series] = rng.choices((reading_series, choice_series, list_series), (6, 1, 2))
    questions = series(rng, split)
    is_short = rng.random() < 0.5  # "Who has a cow? Kate." decides more often per token
    answers = [f"{q.key}." if is_short else q.answer for q in questions]
    return " ".join(f"{q.text} {answer}" for q, answer in zip(questions, answers, strict=True))


def _belongings(rng: Random, split: Split) -> str:
    """Who has what, with questions: all answers are copied from the first sentences."""
    names = list(dict.fromkeys(person_name(rng, split)[0] for _ in range(3)))
    items = rng.sample(world.ITEMS, len(names))
    facts, questions = [], []
    for name, item, colour in zip(names, items, rng.sample(world.COLOURS, len(names)), strict=True):
        facts.append(f"{name} has {a(colour)} {item}.")
        questions += [
            f"Who has the {item}? {name} has the {item}.",
            f"What does {name} have? {facts[-1]}",
            f"What colour is the {item}? The {item} is {colour}.",
        ]
    return " ".join([*facts, *rng.sample(questions, min(4, len(questions)))])


def _packed_bag(rng: Random, split: Split) -> str:
    """The game in which each player repeats what the others packed and adds one thing."""
    place = rng.choice(world.SPOTS)
    packed: list[str] = []
    lines = []
    for name in rng.sample(world.CHILDREN, rng.randint(2, 4)):
        packed.append(f"{a(rng.choice(world.COLOURS))} {rng.choice(world.ITEMS)}")
        lines.append(f"{name}: I go to {place} and take {', '.join(packed)}.")
    return "\n".join(lines)


def _echo(rng: Random, split: Split) -> str:
    first, second = open_name(rng, split)[0], open_name(rng, split)[0]
    items = random_items(rng, split, 2, 5)
    return one_of(
        rng,
        f"{first} says: {items}. {second} says it too: {items}.",
        f"Listen: {items}. Say it again: {items}.",
        f"{first} wrote {items}. {second} copied it: {items}.",
    )


def _days_and_months(rng: Random, split: Split) -> str:
    names = rng.choice((world.DAYS, world.MONTHS, world.SEASONS))
    start = rng.randrange(len(names))
    length = rng.randint(3, min(7, len(names)))
    run = [names[(start + i) % len(names)] for i in range(length)]  # after Sunday comes Monday
    index = rng.randrange(12)
    month = world.MONTHS[index]
    if rng.random() < 0.5:  # both directions are asked for
        lines = [f"{capitalized(x)} comes before {y}." for x, y in pairwise(run)]
    else:
        lines = [f"{capitalized(y)} comes after {x}." for x, y in pairwise(run)]
        lines.append(f"{month} is in {world.SEASON_OF_MONTH[month]}.")
        lines.append(f"{month} is month number {index + 1} of the year.")
    return f"{capitalized(', '.join(run))}. " + " ".join(lines)


def _words(rng: Random, split: Split) -> list[str]:
    """Words of the world, of other lists and of none, to be spelled."""
    makers: tuple[Callable[[], str], ...] = (
        *[lambda: rng.choice(world.WORDS)] * 2, lambda: open_word(rng, split),
        lambda: open_name(rng, split)[0].lower(),
    )  # fmt: skip
    return [rng.choice(makers)() for _ in range(rng.randint(3, 6))]


def _letters(rng: Random, split: Split) -> str:
    wordings = (
        "The word {w} is spelled {s}.", "{s} makes {w}.", "{w}: {s}.",
        "The letters of {w} are {s}.",
        "To write {w}, write {s}.",
    )  # fmt: skip
    lines = [rng.choice(wordings).format(w=word, s="-".join(word)) for word in _words(rng, split)]
    if rng.random() < 0.3:
        start = rng.randrange(20)
        run = world.LETTERS[start : start + rng.randint(3, 7)]
        lines.append(" ".join(run) + ".")
        lines += [f"The letter {y} comes after {x}." for x, y in pairwise(run)]
    return " ".join(lines)


def _counting(rng: Random, split: Split) -> str:
    start = rng.randint(1, 93)
    run = range(start, start + rng.randint(3, 7))
    lines = [", ".join(map(str, run)) + "."]
    neighbors = rng.choice(("After {x} comes {y}.", "Before {y} comes {x}."))
    lines += [neighbors.format(x=n, y=n + 1) for n in run if rng.random() < 0.5]
    for _ in range(2):
        x, y = rng.sample(range(1, rng.choice((100, 1000))), 2)
        lines.append(f"Of {x} and {y}, {max(x, y)} is more.")
        lines.append(f"{capitalized(in_words(x))} is {x}.")
    for _ in range(2):
        first, second = rng.sample(world.ANIMALS, 2)
        said, _, smaller = compared(first.name, second.name)
        lines.append(f"{said}{rng.choice(('', f' and the {smaller} is smaller'))}.")
    rng.shuffle(lines)
    return " ".join(lines)


def _sums(rng: Random, split: Split) -> str:
    lines = []
    for _ in range(rng.randint(1, 3)):
        x, y = _small_sum(rng, split)
        name, items = rng.choice(world.CHILDREN), plural(rng.choice(world.ITEMS))
        line = one_of(
            rng,
            f"{name} has {x} {items} and gets {y} more: {x} + {y} = {x + y}."
            f" Now {name} has {x + y} {items}.",
            f"{x} + {y} = {x + y}.",
            f"{name} has {x + y} {items} and gives away {y}: {x + y} - {y} = {x}."
            f" There are {x} left.",
        )
        lines.append(line)
    return " ".join(lines)


def _small_sum(rng: Random, split: Split) -> tuple[int, int]:
    """Two numbers whose sum and whose inverse difference both belong to the split."""
    while True:
        x, y = rng.randint(1, 20), rng.randint(1, 20)
        # The identities of sum_question: a sum held out there is not in the training text either.
        if {split_of(f"sum|{x} + {y}"), split_of(f"sum|{x + y} - {y}")} == {split}:
            return x, y


# Facts are learned early; copying from the context and comparing, which everything else needs, take
# by far the most practice.
_WEIGHTS: dict[Callable[[Random, Split], str], float] = {
    _portrait: 8, _nature: 8, _still_life: 4, _journey: 3, _reversed_facts: 12, _tale: 3,
    _lesson: 36, _belongings: 15, _packed_bag: 3, _echo: 26,
    comparisons: 40, corrections: 30, known_or_not: 12, lookups: 16, misspellings: 14,
    _question_and_answer: 24, _days_and_months: 5, _letters: 24, _counting: 16, _sums: 1,
}  # fmt: skip
