"""Questions about single facts of the world, and about what follows a question."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from nanochat.primer.phrasing import Paraphrases, as_typed
from nanochat.primer.question import Question, Split
from nanochat.primer.world import (
    ANIMALS,
    PEOPLE,
    THINGS,
    TOWNS,
    a,
    capitalized,
    columns,
    plural,
    words,
)


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


# Cores of questions; {x} is the subject, {xs} the plural of an animal.
PARAPHRASES = Paraphrases.table("""
colour: what colour is {x} | which colour is {x} | what colour does {x} have | {x} is what colour
colour clause: what colour {x} is | which colour {x} has
colour noun: the colour of {x} | {x}'s colour
colour unseen: of what colour is {x} | {x} has which colour
sound: what sound does {x} make | which sound does {x} make | how does {x} sound
sound: what noise does {x} make | what does {x} do to be heard | how does {x} go
sound clause: what sound {x} makes | how {x} sounds | what noise {x} makes
sound noun: the sound of {x} | {x}'s sound | the noise of {x}
sound unseen: what can you hear when {x} is near | {x} makes what sound
home: where does {x} live | where can I find {x} | where does {x} sleep
home: in which place does {x} live | where do I have to look for {x} | {x} lives where
home: where is {x} at home
home clause: where {x} lives | where I can find {x} | where {x} sleeps
home noun: the home of {x} | {x}'s home
home unseen: where should I go to see {x} | in what kind of place does {x} live
food: what does {x} eat | what does {x} like to eat | which food does {x} like | {x} eats what
food: what should I feed {x} | what do you give {x} to eat | what is {x} fond of eating
food clause: what {x} eats | what {x} likes to eat
food noun: the food of {x} | {x}'s food | {x}'s favourite food | the favourite food of {x}
food unseen: what would make {x} full | on what does {x} feed
young: what is the young of {x} called | what do you call the young of {x}
young: what is a baby of {x} called | what do you call the baby of {x}
young: how do you call a young {bare} | what is a baby {bare} called
young: what do you call a baby {bare} | {bare} baby name
young clause: what the young of {x} is called | what a baby {bare} is called
young noun: the name for the young of {x} | the word for a baby {bare}
young unseen: a young {bare} is called what | how do people call the baby of {x}
kind: what is {x} | what kind of thing is {x} | what sort of thing is {x}
kind: which kind of thing is {x}
kind clause: what {x} is | what kind of thing {x} is
kind noun: the kind of {x}
kind unseen: {x} is what kind of thing | what would you call {x}
job: what does {x} do | what does {x} do for a living | which job does {x} have
job: what does {x} work as | what work does {x} do | how does {x} earn a living | {x} works as what
job: what does {x} do all day
job clause: what {x} does for a living | which job {x} has | what {x} works as
job noun: the job of {x} | {x}'s job | the work of {x} | {x}'s profession
job unseen: what is {x} by profession | as what does {x} work
town: where does {x} live | in which town does {x} live | where is {x} from
town: what town does {x} live in | where is {x} at home | in what town can I visit {x}
town: {x} lives where | where can I meet {x}
town clause: where {x} lives | in which town {x} lives | which town {x} lives in
town noun: the home of {x} | {x}'s home | the town of {x} | {x}'s town
town unseen: where would I go to visit {x} | which place does {x} call home
pet: which animal does {x} have | what pet does {x} have | which pet does {x} have
pet: what animal does {x} keep | what kind of pet does {x} keep | which animal lives with {x}
pet: what pet does {x} keep at home | {x} has which pet | does {x} have a pet
pet clause: which pet {x} has | what animal {x} keeps
pet noun: the pet of {x} | {x}'s pet | the animal of {x}
pet unseen: what animal does {x} own | which animal waits for {x} at home
dish: what does {x} like to eat | which food does {x} like best | what should I cook for {x}
dish: what dish does {x} like best | what does {x} eat | what does {x} love to eat
dish: which food does {x} love most | what food does {x} like
dish clause: what {x} likes to eat | which food {x} likes best
dish noun: the favourite food of {x} | {x}'s favourite food | {x}'s favourite dish
dish unseen: what would {x} order for supper | with which food can I make {x} happy
lies: where is {x} | where does {x} lie | where can I find {x} | where is the town of {x}
lies: {x} is where
lies clause: where {x} is | where {x} lies | where I can find {x}
lies noun: the place of {x}
lies unseen: in what place is {x} | where on the map is {x}
known_for: what is {x} known for | what is {x} famous for | why do people know {x}
known_for: what can I see in {x} | why do people go to {x} | {x} is known for what
known_for: why is {x} famous
known_for clause: what {x} is known for | what {x} is famous for | why people go to {x}
known_for noun: the attraction of {x}
known_for unseen: what should I look at in {x} | why would anyone visit {x}
who: who is the {job} of {town} | who is the {job} in {town} | which {job} lives in {town}
who: who works as {a_job} in {town} | how is the {job} of {town} called
who clause: who the {job} of {town} is | who is the {job} of {town} | who the {job} in {town} is
who noun: the name of the {job} of {town} | the name of the {job} in {town} | the {job} of {town}
who unseen: in {town}, who is the {job} | the {job} in {town} is called what
""")  # fmt: skip
# Of animals in general, with the same answers.
_OF_ALL = Paraphrases.table("""
colour: what colour are {xs} | which colour do {xs} have | {xs} are what colour
sound: what sound do {xs} make | how do {xs} sound | what noise do {xs} make | what do {xs} do
home: where do {xs} live | where can I find {xs} | where do {xs} sleep
food: what do {xs} eat | what do {xs} like to eat | which food do {xs} like | what do I feed {xs}
young: what are the young of {xs} called | what are baby {xs} called
""")
# Typed like a search: "mia job".
_KEYWORDS = {
    "colour": "colour", "sound": "sound", "home": "home", "food": "food", "job": "job",
    "town": "town", "pet": "pet", "dish": "favourite food", "young": "baby", "kind": "kind",
}  # fmt: skip
KEYWORD_SHARE, OF_ALL_SHARE, WHO_SHARE = 0.05, 0.2, 0.1


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
FACT_OF = {(fact.about, fact.topic): fact for fact in FACTS}
_ANIMAL_NAMES = {animal.name for animal in ANIMALS}


def fact_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A question about one fact."""
    if rng.random() < WHO_SHARE:  # the reverse direction, from town and job to the person
        return _who_question(rng, split, unseen)
    return ask(rng, split, rng.choice(FACTS), unseen)


