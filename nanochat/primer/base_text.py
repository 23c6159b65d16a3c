"""Base text: the world told as prose, for pretraining."""

from collections.abc import Callable

from nanochat.primer.facts import fact_question, unknown_question
from nanochat.primer.listening import sayings, several_rows
from nanochat.primer.numbers import sum_question, word_problem
from nanochat.primer.question import Question, Rng, Split, draw, side
from nanochat.primer.reading import belongings, reading_question, several_questions, story
from nanochat.primer.talk import choice_question, several_choices
from nanochat.primer.words import (
    WORDS,
    calendar_question,
    ordering_question,
    spelling_question,
)
from nanochat.primer.world import (
    ANIMALS,
    BOYS,
    COLOURS,
    DAYS,
    FEELINGS,
    GIRLS,
    ITEMS,
    LETTERS,
    MONTHS,
    PEOPLE,
    SEASON_OF_MONTH,
    SEASONS,
    SPOTS,
    THINGS,
    TOWNS,
    WEATHERS,
    Animal,
    Person,
    a,
)


def document(rng: Rng, split: Split) -> str:
    """A document of one of the kinds; `split` is the side that questions in it belong to."""
    return rng.choices(_MAKERS, _WEIGHTS)[0](rng, split)


def _portrait(rng: Rng, split: Split) -> str:
    """A person, in a few sentences that begin differently each time."""
    person = rng.choice(PEOPLE)
    lines = _person_lines(rng, person)
    rng.shuffle(lines)
    head = rng.choice(
        (
            f"This is {person.name}. ", f"Do you know {person.name}? ", "",
            f"{person.name} got up early. ", f"Everybody in {person.town} knows {person.name}. ",
            f"It was a {rng.choice(WEATHERS)} day in {person.town}. ",
        )
    )  # fmt: skip
    body = [lines[0].format(x=person.name)]
    for line in lines[1:]:
        name = person.name if rng.random() < 0.4 else person.pronoun
        text = line.format(x=name)
        body.append(text[0].upper() + text[1:])
    return head + " ".join(body)


def _person_lines(rng: Rng, person: Person) -> list[str]:
    her = person.possessive
    return [
        rng.choice(
            (
                f"{{x}} lives in {person.town}.", f"{{x}} has a house in {person.town}.",
                f"The home of {person.name} is in {person.town}.",
                f"{{x}} is at home in {person.town}.",
            )
        ),
        rng.choice(
            (
                f"{{x}} is {a(person.job)}.", f"{{x}} works as {a(person.job)}.",
                f"{{x}} is the {person.job} of {person.town}.",
                f"The work of {person.name} is that of {a(person.job)}.",
                f"In {person.town} the {person.job} is {person.name}.",
            )
        ),
        rng.choice(
            (
                f"{{x}} has {a(person.pet)}.", f"{{x}} keeps {a(person.pet)} as a pet.",
                f"The pet of {person.name} is {a(person.pet)}.",
                f"{{x}} loves {her} pet, {a(person.pet)}.",
                f"At home {a(person.pet)} waits for {person.name}.",
            )
        ),
        rng.choice(
            (
                f"{{x}} likes to eat {person.dish}.",
                f"The favourite food of {person.name} is {person.dish}.",
                f"For supper {{x}} likes {person.dish} best.", f"{{x}} likes {person.dish} best.",
            )
        ),
    ]  # fmt: skip


def _nature(rng: Rng, split: Split) -> str:
    """An animal and what is known of it."""
    animal = rng.choice(ANIMALS)
    lines = _animal_lines(rng, animal)
    rng.shuffle(lines)
    body = []
    for number, line in enumerate(lines[: rng.randint(3, 5)]):
        text = line.format(x=f"the {animal.name}" if number == 0 or rng.random() < 0.4 else "it")
        body.append(text[0].upper() + text[1:])
    return " ".join(body)


def _animal_lines(rng: Rng, animal: Animal) -> list[str]:
    name, colour, home = animal.name, animal.colour, animal.home
    food, sound, young = animal.food, animal.sound, a(animal.young)
    return [
        rng.choice(told)
        for told in (
            (
                f"{{x}} is {colour}.", f"the {name} has the colour {colour}.",
                f"the {name} in the picture is {colour}.",
            ),
            (
                f"{{x}} lives in {home}.", f"the home of the {name} is {home}.",
                f"in {home} you can find the {name}.", f"at night {{x}} sleeps in {home}.",
            ),
            (
                f"{{x}} eats {food}.", f"{{x}} likes to eat {food}.",
                f"the food of the {name} is {food}.", f"give the {name} some {food} to eat.",
            ),
            (
                f"{{x}} {sound}.", f"when you come near, {{x}} {sound}.",
                f"the {name} makes a sound: it {sound}.", f"listen how {{x}} {sound}!",
            ),
            (
                f"the young of {a(name)} is called {young}.", f"a baby of {a(name)} is {young}.",
                f"the young one is called {young}.",
            ),
        )
    ]  # fmt: skip


