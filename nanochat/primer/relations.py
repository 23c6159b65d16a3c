"""Facts turned around or joined: who has it, is it so, which are, what is it of whose pet."""

from random import Random

from nanochat.primer.facts import FACT_OF, FACTS, FACTS_BY_ABOUT, Fact
from nanochat.primer.phrasing import as_typed
from nanochat.primer.question import Question, Split
from nanochat.primer.world import ANIMALS, PEOPLE, THINGS, TOWNS, a, capitalized, plural

MAX_LISTED = 4  # subjects that an answer names; of more it names three

_ANIMALS = {f"the {animal.name}" for animal in ANIMALS}
_PEOPLE = {person.name for person in PEOPLE}
_GROUPS = {"animal": _ANIMALS, "person": _PEOPLE, "thing": {f"the {t.name}" for t in THINGS},
           "town": {town.name for town in TOWNS}}  # fmt: skip


def _group(fact: Fact) -> str:
    about = (
        fact.about if fact.topic not in ("young", "kind") else f"the {fact.about.split(' ', 1)[1]}"
    )
    return next(name for name, members in _GROUPS.items() if about in members)


# Subjects by the group, topic and value that they share.
_SHARED: dict[tuple[str, str, str], list[str]] = {}
_VALUES: dict[tuple[str, str], list[str]] = {}
for _fact in FACTS:
    _about = (
        _fact.about
        if _fact.about[:2] not in ("a ", "an")
        else f"the {_fact.about.split(' ', 1)[1]}"
    )
    _SHARED.setdefault((_group(_fact), _fact.topic, _fact.key), []).append(_about)
    _VALUES.setdefault((_group(_fact), _fact.topic), []).append(_fact.key)


def _table(text: str) -> dict[tuple[str, str], list[str]]:
    table: dict[tuple[str, str], list[str]] = {}
    for line in text.strip().splitlines():
        head, _, cores = line.partition(": ")
        group, _, topic = head.partition(" ")
        table.setdefault((group, topic), []).extend(cores.split(" | "))
    return table


# {v} is the value, {a_v} with its article, {vs} its plural.
_REVERSE = _table("""
animal colour: which animal is {v} | which animals are {v} | what animals are {v}
animal colour: list the {v} animals | name the {v} animals | name a {v} animal
animal colour: are there {v} animals | tell me a {v} animal | which animals have the colour {v}
animal colour: what {v} animals do you know | who is {v}
animal sound: which animal {v} | what animal {v} | who {v} | what {v} | tell me which animal {v}
animal sound: do you know which animal {v} | which of the animals {v} | the animal that {v}
animal home: which animal lives in {v} | who lives in {v} | what lives in {v} | whose home is {v}
animal home: what animal lives in {v} | which animal can I find in {v} | who sleeps in {v}
animal food: which animal eats {v} | who eats {v} | what animal eats {v} | which animal likes {v}
animal food: what eats {v} | who likes to eat {v} | {v} is the food of which animal
animal young: which animal has {a_v} | whose baby is {a_v} | whose young is called {a_v}
animal young: what animal has {a_v} | {a_v} is the young of which animal | which animals have {vs}
person job: who is {a_v} | who works as {a_v} | who are the {vs} | name the {vs} | list all {vs}
person job: which people are {vs} | who has the job of {a_v} | name {a_v} | do you know {a_v}
person town: who lives in {v} | which people live in {v} | name the people of {v} | who is from {v}
person town: list the people in {v} | who is at home in {v} | whom can I visit in {v}
person pet: who has {a_v} | who owns {a_v} | who keeps {a_v} | whose pet is {a_v} | who has the {v}
person pet: which person has {a_v} | who has {a_v} as a pet | whose pet is the {v}
person pet: who owns the {v} | who has {a_v} at home | {a_v} is whose pet | who has got {a_v}
person dish: who likes {v} | who likes to eat {v} | who eats {v} | whose favourite food is {v}
person dish: who loves {v} | which person likes {v} | {v} is whose favourite food
town lies: which town lies {v} | which town is {v} | what town is {v} | what lies {v}
town lies: which place is {v} | the town {v}
town known_for: which town is known for {v} | what town is famous for {v} | where can I see {v}
town known_for: which town has {v} | what town is known for {v} | where do people go for {v}
thing colour: which things are {v} | what is {v} | name something {v} | list some {v} things
thing colour: tell me something {v} | which thing is {v} | what things are {v} | name a {v} thing
thing kind: name {a_v} | which {vs} do you know | list some {vs} | what {vs} are there
thing kind: name some {vs} | tell me {a_v} | what {vs} do you know | which things are {vs}
thing kind: give me {a_v}
""")  # fmt: skip
# The value comes first: once it stands in its usual letters, its subjects follow.
_REVERSE_ANSWERS = {
    ("animal", "colour"): ("{a_v} animal is {s}.", "{v} animals are {s}."),
    ("animal", "sound"): ("the animal that {v} is {s}.", ""),
    ("animal", "home"): ("in {v} lives {s}.", "in {v} live {s}."),
    ("animal", "food"): ("an animal that eats {v} is {s}.", "animals that eat {v} are {s}."),
    ("animal", "young"): ("{a_v} is the young of {s}.", "{a_v} is the young of {s}."),
    ("person", "job"): ("the {v} is {s}.", "the {vs} are {s}."),
    ("person", "town"): ("in {v} lives {s}.", "in {v} live {s}."),
    ("person", "pet"): ("{a_v} is the pet of {s}.", "{a_v} is the pet of {s}."),
    ("person", "dish"): ("somebody who likes {v} is {s}.", "people who like {v} are {s}."),
    ("town", "lies"): ("{v} lies {s}.", ""),
    ("town", "known_for"): ("the town known for {v} is {s}.", ""),
    ("thing", "colour"): ("{a_v} thing is {s}.", "{v} things are {s}."),
    ("thing", "kind"): ("{a_v} is {s}.", "{vs} are {s}."),
}