def ask(rng: Random, split: Split, fact: Fact, unseen: bool = False) -> Question:
    """The question that a fact answers, in one of its phrasings."""
    core, about = core_about(rng, split, fact, unseen)
    bare = about.split(maxsplit=1)[-1]
    return Question(
        text=as_typed(rng, core.format(x=about, xs=plural(bare), bare=bare)),
        answer=fact.sentence,
        key=fact.key,
        # With the phrasing: a held-out fact could not be known, a held-out way to ask can.
        identity=f"fact|{fact.about}|{fact.topic}|{core}",
        rivals=fact.rivals,
        unseen_wording=unseen,
    )


def core_about(rng: Random, split: Split, fact: Fact, unseen: bool) -> tuple[str, str]:
    """A phrasing of the question for a fact, and how it names the subject."""
    about, style = fact.about, rng.random()
    bare = about.split(maxsplit=1)[-1]
    if not unseen:
        if style < KEYWORD_SHARE and fact.topic in _KEYWORDS:
            return "{x} " + _KEYWORDS[fact.topic], bare
        if style < OF_ALL_SHARE and bare in _ANIMAL_NAMES:
            return rng.choice(_OF_ALL[fact.topic].direct), bare
    core = PARAPHRASES[fact.topic].pick(rng, split, unseen=unseen)
    if about.startswith("the ") and rng.random() < 0.25:
        about = a(bare)  # "a fox" for "the fox"
    elif about.startswith(("the ", "a ", "an ")) and rng.random() < 0.05:
        about = bare
    return core, about


# Words before a pronoun in the object case.
_BEFORE_OBJECT = words("for feed find visit give with meet make")


def ask_follow_up(rng: Random, fact: Fact) -> Question:
    """The same with a pronoun for a subject that has been named: "And where does she live?"."""
    forms = PARAPHRASES[fact.topic]
    subject, possessive, obj = {
        "he": ("he", "his", "him"), "she": ("she", "her", "her"), "it": ("it", "its", "it"),
    }[fact.pronoun]  # fmt: skip
    nouns = [noun for noun in forms.nouns if "'s " in noun]
    if nouns and rng.random() < 0.4:  # "and her pet"
        core = rng.choice(nouns).replace("{x}'s", possessive)
        core = rng.choice(("{n}", "{n}", "what is {n}", "what about {n}", "tell me {n}")).format(
            n=core
        )
    else:
        core = rng.choice([core for core in forms.direct if not core.startswith("{x}")])
        pronoun = obj if any(f"{word} {{x}}" in core for word in _BEFORE_OBJECT) else subject
        core = core.format(x=pronoun)
    opening = rng.choice(
        ("and ", "and ", "and ", "", "now, ", "okay, and ", "thanks! And ", "also, ")
    )
    return Question(
        text=capitalized(opening + core) + "?",
        answer=fact.follow_up,
        key=fact.key,
        identity=f"fact|{fact.about}|{fact.topic}|back|{core}",
        rivals=fact.rivals,
    )


def ask_of_another(rng: Random, fact: Fact) -> Question:
    """The question before, of another subject: "And Oskar?", or "No, I meant Oskar."."""
    about = fact.about
    core = rng.choice((
        "and {x}", "and {x}", "and {x}", "what about {x}", "and what about {x}", "how about {x}",
        "{x}", "and for {x}", "the same for {x}", "and of {x}", "sorry, I meant {x}",
        "no, I meant {x}", "I mean {x}", "no, {x}", "oh, I meant {x}", "I wanted to say {x}",
    ))  # fmt: skip
    mark = "." if "I " in core or core.startswith(("no,", "the same")) else "?"
    return Question(
        text=capitalized(core.format(x=about)) + mark,
        answer=fact.sentence,
        key=fact.key,
        identity=f"fact|{about}|{fact.topic}|another|{core}",
        rivals=fact.rivals,
    )


def _who_question(rng: Random, split: Split, unseen: bool) -> Question:
    person = rng.choice(PEOPLE)
    core = PARAPHRASES["who"].pick(rng, split, unseen=unseen)
    text = core.format(job=person.job, town=person.town, a_job=a(person.job))
    return Question(
        text=as_typed(rng, text),
        answer=f"{person.name} is the {person.job} of {person.town}.",
        key=person.name,
        identity=f"who|{person.name}|{core}",
        rivals=tuple(other.name for other in PEOPLE if other is not person),
        unseen_wording=unseen,
    )
