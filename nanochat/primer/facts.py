"""Facts of the world: who, where, which colour, which sound; and what is not known."""

from collections.abc import Callable
from dataclasses import dataclass

from nanochat.primer import world
from nanochat.primer.question import Question, Rng, Split, dress, pick_wording
from nanochat.primer.world import ANIMALS, PEOPLE, THINGS, TOWNS, a


@dataclass(frozen=True)
class Fact:
    """One thing that is so."""

    about: str
    """Whom or what: "the fox", "Mia"."""
    topic: str
    """Which wordings fit: "animal colour", "job" ..."""
    key: str
    sentence: str
    """The answer as a whole sentence."""
    follow_up: str
    """The same sentence when it is clear of whom one speaks."""
    pronoun: str
    rivals: tuple[str, ...]


# Cores of questions; {x} is whom it is about. The last tuple is never used in training.
WORDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "colour": (
        (
            "what colour is {x}", "which colour is {x}", "what is the colour of {x}",
            "what colour does {x} have", "which colour does {x} have", "tell me the colour of {x}",
            "do you know the colour of {x}", "can you tell me what colour {x} is",
            "{x} is what colour", "name the colour of {x}", "what's the colour of {x}",
            "I want to know the colour of {x}", "what colour would you paint {x}",
        ),
        ("do you know what colour {x} is", "which colour has {x}"),
    ),
    "sound": (
        (
            "what sound does {x} make", "which sound does {x} make", "what does {x} do to be heard",
            "how does {x} sound", "what noise does {x} make", "which noise does {x} make",
            "tell me what sound {x} makes", "do you know what noise {x} makes",
            "can you tell me how {x} sounds", "what can you hear when {x} is near",
        ),
        ("do you know what sound {x} makes", "tell me what noise {x} makes"),
    ),
    "home": (
        (
            "where does {x} live", "where is the home of {x}", "what is the home of {x}",
            "in which place does {x} live", "where can I find {x}", "tell me where {x} lives",
            "do you know where {x} lives", "where does {x} sleep",
            "where do I have to look for {x}",
        ),
        ("can you tell me where {x} lives", "where does {x} have its home"),
    ),
    "food": (
        (
            "what does {x} eat", "what does {x} like to eat", "what is the food of {x}",
            "which food does {x} like", "tell me what {x} eats", "do you know what {x} eats",
            "what should I feed {x}", "what do you give {x} to eat", "what is {x} fond of eating",
        ),
        ("can you tell me what {x} eats", "which food does {x} eat"),
    ),
    "young": (
        (
            "what is the young of {x} called", "what do you call the young of {x}",
            "what is a baby of {x} called", "how do you call the baby of {x}",
            "tell me the name for the young of {x}", "what is the word for the young of {x}",
            "do you know what the young of {x} is called", "which name has the baby of {x}",
        ),
        ("tell me what the young of {x} is called",),
    ),
    "kind": (
        (
            "what is {x}", "what kind of thing is {x}", "what sort of thing is {x}",
            "which kind of thing is {x}", "tell me what {x} is", "do you know what {x} is",
            "can you tell me what kind of thing {x} is",
        ),
        ("tell me what kind of thing {x} is",),
    ),
    "job": (
        (
            "what is the job of {x}", "what does {x} do", "what does {x} do for a living",
            "which job does {x} have", "what does {x} work as", "tell me the job of {x}",
            "do you know the job of {x}", "what work does {x} do", "what's the job of {x}",
            "what is the work of {x}", "how does {x} earn a living",
        ),
        ("can you tell me the job of {x}", "which work does {x} do"),
    ),
    "town": (
        (
            "where does {x} live", "in which town does {x} live", "where is the home of {x}",
            "which town is the home of {x}", "tell me where {x} lives",
            "do you know where {x} lives", "where is {x} at home", "what town does {x} live in",
            "in what town can I visit {x}",
        ),
        ("can you tell me where {x} lives", "which town does {x} live in"),
    ),
    "pet": (
        (
            "which animal does {x} have", "what pet does {x} have", "which pet does {x} have",
            "what is the pet of {x}", "what animal does {x} keep", "tell me which pet {x} has",
            "do you know the pet of {x}", "what kind of pet does {x} keep",
            "which animal lives with {x}",
        ),
        ("tell me the pet of {x}", "which animal does {x} keep"),
    ),
    "dish": (
        (
            "what does {x} like to eat", "what is the favourite food of {x}",
            "which food does {x} like best", "what does {x} like best to eat",
            "tell me the favourite food of {x}", "do you know what {x} likes to eat",
            "what should I cook for {x}", "what dish does {x} like best",
        ),
        ("tell me what {x} likes to eat", "which dish does {x} like best"),
    ),
    "lies": (
        (
            "where is {x}", "where does {x} lie", "where can I find {x}", "tell me where {x} is",
            "do you know where {x} lies", "where is the town of {x}", "where do I find {x}",
        ),
        ("tell me where {x} lies",),
    ),
    "known_for": (
        (
            "what is {x} known for", "why do people know {x}", "what is {x} famous for",
            "tell me what {x} is known for", "what can I see in {x}", "why do people go to {x}",
        ),
        ("tell me what {x} is famous for",),
    ),
    "who": (
        (
            "who is the {job} of {town}", "who is the {job} in {town}",
            "which {job} lives in {town}", "what is the name of the {job} in {town}",
            "who works as {a_job} in {town}", "do you know the {job} of {town}",
            "tell me the name of the {job} in {town}", "how is the {job} of {town} called",
        ),
        ("tell me who is the {job} of {town}",),
    ),
}  # fmt: skip


