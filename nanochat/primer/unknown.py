"""What the world does not contain, and requests that a text model cannot fulfil."""

import re
from collections.abc import Callable
from random import Random

from nanochat.primer.facts import PARAPHRASES
from nanochat.primer.names import (
    COMMON_WORDS,
    THINGS_AROUND,
    invented_name,
    invented_word,
    is_in,
    open_name,
)
from nanochat.primer.phrasing import as_typed
from nanochat.primer.question import Question, Split
from nanochat.primer.world import ANIMALS, CHILDREN, PEOPLE, THINGS, TOWNS, plural, words

DO_NOT_KNOW, CANNOT = "I do not know that.", "I am sorry, I cannot do that."

_LEGENDARY = words("""
    unicorn dragon griffin mermaid yeti phoenix troll giant kraken gnome elf goblin centaur sphinx
    vampire fairy ogre hydra werewolf zombie pegasus
""")  # fmt: skip
_OTHER_ANIMALS = words("""
    kangaroo panda zebra dolphin shark octopus crab lobster eagle falcon hawk ostrich flamingo
    pelican koala hamster jaguar leopard cheetah panther hippo rhino gorilla chimpanzee walrus moose
    bison buffalo yak llama alpaca turtle snake crocodile alligator toad salmon tuna spider wasp
    beetle moth dragonfly worm jellyfish starfish raccoon skunk weasel ferret hyena coyote lynx
    platypus armadillo sloth lemur baboon gazelle antelope turkey sparrow raven stork heron
    woodpecker canary vulture cobra gecko chameleon salamander newt squid piranha
""")  # fmt: skip
PLACES = words("""
    France Germany Spain Italy England Scotland Ireland Portugal Greece Turkey Poland Norway Sweden
    Finland Denmark Russia China Japan India Korea Vietnam Thailand Australia Canada Mexico Brazil
    Argentina Chile Peru Cuba Egypt Morocco Nigeria Kenya Ethiopia Ghana Iran Iraq Israel Austria
    Hungary Iceland Belgium Holland Switzerland America Africa Europe Asia Texas California Florida
    Paris London Berlin Madrid Rome Vienna Moscow Tokyo Beijing Delhi Sydney Boston Chicago Dallas
    Dublin Cairo Oslo Athens Lisbon Mars Venus Jupiter Saturn Hawaii Alaska Amsterdam Barcelona
""")  # fmt: skip
_LAST_NAMES = words("""
    Smith Jones Brown Miller Einstein Newton Mozart Shakespeare Obama Trump Biden Lincoln Washington
    Gandhi Mandela Picasso Jackson Swift Ronaldo Messi Jordan Gates Musk Jobs Darwin Curie Potter
    Bach Beethoven Napoleon Caesar Columbus Lopez Garcia Johnson Williams Davis Wilson Martin King
    Clinton
""")  # fmt: skip
_ROLES = words("""
    president king queen leader prime-minister capital currency flag population language history
    anthem owner director inventor author size area climate food
""")  # fmt: skip
_TOPICS = words("""
    gravity bitcoin evolution democracy physics chemistry algebra football basketball tennis chess
    internet Google Facebook YouTube Netflix python javascript blockchain electricity photosynthesis
    inflation cancer diabetes vaccine virus climate universe moon sun earth sky rain lightning
    earthquake volcano pyramid titanic dinosaur love happiness life death religion money stock
    Christmas Easter Halloween yoga sushi pasta whiskey opera jazz rap cinema novel poem
""")  # fmt: skip
_ADJECTIVES = words("""
    blue green tall old big fast deep high long hot cold expensive heavy rich famous popular
    dangerous good bad true far large small difficult important smart strong healthy
""")  # fmt: skip
_VERBS = words("""
    fix build make cook learn buy sell clean repair draw play paint open start find use grow write
    install stop change print download
""")  # fmt: skip
_LANGUAGES = words(
    "Spanish French German Italian Chinese Japanese Russian Latin Arabic Dutch Swedish Hindi"
)
_YEARS = ("1492", "1789", "1914", "1945", "1969", "1990", "2001", "2012", "2016", "2020", "2024")


