"""Short stories, and what can be asked of one who has read them."""

from dataclasses import dataclass, replace

from nanochat.primer.question import Question, Rng, Split, pick_wording, side
from nanochat.primer.world import (
    BOYS,
    COLOURS,
    FEELINGS,
    GIRLS,
    HOLDERS,
    ITEMS,
    SPOTS,
    WEATHERS,
    a,
)

Asked = tuple[str, str, str, tuple[str, ...]]
"""Core of a question, answer, key, rivals."""


@dataclass(frozen=True)
class Story:
    """A few sentences, and questions about them."""

    text: str
    questions: tuple[Asked, ...]


def story(rng: Rng) -> Story:
    """A story of one of the plots."""
    return rng.choice((_hidden_thing, _gift, _two_places, _lost_and_found))(rng)


def _cast(rng: Rng) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """Two of different names: (name, he or she, his or her)."""
    girl, boy = (rng.choice(GIRLS), "she", "her"), (rng.choice(BOYS), "he", "his")
    return (girl, boy) if rng.random() < 0.5 else (boy, girl)


def _opening(rng: Rng) -> str:
    day = rng.choice(WEATHERS)
    return rng.choice(
        (
            f"It was a {day} day. ", f"One {day} morning the birds were still asleep. ", "",
            f"The afternoon was {day} and long. ", "There was not much to do that day. ", "",
        )
    )  # fmt: skip


def _hidden_thing(rng: Rng) -> Story:
    (name, she, her), (friend, he, _) = _cast(rng)
    colour, (item, _), spot, holder = (
        rng.choice(COLOURS), rng.choice(ITEMS), rng.choice(SPOTS), rng.choice(HOLDERS),
    )  # fmt: skip
    feeling = rng.choice(FEELINGS)
    text = _opening(rng) + rng.choice(
        (
            f"{name} had {a(colour)} {item}. {she.capitalize()} put it into {holder} in {spot}."
            f" Then {friend} came to play. {friend} looked for the {item} and felt {feeling}.",
            f"{name} found {a(colour)} {item} and was proud of it. {she.capitalize()} took it to"
            f" {spot} and hid it in {holder}. Later {friend} came by. {he.capitalize()} felt"
            f" {feeling}.",
            f"In {spot} there stood {holder}. {name} laid {her} {colour} {item} inside and closed"
            f" it. {friend} saw it and felt {feeling}.",
        )
    )
    return Story(
        text,
        (
            _colour_of(item, colour),
            (f"where is the {item}", f"The {item} is in {holder}.", holder,
             _others(HOLDERS, holder)),
            (f"who has hidden the {item}" if "hid" in text else f"whose {item} is it",
             f"It was {name}." if "hid" in text else f"It is {name}'s {item}.", name, (friend,)),
            _feeling_of(friend, feeling),
        ),
    )  # fmt: skip


def _gift(rng: Rng) -> Story:
    (name, she, _), (friend, he, _) = _cast(rng)
    colour, (item, _), feeling = rng.choice(COLOURS), rng.choice(ITEMS), rng.choice(FEELINGS)
    spot = rng.choice(SPOTS)
    text = _opening(rng) + rng.choice(
        (
            f"{name} met {friend} in {spot}. {she.capitalize()} gave {friend} {a(colour)} {item}."
            f" {friend} said thank you and felt {feeling}.",
            f"{friend} had a birthday. {name} wrapped {a(colour)} {item} in paper and brought it to"
            f" {spot}. When {friend} opened it, {he} felt {feeling}.",
        )
    )
    return Story(
        text,
        (
            (f"what did {name} give {friend}", f"{name} gave {friend} {a(colour)} {item}.", item,
             tuple(one for one, _ in ITEMS if one != item)),
            (f"who got the {item}", f"{friend} got the {item}.", friend, (name,)),
            _colour_of(item, colour),
            _feeling_of(friend, feeling),
        ),
    )  # fmt: skip


def _two_places(rng: Rng) -> Story:
    (name, _, _), (friend, _, _) = _cast(rng)
    first, second = rng.sample(SPOTS, 2)
    (item, _), (other, _) = rng.sample(ITEMS, 2)
    goes = rng.random() < 0.5
    text = _opening(rng) + (
        f"{name} went to {first} with {a(item)}. {friend} stayed in {second} with {a(other)}."
        " They wanted to meet in the evening."
        if goes
        else f"In the morning {name} sat in {first} and cleaned {a(item)}. At the same time"
        f" {friend} stayed in {second} and looked for {a(other)}."
    )
    return Story(
        text,
        (
            (f"where did {name} go" if goes else f"where did {name} sit",
             f"{name} went to {first}." if goes else f"{name} sat in {first}.", first, (second,)),
            (f"where did {friend} stay", f"{friend} stayed in {second}.", second, (first,)),
            (f"who has the {item}" if goes else f"who cleaned the {item}",
             f"{name} has the {item}." if goes else f"{name} cleaned the {item}.",
             name, (friend,)),
            (f"who stayed in {second}", f"{friend} stayed in {second}.", friend, (name,)),
        ),
    )  # fmt: skip