def _rivals(values: set[str], key: str) -> tuple[str, ...]:
    """Other answers to the same kind of question; those that are part of the right one are not."""
    return tuple(sorted(value for value in values if value not in key and key not in value))


def _animal_facts() -> list[Fact]:
    facts = []
    sentences: dict[str, Callable[[world.Animal], str]] = {
        "colour": lambda x: f"is {x.colour}",
        "sound": lambda x: x.sound,
        "home": lambda x: f"lives in {x.home}",
        "food": lambda x: f"eats {x.food}",
    }
    for animal in ANIMALS:
        for topic, tell in sentences.items():
            key = str(getattr(animal, topic))
            rivals = _rivals({str(getattr(other, topic)) for other in ANIMALS}, key)
            facts.append(
                Fact(
                    f"the {animal.name}", topic, key, f"The {animal.name} {tell(animal)}.",
                    f"It {tell(animal)}.", "it", rivals,
                )
            )  # fmt: skip
        rivals = _rivals({other.young for other in ANIMALS}, animal.young)
        sentence = f"The young of {a(animal.name)} is called {a(animal.young)}."
        facts.append(Fact(a(animal.name), "young", animal.young, sentence, sentence, "", rivals))
    return facts


def _thing_facts() -> list[Fact]:
    facts = []
    kinds = {thing.kind for thing in THINGS}
    for thing in THINGS:
        name = f"the {thing.name}"
        colour_rivals = _rivals(set(world.COLOURS), thing.colour)
        colour = f"is {thing.colour}."
        facts.append(
            Fact(
                name,
                "colour",
                thing.colour,
                f"The {thing.name} {colour}",
                f"It {colour}",
                "it",
                colour_rivals,
            )
        )
        sentence = f"{a(thing.name)} is {a(thing.kind)}."
        sentence = sentence[0].upper() + sentence[1:]
        facts.append(
            Fact(
                a(thing.name),
                "kind",
                thing.kind,
                sentence,
                sentence,
                "",
                _rivals(kinds, thing.kind),
            )
        )
    return facts


def _person_facts() -> list[Fact]:
    facts = []
    for person in PEOPLE:
        she = person.pronoun.capitalize()
        tell = {
            "job": (person.job, f"is {a(person.job)}."),
            "town": (person.town, f"lives in {person.town}."),
            "pet": (person.pet, f"has {a(person.pet)}."),
            "dish": (person.dish, f"likes to eat {person.dish}."),
        }
        for topic, (key, rest) in tell.items():
            rivals = _rivals({str(getattr(other, topic)) for other in PEOPLE}, key)
            facts.append(
                Fact(
                    person.name,
                    topic,
                    key,
                    f"{person.name} {rest}",
                    f"{she} {rest}",
                    person.pronoun,
                    rivals,
                )
            )
    return facts


def _town_facts() -> list[Fact]:
    facts = []
    for town in TOWNS:
        lies = _rivals({other.lies for other in TOWNS}, town.lies)
        facts.append(
            Fact(
                town.name,
                "lies",
                town.lies,
                f"{town.name} lies {town.lies}.",
                f"It lies {town.lies}.",
                "it",
                lies,
            )
        )
        known = _rivals({other.known_for for other in TOWNS}, town.known_for)
        rest = f"is known for {town.known_for}."
        facts.append(
            Fact(
                town.name,
                "known_for",
                town.known_for,
                f"{town.name} {rest}",
                f"It {rest}",
                "it",
                known,
            )
        )
    return facts