def _cores(text: str) -> list[str]:
    return text.strip().replace("\n", " | ").split(" | ")


# Fields: {person} and {animal} of the world, {anyone} of either; {name} and {word} of no list of
# the world, {full} with a last name.
_OF_THE_WORLD = _cores("""
how old is {anyone} | when was {person} born | how tall is {anyone}
what is the last name of {person} | how much does {animal} weigh | how fast is {animal}
who is the wife of {person} | is {person} married | what is the phone number of {person}
what did {person} do yesterday | how long does {animal} live | how many legs does {animal} have
does {person} have children | who is the brother of {person} | what is the birthday of {person}
what is the favourite song of {person} | what car does {person} drive
how many people live in {town} | who founded {town} | how old is {town}
what is the weather in {town} | how far is {town} | how much is {thing}
where was {person} yesterday | what is {person} thinking | does {person} like {name}
which school did {person} go to | what is the name of {person}'s mother
how big is {animal} in feet | how much does {person} earn | who is the sister of {person}
what size is {thing} | who made {thing} | how heavy is {thing} | what is {person}'s address
how many teeth does {animal} have | what does {person} wear | what is the hobby of {person}
""")
_OF_THE_WORLD_UNSEEN = _cores("""
at what age did {person} move | what is the middle name of {person} | does {animal} sleep at night
how many brothers does {person} have | who married {person} | which year was {town} built
what is {animal}'s Latin name | is {person} taller than {name} | what does {thing} cost
""")
# What is asked of the world with one name or thing that is not in it.
_AROUND_UNKNOWN_NAMES = _cores("""
who has a {beast} | who owns a {beast} | whose pet is the {beast} | who lives in {place}
who is the mayor of {place} | who is the {job} of {place} | which animal eats {things}
does {name} have a pet | is {name} a {job} | does {name} live in {town} | does {name} like {things}
is the {beast} big | is the {word} {adjective} | which town is known for its {word} | who is {name}
tell me about the {beast} | what do you know about {name} | which people live in {place}
is {place} a town | which is bigger, a {beast} or a {word} | what colour are {things}
does the {beast} live in a house | what is {name}'s job | who is a {word} | name a {beast}
who likes {things} | tell me about {name} | what is a {beast} | do {things} sleep
who lives in {invented} | does a {beast} eat {things} | where do {things} live
""")
_GENERAL = _cores("""
what is the {role} of {place} | who is the {role} of {place} | who invented {things}
what is {topic} | how does {topic} work | why is the {word} {adjective} | what is a {word}
how {adjective} is the {word} | how far is {place} | who won the world cup in {year}
who wrote {word} and {word} | who is {full} | what happened in {year}
how many {things} are in {place} | what time is it | what day is it today
what is the weather today | will it rain tomorrow | how do I {verb} a {word}
how can I {verb} my {word} | what is the best {word} in {place} | when did {full} die
what is the meaning of {topic} | explain {topic} | which language do they speak in {place}
who is the richest {word} | what is the longest {word} | how much does a {word} cost
where can I buy {things} | what is the price of {things} | who sang {word} | who painted the {word}
tell me about {topic} | tell me about {full} | what do you think about {topic} | do you like {topic}
how many people live in {place} | where is {place} | what is {place} known for
when was the {word} invented | what is the square root of {word} | how old is {full}
is {topic} real | who discovered {topic} | what is the difference between {topic} and {topic}
why do {things} {verb} | what is {topic} made of | how old is the {topic} | where does {full} live
who was {full} | what is the {adjective} {word} | what is in the news | who won the election
what should I wear today | why do people {verb} {things} | is it {adjective} to {verb} {things}
how do you {verb} {topic} | what does {invented} mean | what is {invented} | who is {invented}
where is my {word} | what is my {word} | how many {things} do I have | when is {topic}
where is the nearest {word} | can {things} {verb} | who is the {adjective} {word} in {place}
how do {things} {verb} | what is {topic} in {place} | how many days until {topic}
which {word} is the {adjective} | did {full} {verb} a {word} | what colour is the {word}
what colour is my {word} | who {verb}s {things} | who is {name} | what temperature is it in {place}
how long is the {word} | what is the chemical formula of {topic} | which team won {topic}
what is the height of {place} | who plays {full} | recommend a {word} | tell me the news
what is today's date | how was your {word} | what year is it | is {place} {adjective}
what is the GDP of {place} | how did {full} {verb} {topic} | do {things} {verb} {topic}
""")
_GENERAL_UNSEEN = _cores("""
name the {role} of {place} | in which year did {full} {verb} {topic}
what makes {topic} {adjective} | which river flows through {place} | how tall was {full}
who holds the record in {topic} | should I {verb} my {word} | what are the symptoms of {topic}
how do planes fly to {place} | who sells {things} in {place} | what is the boiling point of {topic}
where did {full} grow up
""")
_REQUESTS = _cores("""
write a poem about {topic} | write me a poem about the {word} | draw a {word}
draw me a picture of {place} | play some music | play a song by {full}
translate {word} to {language} | translate this into {language} | book a flight to {place}
book a table for two | call {name} | send an email to {name} | open the {word}
send a message to my {word} | order a {word} | buy me a {word} | turn on the {word} | sing a song
wake me up at seven | set an alarm for seven | set a timer | take a photo of the {word}
search the web for {topic} | write an essay about {topic} | write a program in python
fix my {word} | show me a picture of {full} | show me a video | make me a {word} | cook me a {word}
can you {verb} my {word} | go to {place} | drive me to {place} | speak {language}
answer in {language} | tell me a secret | write a letter to {name}
summarize the book about {topic} | do my homework | read me the newspaper | give me money
generate an image of a {word} | draw a map of {place} | find me a {word} in {place}
help me {verb} my {word} | can you {verb} a {word} for me | invent a {word} | code a website
bring me a {word} | call my {word} | play {topic} with me | write a story about {full}
write code for a {word} | dance for me
""")
_REQUESTS_UNSEEN = _cores("""
compose a song about {topic} | mail this {word} to {name} | say it in {language}
reserve a room in {place} | sketch a {word} | pay my {word} | text {name} that I am late
switch off the {word} | hack a {word}
""")
_PLEASE = ("", "", "", "please ", "can you ", "could you ", "I want you to ", "would you ")