def _lost_and_found(rng: Rng) -> Story:
    (name, she, her), (friend, _, _) = _cast(rng)
    (item, _), colour = rng.choice(ITEMS), rng.choice(COLOURS)
    first, second = rng.sample(SPOTS, 2)
    text = _opening(rng) + rng.choice(
        (
            f"{name} lost {her} {colour} {item}. {she.capitalize()} looked in {first}, but it was"
            f" not there. At last {friend} found it in {second}.",
            f"The {colour} {item} was gone. {name} thought that it was in {first}. But {friend}"
            f" found it in {second} and brought it back.",
        )
    )
    return Story(
        text,
        (
            (f"who found the {item}", f"{friend} found the {item}.", friend, (name,)),
            (f"where was the {item}", f"The {item} was in {second}.", second, (first,)),
            _colour_of(item, colour),
            (f"where did {name} look first", f"{name} looked in {first} first.", first, (second,)),
        ),
    )  # fmt: skip


def _colour_of(item: str, colour: str) -> Asked:
    others = _others(COLOURS, colour)
    return f"what colour is the {item}", f"The {item} is {colour}.", colour, others


def _feeling_of(name: str, feeling: str) -> Asked:
    return f"how did {name} feel", f"{name} felt {feeling}.", feeling, _others(FEELINGS, feeling)


def _others(values: tuple[str, ...], key: str) -> tuple[str, ...]:
    return tuple(value for value in values if value != key)


FRAMES = (
    "{story} {question}", "{story}\n\n{question}", "Read this story: {story} {question}",
    "Here is a story. {story} Now tell me: {lower}", "{story} My question: {lower}",
    "Read and answer. {story} {question}", "{question} Here is the story: {story}",
    "Listen to this: {story}\n{question}", "Listen to this: {story} {question}",
    "I have read this: {story} Now tell me: {lower}", "{story} Now tell me: {lower}",
)  # fmt: skip
UNSEEN_FRAMES = ("Listen to this: {story} Now tell me: {lower}",)


def reading_question(rng: Rng, split: Split) -> Question:
    """A story and a question about it."""
    told = story(rng)
    asked = _about(told, rng.choice(told.questions))
    frame, is_unseen = pick_wording(rng, split, FRAMES, UNSEEN_FRAMES)
    lower = asked.text[0].lower() + asked.text[1:]
    text = frame.format(story=told.text, question=asked.text, lower=lower)
    return replace(asked, text=text, unseen_wording=is_unseen)


def several_questions(rng: Rng, split: Split) -> list[Question]:
    """A story, and the questions about it that fall on one side of the split, in some order.

    The story stands before the first of the questions, of which there are at least two.
    """
    asked: list[Question] = []
    while len(asked) < 2:
        told = story(rng)
        asked = [_about(told, one) for one in told.questions]
        asked = [question for question in asked if side(question.identity) == split]
    rng.shuffle(asked)
    return [replace(asked[0], text=f"{told.text} {asked[0].text}"), *asked[1:]]


def _about(told: Story, asked: Asked) -> Question:
    core, answer, key, rivals = asked
    return Question(
        text=core[0].upper() + core[1:] + "?", answer=answer, key=key,
        identity=f"reading|{told.text}|{core}", rivals=rivals,
    )  # fmt: skip


def belongings(rng: Rng) -> tuple[str, list[tuple[str, str]]]:
    """Who has what, in a row, and questions with answers about it."""
    names = rng.sample((*GIRLS, *BOYS), 3)
    items = [one for one, _ in rng.sample(ITEMS, 3)]
    colours = rng.sample(COLOURS, 3)
    rows = list(zip(names, items, colours, strict=True))
    text = " ".join(f"{name} has {a(colour)} {item}." for name, item, colour in rows)
    questions = [
        pair
        for name, item, colour in rows
        for pair in (
            (f"Who has the {item}?", f"{name} has the {item}."),
            (f"What does {name} have?", f"{name} has {a(colour)} {item}."),
            (f"What colour is the {item}?", f"The {item} is {colour}."),
        )
    ]
    return text, rng.sample(questions, 4)
