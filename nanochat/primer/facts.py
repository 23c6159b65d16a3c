"""Questions about the facts of the world, and questions about what is not in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from nanochat.primer.question import Paraphrases, Question, Split, as_typed
from nanochat.primer.world import ANIMALS, PEOPLE, THINGS, TOWNS, a, capitalized, columns, words


@dataclass(frozen=True)
class Fact:
    """One value of one thing or person."""

    about: str  # the subject: "the fox", "Mia"
    topic: str  # a key of PARAPHRASES
    key: str  # the value
    sentence: str  # the answer as a complete sentence
    follow_up: str  # the same with a pronoun, when the subject has been named before
    pronoun: str  # "" where no follow-up question is possible
    rivals: tuple[str, ...]  # values of the other subjects


# Cores of questions, for `as_typed`; {x} is the subject.
PARAPHRASES = Paraphrases.table("""
colour: what colour is {x} | which colour is {x} | what is the colour of {x}
colour: what colour does {x} have | which colour does {x} have | tell me the colour of {x}
colour: do you know the colour of {x} | can you tell me what colour {x} is | {x} is what colour
colour: name the colour of {x} | what's the colour of {x} | I want to know the colour of {x}
colour: what colour would you paint {x}
colour unseen: do you know what colour {x} is | which colour has {x}
sound: what sound does {x} make | which sound does {x} make | what does {x} do to be heard
sound: how does {x} sound | what noise does {x} make | which noise does {x} make
sound: tell me what sound {x} makes | do you know what noise {x} makes
sound: can you tell me how {x} sounds | what can you hear when {x} is near
sound unseen: do you know what sound {x} makes | tell me what noise {x} makes
home: where does {x} live | where is the home of {x} | what is the home of {x}
home: in which place does {x} live | where can I find {x} | tell me where {x} lives
home: do you know where {x} lives | where does {x} sleep | where do I have to look for {x}
home unseen: can you tell me where {x} lives | where does {x} have its home
food: what does {x} eat | what does {x} like to eat | what is the food of {x}
food: which food does {x} like | tell me what {x} eats | do you know what {x} eats
food: what should I feed {x} | what do you give {x} to eat | what is {x} fond of eating
food unseen: can you tell me what {x} eats | which food does {x} eat
young: what is the young of {x} called | what do you call the young of {x}
young: what is a baby of {x} called | how do you call the baby of {x}
young: tell me the name for the young of {x} | what is the word for the young of {x}
young: do you know what the young of {x} is called | which name has the baby of {x}
young unseen: tell me what the young of {x} is called
kind: what is {x} | what kind of thing is {x} | what sort of thing is {x}
kind: which kind of thing is {x} | tell me what {x} is | do you know what {x} is
kind: can you tell me what kind of thing {x} is
kind unseen: tell me what kind of thing {x} is
job: what is the job of {x} | what does {x} do | what does {x} do for a living
job: which job does {x} have | what does {x} work as | tell me the job of {x}
job: do you know the job of {x} | what work does {x} do | what's the job of {x}
job: what is the work of {x} | how does {x} earn a living
job unseen: can you tell me the job of {x} | which work does {x} do
town: where does {x} live | in which town does {x} live | where is the home of {x}
town: which town is the home of {x} | tell me where {x} lives | do you know where {x} lives
town: where is {x} at home | what town does {x} live in | in what town can I visit {x}
town unseen: can you tell me where {x} lives | which town does {x} live in
pet: which animal does {x} have | what pet does {x} have | which pet does {x} have
pet: what is the pet of {x} | what animal does {x} keep | tell me which pet {x} has
pet: do you know the pet of {x} | what kind of pet does {x} keep | which animal lives with {x}
pet unseen: tell me the pet of {x} | which animal does {x} keep
dish: what does {x} like to eat | what is the favourite food of {x} | which food does {x} like best
dish: what does {x} like best to eat | tell me the favourite food of {x}
dish: do you know what {x} likes to eat | what should I cook for {x} | what dish does {x} like best
dish unseen: tell me what {x} likes to eat | which dish does {x} like best
lies: where is {x} | where does {x} lie | where can I find {x} | tell me where {x} is
lies: do you know where {x} lies | where is the town of {x} | where do I find {x}
lies unseen: tell me where {x} lies
known_for: what is {x} known for | why do people know {x} | what is {x} famous for
known_for: tell me what {x} is known for | what can I see in {x} | why do people go to {x}
known_for unseen: tell me what {x} is famous for
who: who is the {job} of {town} | who is the {job} in {town} | which {job} lives in {town}
who: what is the name of the {job} in {town} | who works as {a_job} in {town}
who: do you know the {job} of {town} | tell me the name of the {job} in {town}
who: how is the {job} of {town} called
who unseen: tell me who is the {job} of {town}
""")  # fmt: skip


# For each table, how a row is named and a sentence for each topic. {x} is the subject or, in a
# follow-up, its pronoun; a sentence without {x} is about a class of things ("a fox").
_SENTENCES = (
    (ANIMALS, "the {name}", {
        "colour": "{x} is {colour}.", "sound": "{x} {sound}.", "home": "{x} lives in {home}.",
        "food": "{x} eats {food}.", "young": "The young of {a_name} is called {a_young}.",
    }),
    (THINGS, "the {name}", {"colour": "{x} is {colour}.", "kind": "{a_name} is {a_kind}."}),
    (PEOPLE, "{name}", {
        "job": "{x} is {a_job}.", "town": "{x} lives in {town}.", "pet": "{x} has {a_pet}.",
        "dish": "{x} likes to eat {dish}.",
    }),
    (TOWNS, "{name}", {"lies": "{x} lies {lies}.", "known_for": "{x} is known for {known_for}."}),
)  # fmt: skip


def _all_facts() -> Iterator[Fact]:
    for rows, subject, sentences in _SENTENCES:
        for row in map(columns, rows):
            for topic, template in sentences.items():
                is_definition = "{x}" not in template
                about = row["a_name"] if is_definition else subject.format(**row)
                pronoun = "" if is_definition else row.get("pronoun", "it")
                sentence = capitalized(template.format(x=about, **row))
                follow_up = capitalized(template.format(x=pronoun, **row))
                key = row[topic]
                values = {vars(other)[topic] for other in rows}
                # Without values that are part of the right one or contain it. Sorted, since
                # choice_question samples from them and sets have no stable order.
                rivals = sorted(value for value in values if value not in key and key not in value)
                yield Fact(about, topic, key, sentence, follow_up, pronoun, tuple(rivals))


FACTS = tuple(_all_facts())
FACTS_BY_ABOUT: dict[str, list[Fact]] = {}
for _fact in FACTS:
    FACTS_BY_ABOUT.setdefault(_fact.about, []).append(_fact)


def fact_question(rng: Random, split: Split) -> Question:
    """A question about one fact."""
    if rng.random() < 0.12:  # the reverse direction, from town and job to the person
        return _who_question(rng, split)
    return ask(rng, split, rng.choice(FACTS))


def ask(rng: Random, split: Split, fact: Fact) -> Question:
    """The question that a fact answers, in one of its paraphrases."""
    core, is_unseen = PARAPHRASES[fact.topic].pick(rng, split)
    about = fact.about
    # "a fox" for "the fox"; not for colours, which belong to the one fox of the world.
    if about.startswith("the ") and rng.random() < 0.3 and fact.topic != "colour":
        about = a(about.removeprefix("the "))
    return Question(
        text=as_typed(rng, core.format(x=about)),
        answer=fact.sentence,
        key=fact.key,
        # With the paraphrase: a held-out fact could not be known, a held-out way to ask can.
        identity=f"fact|{fact.about}|{fact.topic}|{core}",
        rivals=fact.rivals,
        unseen_wording=is_unseen,
    )


# Words before a pronoun in the object case.
_BEFORE_OBJECT = words("for feed find visit give with paint")


def ask_follow_up(rng: Random, fact: Fact) -> Question:
    """The same with a pronoun for a subject that has been named: "And where does she live?"."""
    core = rng.choice(PARAPHRASES[fact.topic].seen)
    subject, possessive, obj = {
        "he": ("he", "his", "him"), "she": ("she", "her", "her"), "it": ("it", "its", "it"),
    }[fact.pronoun]  # fmt: skip
    if " of {x}" in core:  # "the colour of {x}" -> "its colour"
        core = core.replace("the ", f"{possessive} ", 1).replace(" of {x}", "")
    opening = rng.choice(("and ", "and ", "", "now, ", "okay, and ", "thanks! And "))
    pronoun = obj if any(f"{word} {{x}}" in core for word in _BEFORE_OBJECT) else subject
    text = opening + core.format(x=pronoun) + rng.choice(("?", "?", ""))
    return Question(
        text=capitalized(text),
        answer=fact.follow_up,
        key=fact.key,
        identity=f"fact|{fact.about}|{fact.topic}|back|{core}",
        rivals=fact.rivals,
    )


def _who_question(rng: Random, split: Split) -> Question:
    person = rng.choice(PEOPLE)
    core, is_unseen = PARAPHRASES["who"].pick(rng, split)
    text = core.format(job=person.job, town=person.town, a_job=a(person.job))
    return Question(
        text=as_typed(rng, text),
        answer=f"{person.name} is the {person.job} of {person.town}.",
        key=person.name,
        identity=f"who|{person.name}|{core}",
        rivals=tuple(other.name for other in PEOPLE if other is not person),
        unseen_wording=is_unseen,
    )


# Thousands of invented names, so that what is learned is "no such name" and not a list of names.
_NAME_PARTS = (
    "Bar Dor Fen Gil Hes Lor Mal Pel Quin Row Sig Tam Urs Vin Xan Yor",
    "a e i o u",
    "ba bert dan dine fred la ley lina mond na rick ro tha thea vin wen",
)
_ANIMAL_PARTS = (
    "bl cr dr fl gr kl pr sn squ tr v w z",
    "a i o u",
    "bbin ckle dgit ffle mbat ndle ngor ppet rbel rkin sper zzle",
)
_LEGENDARY = words("""
    unicorn dragon griffin mermaid yeti phoenix troll giant kraken gnome elf goblin centaur sphinx
    vampire fairy
""")  # fmt: skip


def unknown_question(rng: Random, split: Split) -> Question:
    """A question about a person or an animal that is not in the world."""
    is_person = rng.random() < 0.5
    parts = _NAME_PARTS if is_person else _ANIMAL_PARTS
    about = "".join(rng.choice(part.split()) for part in parts)
    if not is_person:
        about = "the " + (rng.choice(_LEGENDARY) if rng.random() < 0.3 else about)
    topics = ("job", "town", "pet", "dish") if is_person else ("colour", "sound", "home", "food")
    core, is_unseen = PARAPHRASES[rng.choice(topics)].pick(rng, split)
    return Question(
        text=as_typed(rng, core.format(x=about)),
        answer="I am sorry, I do not know that.",
        key="do not know",
        identity=f"unknown|{about}|{core}",
        unseen_wording=is_unseen,
    )