def _still_life(rng: Rng, split: Split) -> str:
    """Things on a table, their colours and kinds."""
    things = rng.sample(THINGS, rng.randint(2, 4))
    lines = [
        rng.choice(
            (
                f"The {thing.name} is {thing.colour}.",
                f"{_first(a(thing.name))} is {a(thing.kind)}. The {thing.name} is {thing.colour}.",
                f"There is {a(thing.name)}, and it is {thing.colour}."
                f" {_first(a(thing.name))} is {a(thing.kind)}.",
                f"What colour is the {thing.name}? It is {thing.colour}.",
            )
        )
        for thing in things
    ]
    return rng.choice(("", "Look at the picture. ", "Let us name some things. ")) + " ".join(lines)


def _journey(rng: Rng, split: Split) -> str:
    """A town, what it is known for, and who lives there."""
    town = rng.choice(TOWNS)
    people = [person for person in PEOPLE if person.town == town.name]
    lines = [
        rng.choice((f"{town.name} lies {town.lies}.", f"The town of {town.name} is {town.lies}.")),
        rng.choice(
            (
                f"{town.name} is known for {town.known_for}.",
                f"People come to {town.name} for {town.known_for}.",
                f"{town.name} is famous for {town.known_for}.",
            )
        ),
    ]
    for person in rng.sample(people, min(2, len(people))):
        lines.append(
            rng.choice(
                (
                    f"{person.name} is the {person.job} of {town.name}.",
                    f"The {person.job} in {town.name} is {person.name}.",
                    f"{person.name} lives in {town.name} and works as {a(person.job)}.",
                )
            )
        )
    rng.shuffle(lines)
    return " ".join(lines)


def _tale(rng: Rng, split: Split) -> str:
    """A story, sometimes with a visitor from the world."""
    told = story(rng).text
    if rng.random() < 0.3:
        person, spot, feeling = rng.choice(PEOPLE), rng.choice(SPOTS), rng.choice(FEELINGS)
        told += f" {person.name} the {person.job} saw it all from {spot} and felt {feeling}."
    return told


def _question_and_answer(rng: Rng, split: Split) -> str:
    """Plain questions with answers, a few in a row."""
    makers = (
        fact_question, fact_question, choice_question, reading_question, calendar_question,
        ordering_question, sum_question, sum_question, word_problem, unknown_question,
        spelling_question, spelling_question,
    )  # fmt: skip
    lines = []
    for _ in range(rng.randint(1, 3)):
        question = draw(rng.choice(makers), rng, split)
        lines.append(f"Question: {_plain(question)} Answer: {_worked(question)}")
    return "\n".join(lines)


def _lesson(rng: Rng, split: Split) -> str:
    """A story or a list, then questions about it with their answers."""
    asked = rng.choice((several_questions, several_choices, several_rows))(rng, split)
    return "\n".join(f"{question.text} {question.answer}" for question in asked)


def _belongings(rng: Rng, split: Split) -> str:
    """Who has what; learned by looking back."""
    text, pairs = belongings(rng)
    return " ".join([text, *(f"{question} {answer}" for question, answer in pairs)])


def _packed_bag(rng: Rng, split: Split) -> str:
    """The game in which everybody says again what the others have packed, and adds a thing."""
    place = rng.choice(SPOTS)
    packed: list[str] = []
    lines = []
    for name in rng.sample((*GIRLS, *BOYS), rng.randint(2, 4)):
        packed.append(f"{a(rng.choice(COLOURS))} {rng.choice(ITEMS)[0]}")
        lines.append(f"{name}: I go to {place} and take {', '.join(packed)}.")
    return "\n".join(lines)


def _echo(rng: Rng, split: Split) -> str:
    """The game in which one says again what the other has said, word by word."""
    first, second = rng.sample((*GIRLS, *BOYS), 2)
    said = sayings(rng, 3, 6)
    return rng.choice(
        (
            f"{first} says: {said}.\n{second} says it too: {said}.",
            f"Listen: {said}. Say it again: {said}.",
            f"{first} wrote {said}. {second} copied it: {said}.",
        )
    )