FACTS: tuple[Fact, ...] = tuple(_animal_facts() + _thing_facts() + _person_facts() + _town_facts())
FACTS_BY_ABOUT: dict[str, list[Fact]] = {}
for _fact in FACTS:
    FACTS_BY_ABOUT.setdefault(_fact.about, []).append(_fact)


def fact_question(rng: Rng, split: Split) -> Question:
    """A question about one fact."""
    if rng.random() < 0.12:
        return _who_question(rng, split)
    return ask(rng, split, rng.choice(FACTS))


def ask(rng: Rng, split: Split, fact: Fact) -> Question:
    """The question whose answer is a fact, in one of its wordings."""
    core, is_unseen = pick_wording(rng, split, *WORDINGS[fact.topic])
    about = fact.about
    if about.startswith("the ") and rng.random() < 0.3 and fact.topic != "colour":
        about = a(about.removeprefix("the "))
    return Question(
        text=dress(rng, core.format(x=about)),
        answer=fact.sentence,
        key=fact.key,
        identity=f"fact|{fact.about}|{fact.topic}|{core}",
        rivals=fact.rivals,
        unseen_wording=is_unseen,
    )


def ask_back(rng: Rng, fact: Fact) -> Question:
    """The same when it is clear of whom one speaks: "And where does she live?"."""
    core = rng.choice(WORDINGS[fact.topic][0])
    pronoun = fact.pronoun
    if " of {x}" in core:
        owner = {"he": "his", "she": "her", "it": "its"}[pronoun]
        core = core.replace("the ", f"{owner} ", 1) if core.count("the ") else core
        core = core.replace(" of {x}", "")
    start = rng.choice(("and ", "and ", "", "now, ", "okay, and ", "thanks! And "))
    behind = ("for {x}", "feed {x}", "find {x}", "visit {x}", "give {x}", "with {x}", "paint {x}")
    object_form = {"he": "him", "she": "her", "it": "it"}[pronoun]
    is_object = any(words in core for words in behind)
    text = start + core.format(x=object_form if is_object else pronoun) + rng.choice(("?", "?", ""))
    return Question(
        text=text[0].upper() + text[1:],
        answer=fact.follow_up,
        key=fact.key,
        identity=f"fact|{fact.about}|{fact.topic}|back|{core}",
        rivals=fact.rivals,
    )


_BY_JOB_AND_TOWN = [(person, f"{person.job} of {person.town}") for person in PEOPLE]


def _who_question(rng: Rng, split: Split) -> Question:
    person, _ = rng.choice(_BY_JOB_AND_TOWN)
    core, is_unseen = pick_wording(rng, split, *WORDINGS["who"])
    text = core.format(job=person.job, town=person.town, a_job=a(person.job))
    return Question(
        text=dress(rng, text),
        answer=f"{person.name} is the {person.job} of {person.town}.",
        key=person.name,
        identity=f"who|{person.name}|{core}",
        rivals=tuple(other.name for other in PEOPLE if other is not person),
        unseen_wording=is_unseen,
    )


NOT_KNOWN = "I am sorry, I do not know that."


def unknown_question(rng: Rng, split: Split) -> Question:
    """A question about somebody or something that is not in the world."""
    about, topic = _nobody(rng) if rng.random() < 0.5 else _nothing(rng)
    core, is_unseen = pick_wording(rng, split, *WORDINGS[topic])
    return Question(
        text=dress(rng, core.format(x=about)),
        answer=NOT_KNOWN,
        key="do not know",
        identity=f"unknown|{about}|{core}",
        unseen_wording=is_unseen,
    )


def _nobody(rng: Rng) -> tuple[str, str]:
    """Somebody who is not in the world, and what might be asked about a person."""
    name = "".join(rng.choice(parts.split()) for parts in world.UNKNOWN_NAME_PARTS)
    return name, rng.choice(("job", "town", "pet", "dish"))


def _nothing(rng: Rng) -> tuple[str, str]:
    """An animal that is not in the world, and what might be asked about one."""
    made_up = "".join(rng.choice(parts.split()) for parts in world.UNKNOWN_ANIMAL_PARTS)
    name = rng.choice(world.LEGENDARY) if rng.random() < 0.3 else made_up
    return f"the {name}", rng.choice(("colour", "sound", "home", "food"))