def _value_first(group: str, topic: str, value: str) -> tuple[str, str]:
    """A sentence that names a value, then its subjects, and these: "A cub is ... of the fox."."""
    subjects = _SHARED[group, topic, value]
    named = _joined(subjects if len(subjects) <= MAX_LISTED else subjects[:3])
    template = _REVERSE_ANSWERS[group, topic][len(subjects) > 1]
    answer = capitalized(template.format(s=named, v=value, a_v=a(value), vs=plural(value)))
    if len(subjects) > MAX_LISTED:
        answer = f"{answer.removesuffix('.')}, among others."
    return answer, named


def reversed_fact(rng: Random) -> str:
    """A sentence from a value to its subjects, for base text."""
    group, topic = rng.choice(list(_REVERSE))
    return _value_first(group, topic, rng.choice(_VALUES[group, topic]))[0]


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _reverse(rng: Random, split: Split) -> Question:
    """From a value to its subjects: "who has a giraffe", "which animals are pink"."""
    group, topic = rng.choice(list(_REVERSE))
    value = rng.choice(_VALUES[group, topic])
    core = rng.choice(_REVERSE[group, topic])
    answer, named = _value_first(group, topic, value)
    return Question(
        text=as_typed(rng, core.format(v=value, a_v=a(value), vs=plural(value))),
        answer=answer, key=named, identity=f"reverse|{core}|{value}",
    )  # fmt: skip


