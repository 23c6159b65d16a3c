"""Reading comprehension: short stories, and questions whose answer is in the story."""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

from nanochat.primer import world
from nanochat.primer.events import StoryQuestion, event_story
from nanochat.primer.names import two_people
from nanochat.primer.question import Passage, Question, Split, draw_series, one_of
from nanochat.primer.world import a, capitalized, words

Plot = tuple[str, *tuple[StoryQuestion, ...]]  # a text and questions about it


EVENTS_SHARE = 0.65  # of stories; the others are the plots below


def story(rng: Random, split: Split) -> Passage:
    """A story of a few sentences, and questions about it."""
    makers: tuple[Callable[[Random, Split], Plot], ...] = (
        _hidden_thing, _gift, _two_places, _lost_and_found,
    )  # fmt: skip
    if rng.random() < EVENTS_SHARE:
        text, *questions = event_story(rng, split)
    else:
        text, *questions = rng.choice(makers)(rng, split)
    return text, [
        Question(
            text=capitalized(core) + "?", answer=answer, key=key,
            # The story is part of it: the same question about another story is a new one.
            identity=f"reading|{text}|{core}",
            rivals=tuple(value for value in values if value != key),
            exact=(*_names_in(text), key, core.split()[-1]),
        )
        for core, answer, key, values in questions
    ]  # fmt: skip


_FIRST_WORDS = frozenset(
    words("""
    A After At But He I In It Last Later My On One She The Then There They Today When Yesterday
    Monday Sunday
""")
)  # of sentences, which are no names


def _names_in(text: str) -> list[str]:
    capitalized_words = re.findall(r"\b[A-Z][a-z]*", text)
    return [word for word in capitalized_words if word not in _FIRST_WORDS]


def _opening(rng: Random) -> str:
    day = rng.choice(world.WEATHERS)
    return one_of(
        rng,
        f"It was a {day} day. ", f"One {day} morning the birds were still asleep. ", "",
        f"The afternoon was {day} and long. ", "There was not much to do that day. ", "",
    )  # fmt: skip


def _hidden_thing(rng: Random, split: Split) -> Plot:
    (name, she, her), (friend, he, _) = two_people(rng, split)
    colour, item = rng.choice(world.COLOURS), rng.choice(world.ITEMS)
    spot, holder = rng.choice(world.SPOTS), rng.choice(world.HOLDERS)
    feeling = rng.choice(world.FEELINGS)
    text = _opening(rng) + one_of(
        rng,
        f"{name} had {a(colour)} {item}. {she.capitalize()} put it into {holder} in {spot}."
        f" Then {friend} came to play. {friend} looked for the {item} and felt {feeling}.",
        f"{name} found {a(colour)} {item} and was proud of it. {she.capitalize()} took it to"
        f" {spot} and hid it in {holder}. Later {friend} came by. {he.capitalize()} felt"
        f" {feeling}.",
        f"In {spot} there stood {holder}. {name} laid {her} {colour} {item} inside and closed"
        f" it. {friend} saw it and felt {feeling}.",
    )
    return (
        text,
        (f"what colour is the {item}", f"The {item} is {colour}.", colour, world.COLOURS),
        (f"where is the {item}", f"The {item} is in {holder}.", holder, world.HOLDERS),
        (f"who has hidden the {item}", f"It was {name}.", name, (friend,)) if "hid" in text
        else (f"whose {item} is it", f"It is {name}'s {item}.", name, (friend,)),
        (f"how did {friend} feel", f"{friend} felt {feeling}.", feeling, world.FEELINGS),
    )  # fmt: skip