def _plain(question: Question) -> str:
    text = question.text.strip()
    return text if text.endswith(("?", ".", "!")) else text + "?"


def _worked(question: Question) -> str:
    if question.expression:
        return f"{question.expression} = {question.result}. {question.answer}"
    return question.answer


def _days_and_months(rng: Rng, split: Split) -> str:
    """Runs of the calendar."""
    ring = rng.choice((DAYS, MONTHS, SEASONS))
    start = rng.randrange(len(ring))
    run = [ring[(start + i) % len(ring)] for i in range(rng.randint(3, min(7, len(ring))))]
    lines = [
        f"{_first(later)} comes after {first}." for first, later in zip(run, run[1:], strict=False)
    ]
    month = rng.randrange(12)
    lines.append(f"{MONTHS[month]} is in {SEASON_OF_MONTH[MONTHS[month]]}.")
    lines.append(f"{MONTHS[month]} is month number {month + 1} of the year.")
    if rng.random() < 0.5:
        lines = [
            f"{_first(first)} comes before {later}."
            for first, later in zip(run, run[1:], strict=False)
        ]
    return f"{_first(', '.join(run))}. " + " ".join(lines)


def _letters(rng: Rng, split: Split) -> str:
    """Words letter by letter, and the alphabet."""
    lines = [
        rng.choice(
            (
                "The word {w} is spelled {s}.",
                "{s} makes {w}.",
                "{w}: {s}.",
                "'{w}' is {s}.",
                "'{w}' is {s}.",
                "To write {w}, write {s}.",
            )
        ).format(w=word, s="-".join(word))
        for word in rng.sample(WORDS, rng.randint(3, 7))
    ]
    if rng.random() < 0.3:
        start = rng.randrange(20)
        run = LETTERS[start : start + rng.randint(3, 7)]
        lines.append(" ".join(run) + ".")
        lines += [f"The letter {y} comes after {x}." for x, y in zip(run, run[1:], strict=False)]
    return " ".join(lines)


def _counting(rng: Rng, split: Split) -> str:
    """Counting on, comparing numbers and sizes."""
    start = rng.randint(1, 93)
    run = range(start, start + rng.randint(3, 7))
    lines = [", ".join(map(str, run)) + "."]
    lines += [f"{n + 1} comes after {n}." for n in run if rng.random() < 0.5]
    for _ in range(2):
        x, y = sorted(rng.sample(range(1, 100), 2))
        lines.append(f"{y} is more than {x}.")
    for _ in range(2):
        i, j = sorted(rng.sample(range(len(ANIMALS)), 2))
        bigger = f"{a(ANIMALS[j].name)} is bigger than {a(ANIMALS[i].name)}."
        lines.append(_first(bigger))
    rng.shuffle(lines)
    return " ".join(lines)


def _sums(rng: Rng, split: Split) -> str:
    """Small sums with things that can be counted."""
    lines = []
    for _ in range(rng.randint(1, 3)):
        x, y = _small_sum(rng, split)
        name, (_, items) = rng.choice((*GIRLS, *BOYS)), rng.choice(ITEMS)
        lines.append(
            rng.choice(
                (
                    f"{name} has {x} {items} and gets {y} more: {x} + {y} = {x + y}."
                    f" Now {name} has {x + y} {items}.",
                    f"{x} + {y} = {x + y}.",
                    f"{name} has {x + y} {items} and gives away {y}: {x + y} - {y} = {x}."
                    f" There are {x} left.",
                )
            )
        )
    return " ".join(lines)


def _small_sum(rng: Rng, split: Split) -> tuple[int, int]:
    """Two numbers whose sum, and what undoes it, may stand in this split's text."""
    while True:
        x, y = rng.randint(1, 20), rng.randint(1, 20)
        if side(f"sum|{x} + {y}") == split and side(f"sum|{x + y} - {y}") == split:
            return x, y


def _first(text: str) -> str:
    return text[0].upper() + text[1:]


# Facts are learned soon; looking back, which all else stands on, takes by far the most practice.
_KINDS: tuple[tuple[Callable[[Rng, Split], str], float], ...] = (
    (_portrait, 9), (_nature, 8), (_still_life, 5), (_journey, 3), (_tale, 1),
    (_lesson, 42), (_belongings, 6), (_packed_bag, 3), (_echo, 8),
    (_question_and_answer, 10), (_days_and_months, 3), (_letters, 7), (_counting, 5), (_sums, 1),
)  # fmt: skip
_MAKERS = [make for make, _ in _KINDS]
_WEIGHTS = [weight for _, weight in _KINDS]