# A misspelled name is still that name: invented ones keep a distance to all that are known.
_KNOWN = {
    word.lower()
    for name in (
        *(person.name for person in PEOPLE), *(town.name for town in TOWNS), *CHILDREN,
        *(animal.name for animal in ANIMALS), *(thing.name for thing in THINGS),
    )
    for word in name.split()
}  # fmt: skip


def _deletions(word: str) -> set[str]:
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


_NEAR_KNOWN = {variant for word in _KNOWN for variant in _deletions(word)}


def is_far_from_known(word: str) -> bool:
    """Whether no name of the world becomes `word` by one wrong, missing or doubled letter."""
    return not _deletions(word.lower()) & _NEAR_KNOWN


def _strange(rng: Random, split: Split, make: Callable[[Random], str]) -> str:
    while True:
        word = make(rng)
        if is_in(split, word) and is_far_from_known(word):
            return word


def unknown_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A question that the world does not answer, or a request that cannot be fulfilled."""
    kinds = ("strange", "around", "of the world", "general", "request")
    kind = rng.choices(kinds, (5, 2, 3, 6, 3))[0]
    if kind == "strange":
        return _about_an_unknown(rng, split, unseen)
    seen_and_unseen = {
        "around": (_AROUND_UNKNOWN_NAMES, _OF_THE_WORLD_UNSEEN),
        "of the world": (_OF_THE_WORLD, _OF_THE_WORLD_UNSEEN),
        "general": (_GENERAL, _GENERAL_UNSEEN),
        "request": (_REQUESTS, _REQUESTS_UNSEEN),
    }[kind]
    core = rng.choice(seen_and_unseen[unseen])
    text = re.sub(r"\{(\w+)\}", lambda field: _FIELDS[field[1]](rng, split), core)
    is_request = kind == "request"
    if is_request and not text.startswith(("can ", "could ")):
        text = rng.choice(_PLEASE) + text
    return Question(
        text=as_typed(rng, text), answer=CANNOT if is_request else DO_NOT_KNOW,
        key="cannot do that" if is_request else "do not know", identity=f"unknown|{text}",
        kind="refusal", unseen_wording=unseen,
    )  # fmt: skip


def _about_an_unknown(rng: Random, split: Split, unseen: bool) -> Question:
    """What is asked of the world's people, animals and towns, of one that is not in it."""
    group = rng.choice(("person", "person", "animal", "town"))
    topics: tuple[str, ...]
    if group == "person":
        about, topics = unknown_name(rng, split), ("job", "town", "pet", "dish")
    elif group == "town":
        about, topics = elsewhere(rng, split), ("lies", "known_for")
    else:
        about, topics = strange_animal(rng, split), ("colour", "sound", "home", "food", "young")
    core = PARAPHRASES[rng.choice(topics)].pick(rng, split, unseen=unseen)
    bare = about.removeprefix("the ")
    return Question(
        text=as_typed(rng, core.format(x=about, bare=bare, xs=plural(bare))), answer=DO_NOT_KNOW,
        key="do not know", identity=f"unknown|{about}|{core}", kind="refusal",
        unseen_wording=unseen,
    )  # fmt: skip