def _gift(rng: Random, split: Split) -> Plot:
    (name, she, _), (friend, he, _) = two_people(rng, split)
    colour, item = rng.choice(world.COLOURS), rng.choice(world.ITEMS)
    feeling, spot = rng.choice(world.FEELINGS), rng.choice(world.SPOTS)
    text = _opening(rng) + one_of(
        rng,
        f"{name} met {friend} in {spot}. {she.capitalize()} gave {friend} {a(colour)} {item}."
        f" {friend} said thank you and felt {feeling}.",
        f"{friend} had a birthday. {name} wrapped {a(colour)} {item} in paper and brought it to"
        f" {spot}. When {friend} opened it, {he} felt {feeling}.",
    )
    return (
        text,
        (f"what did {name} give {friend}", f"{name} gave {friend} {a(colour)} {item}.", item,
         world.ITEMS),
        (f"who got the {item}", f"{friend} got the {item}.", friend, (name,)),
        (f"what colour is the {item}", f"The {item} is {colour}.", colour, world.COLOURS),
        (f"how did {friend} feel", f"{friend} felt {feeling}.", feeling, world.FEELINGS),
    )  # fmt: skip


def _two_places(rng: Random, split: Split) -> Plot:
    (name, _, _), (friend, _, _) = two_people(rng, split)
    first, second = rng.sample(world.SPOTS, 2)
    item, other = rng.sample(world.ITEMS, 2)
    # One goes and the other stays, and the questions say which: with two who both go, a small model
    # learns in minutes only to guess one of the two places (dev/LOG.md).
    goes = rng.random() < 0.5
    verb, past, deed = ("go", "went to", "has") if goes else ("sit", "sat in", "cleaned")
    text = _opening(rng) + (
        f"{name} {past} {first} with {a(item)}. {friend} stayed in {second} with {a(other)}."
        " They wanted to meet in the evening."
        if goes
        else f"In the morning {name} {past} {first} and {deed} {a(item)}. At the same time"
        f" {friend} stayed in {second} and looked for {a(other)}."
    )
    return (
        text,
        (f"where did {name} {verb}", f"{name} {past} {first}.", first, (second,)),
        (f"where did {friend} stay", f"{friend} stayed in {second}.", second, (first,)),
        (f"who {deed} the {item}", f"{name} {deed} the {item}.", name, (friend,)),
        (f"who stayed in {second}", f"{friend} stayed in {second}.", friend, (name,)),
    )  # fmt: skip


def _lost_and_found(rng: Random, split: Split) -> Plot:
    (name, she, her), (friend, _, _) = two_people(rng, split)
    item, colour = rng.choice(world.ITEMS), rng.choice(world.COLOURS)
    first, second = rng.sample(world.SPOTS, 2)
    text = _opening(rng) + one_of(
        rng,
        f"{name} lost {her} {colour} {item}. {she.capitalize()} looked in {first}, but it was"
        f" not there. At last {friend} found it in {second}.",
        f"The {colour} {item} was gone. {name} thought that it was in {first}. But {friend}"
        f" found it in {second} and brought it back.",
    )
    return (
        text,
        (f"who found the {item}", f"{friend} found the {item}.", friend, (name,)),
        (f"where was the {item}", f"The {item} was in {second}.", second, (first,)),
        (f"what colour is the {item}", f"The {item} is {colour}.", colour, world.COLOURS),
        (f"where did {name} look first", f"{name} looked in {first} first.", first, (second,)),
    )  # fmt: skip


FRAMES = (
    "{story} {question}", "{story} {question}", "{story} {question}", "{story}\n\n{question}",
    "Read this story: {story} {question}", "Here is a story. {story} Now tell me: {lower}",
    "{story} My question: {lower}", "Read and answer. {story} {question}", "{story}\n{question}",
    "Listen to this: {story} {question}", "I have read this: {story} Now tell me: {lower}",
)  # fmt: skip
UNSEEN_FRAMES = (
    "{question} Here is the story: {story}", "Once upon a time: {story} So, {lower}",
    "{story} Can you tell me, {lower}",
)  # fmt: skip


def reading_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A story and a question about it."""
    text, questions = story(rng, split)
    question = rng.choice(questions)
    frame = rng.choice(UNSEEN_FRAMES if unseen else FRAMES)
    lower = question.text[0].lower() + question.text[1:]
    framed = frame.format(story=text, question=question.text, lower=lower)
    return replace(question, text=framed, unseen_wording=unseen)


def reading_series(rng: Random, split: Split) -> list[Question]:
    """A story, and at least two questions about it."""
    # Most stories have all their questions in training, few have two held out.
    return draw_series(story, rng, split, at_least=2, separator=" ")