# {x} is the subject, {v} a value that is right or wrong, {base} the infinitive of a sound.
_YES_NO = _table("""
any colour: is {x} {v} | is {x} really {v} | is the colour of {x} {v} | does {x} have the colour {v}
any sound: does {x} {base} | can {x} {base} | is it true that {x} {v}
any home: does {x} live in {v} | is {v} the home of {x} | is the home of {x} {v}
any home: can I find {x} in {v}
any food: does {x} eat {v} | does {x} like {v} | does {x} like to eat {v} | can I feed {x} {v}
any young: is the young of {x} called {a_v} | is {a_v} a baby of {x} | is a baby {bare} {a_v}
any kind: is {x} {a_v} | is {x} really {a_v} | is it true that {x} is {a_v}
any job: is {x} {a_v} | does {x} work as {a_v} | is {x} really {a_v}
any town: does {x} live in {v} | is {x} from {v} | is {v} the home of {x} | is {x} at home in {v}
any pet: does {x} have {a_v} | is {a_v} the pet of {x} | does {x} keep {a_v} | has {x} got {a_v}
any pet: is the {v} the pet of {x} | does {x} own {a_v}
any dish: does {x} like {v} | does {x} like to eat {v} | is {v} the favourite food of {x}
any dish: does {x} eat {v}
any lies: is {x} {v} | does {x} lie {v} | is it true that {x} lies {v}
any known_for: is {x} known for {v} | is {x} famous for {v} | do people go to {x} for {v}
""")  # fmt: skip
# What is asked, said again in the words of the answer: compared word by word there, however the
# question is typed.
_ASKED = {
    "colour": "is it {v}?", "sound": "it {v}?", "home": "in {v}?", "food": "is it {v}?",
    "young": "{a_v}?", "kind": "{a_v}?", "job": "{a_v}?", "town": "in {v}?", "pet": "{a_v}?",
    "dish": "is it {v}?", "lies": "is it {v}?", "known_for": "for {v}?",
}  # fmt: skip
_PLURAL_YES_NO = {
    "colour": "are {xs} {v}", "sound": "do {xs} {base}", "home": "do {xs} live in {v}",
    "food": "do {xs} eat {v}",
}  # fmt: skip


def _infinitive(verb: str) -> str:
    """yaps -> yap, hisses -> hiss."""
    return verb[:-2] if verb.endswith(("sses", "shes", "ches", "zzes")) else verb[:-1]


def _yes_no(rng: Random, split: Split) -> Question:
    """Is it so? The fact comes first: it decides between yes and no."""
    if rng.random() < 0.1:
        return _is_who(rng)
    fact, is_right = rng.choice(FACTS), rng.random() < 0.5
    value = fact.key if is_right or not fact.rivals else rng.choice(fact.rivals)
    bare = fact.about.split(maxsplit=1)[-1]
    core = rng.choice(_YES_NO["any", fact.topic])
    if fact.about in _ANIMALS and rng.random() < 0.25:
        core = _PLURAL_YES_NO[fact.topic]
    about = a(bare) if fact.about in _ANIMALS and rng.random() < 0.2 else fact.about
    text = core.format(
        x=about, xs=plural(bare), bare=bare, v=value, a_v=a(value), base=_infinitive(value)
    )
    asked = capitalized(_ASKED[fact.topic].format(v=value, a_v=a(value)))
    identity = f"yes no|{core}|{fact.about}|{value}"
    return _judged(rng, text, f"{asked} {fact.sentence}", value == fact.key, identity)


def _judged(rng: Random, core: str, sentence: str, is_right: bool, identity: str) -> Question:
    key, other = ("yes", "no") if is_right else ("no", "yes")
    return Question(
        text=as_typed(rng, core), answer=f"{sentence.removesuffix('.')}, so {key}.", key=key,
        identity=identity, rivals=(other,),
    )  # fmt: skip


def _is_who(rng: Random) -> Question:
    person = rng.choice(PEOPLE)
    shown = person if rng.random() < 0.5 else rng.choice(PEOPLE)
    core = rng.choice(("is {name} the {job} of {town}", "is the {job} of {town} called {name}"))
    text = core.format(name=shown.name, job=person.job, town=person.town)
    sentence = f"Is it {shown.name}? {person.name} is the {person.job} of {person.town}."
    return _judged(
        rng, text, sentence, shown is person, f"is who|{core}|{shown.name}|{person.name}"
    )


_HOPS = {  # a fact about a person, how its value is spoken of, and what is asked of that
    "pet": (("{x}'s pet", "the pet of {x}", "the animal of {x}", "the animal that {x} has"),
            ("colour", "sound", "home", "food")),
    "town": (("{x}'s town", "the town of {x}", "the town where {x} lives",
    "the town in which {x} lives"),
             ("lies", "known_for")),
}  # fmt: skip
_HOP_CORES = {
    "colour": ("what colour is {y}", "what is the colour of {y}", "which colour does {y} have"),
    "sound": ("what sound does {y} make", "how does {y} sound", "what noise does {y} make"),
    "home": ("where does {y} live", "where does {y} sleep", "what is the home of {y}"),
    "food": ("what does {y} eat", "what does {y} like to eat", "what is the food of {y}"),
    "lies": ("where is {y}", "where does {y} lie", "tell me where {y} is"),
    "known_for": ("what is {y} known for", "what is {y} famous for", "why do people go to {y}"),
}