def unknown_name(rng: Random, split: Split) -> str:
    return _strange(rng, split, lambda rng: open_name(rng, split)[0])


def elsewhere(rng: Random, split: Split) -> str:
    make = rng.choice((lambda rng: rng.choice(PLACES), invented_name))
    return _strange(rng, split, make)


def strange_animal(rng: Random, split: Split) -> str:
    kinds = (_LEGENDARY, _OTHER_ANIMALS, _OTHER_ANIMALS)
    makers = (invented_word, lambda rng: rng.choice(rng.choice(kinds)))
    return "the " + _strange(rng, split, rng.choice(makers))


def _word(rng: Random, split: Split) -> str:
    return _strange(rng, split, lambda rng: rng.choice(rng.choice((COMMON_WORDS, THINGS_AROUND))))


def _animal(rng: Random, split: Split) -> str:
    return f"the {rng.choice(ANIMALS).name}"


def _person(rng: Random, split: Split) -> str:
    return rng.choice(PEOPLE).name


_FIELDS: dict[str, Callable[[Random, Split], str]] = {
    "person": _person,
    "animal": _animal,
    "anyone": lambda rng, split: rng.choice((_person, _animal))(rng, split),
    "beast": lambda rng, split: strange_animal(rng, split).removeprefix("the "),
    "job": lambda rng, split: rng.choice(PEOPLE).job,
    "town": lambda rng, split: rng.choice(TOWNS).name,
    "thing": lambda rng, split: f"the {rng.choice(THINGS).name}",
    "name": unknown_name,
    "full": lambda rng, split: f"{open_name(rng, split)[0]} {rng.choice(_LAST_NAMES)}",
    "invented": lambda rng, split: _strange(rng, split, invented_word),
    "word": _word,
    "things": lambda rng, split: plural(_word(rng, split)),
    "place": lambda rng, split: rng.choice(PLACES),
    "role": lambda rng, split: rng.choice(_ROLES).replace("-", " "),
    "topic": lambda rng, split: rng.choice((*_TOPICS, _word(rng, split))),
    "adjective": lambda rng, split: rng.choice(_ADJECTIVES),
    "verb": lambda rng, split: rng.choice(_VERBS),
    "language": lambda rng, split: rng.choice(_LANGUAGES),
    "year": lambda rng, split: rng.choice(_YEARS),
}