def two_hops(rng: Random, split: Split) -> Question:
    """What is asked of somebody's pet or town, or of the holder of a job; both facts are said."""
    if rng.random() < 0.3:
        return _of_the_holder(rng, split)
    person, first = rng.choice(PEOPLE), rng.choice(("pet", "pet", "town"))
    names, topics = _HOPS[first]
    topic = rng.choice(topics)
    between = f"the {person.pet}" if first == "pet" else person.town
    fact = FACT_OF[between, topic]
    core = rng.choice(_HOP_CORES[topic]).format(y=rng.choice(names).format(x=person.name))
    start = FACT_OF[person.name, first].sentence.removesuffix(".")
    return Question(
        text=as_typed(rng, core), answer=f"{start}, and {_lowered(fact.sentence)}", key=fact.key,
        identity=f"hop|{person.name}|{topic}", rivals=_unmentioned(fact, start),
    )  # fmt: skip


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:] if sentence.startswith("The ") else sentence


def _unmentioned(fact: Fact, text: str) -> tuple[str, ...]:
    return tuple(rival for rival in fact.rivals if rival not in text)


def _of_the_holder(rng: Random, split: Split) -> Question:
    """Which pet does the baker of Lakeside have?"""
    person, topic = rng.choice(PEOPLE), rng.choice(("pet", "dish"))
    fact = FACT_OF[person.name, topic]
    holder = f"the {person.job} of {person.town}"
    core = rng.choice({
        "pet": ("which pet does {y} have", "what animal does {y} keep", "what is the pet of {y}"),
        "dish": ("what does {y} like to eat", "what is the favourite food of {y}",
        "which food does {y} like"),
    }[topic])  # fmt: skip
    return Question(
        text=as_typed(rng, core.format(y=holder)),
        answer=f"{capitalized(holder)} is {person.name}, and {fact.sentence}", key=fact.key,
        identity=f"hop|{person.name}|{topic}", rivals=fact.rivals,
    )  # fmt: skip


_PORTRAITS = (
    "tell me about {x}", "what do you know about {x}", "describe {x}",
    "tell me something about {x}",
    "what can you tell me about {x}", "say something about {x}", "I want to know more about {x}",
    "give me facts about {x}", "do you know {x}",
)  # fmt: skip


def _portrait(rng: Random, split: Split) -> Question:
    """Two or three facts about a subject."""
    about = rng.choice([name for name in FACTS_BY_ABOUT if name[:2] not in ("a ", "an")])
    facts = {fact.topic: fact for fact in FACTS_BY_ABOUT[about]}
    core = rng.choice(_PORTRAITS + (("who is {x}", "who is {x}") if about in _PEOPLE else ()))
    if about in _PEOPLE:
        text = f"{about} is {a(facts['job'].key)} in {facts['town'].key}"
        text += f" and has {a(facts['pet'].key)}."
    elif about in _ANIMALS:
        text = f"{capitalized(about)} is {facts['colour'].key}, lives in {facts['home'].key}"
        text += f" and eats {facts['food'].key}."
    elif "lies" in facts:
        text = f"{about} lies {facts['lies'].key} and is known for {facts['known_for'].key}."
    else:
        kind = FACT_OF[a(about.removeprefix("the ")), "kind"].key
        text = f"{capitalized(about)} is {a(facts['colour'].key)} {kind}."
    key = text.partition(" ")[2] if about in _PEOPLE else text.removesuffix(".")
    return Question(
        text=as_typed(rng, core.format(x=about)), answer=text, key=key.removesuffix("."),
        identity=f"portrait|{core}|{about}",
    )  # fmt: skip


def relation_question(rng: Random, split: Split) -> Question:
    """A question of one of the kinds above."""
    makers = (_reverse, _reverse, _reverse, _yes_no, _yes_no, _yes_no, two_hops, _portrait)
    return rng.choice(makers)(rng, split)
