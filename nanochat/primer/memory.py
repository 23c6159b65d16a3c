"""Questions that refer to earlier turns: follow-ups, and what users say of themselves."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from nanochat.primer.facts import FACTS, FACTS_BY_ABOUT, Fact, ask, ask_follow_up, ask_of_another
from nanochat.primer.names import open_name, open_word
from nanochat.primer.numbers import calculation
from nanochat.primer.question import Question, Split, draw, split_of
from nanochat.primer.unknown import DO_NOT_KNOW, PLACES
from nanochat.primer.words import spelling_question
from nanochat.primer.world import ANIMALS, COLOURS, FEELINGS, PEOPLE, TOWNS, capitalized


def memory_conversation(rng: Random, split: Split, unseen: bool = False) -> list[Question]:
    """Turns, of which the last one is only answerable with those before."""
    makers: tuple[Callable[[Random, Split], list[Question]], ...] = (
        _two_facts, _two_facts, _another_subject, _another_subject, _of_the_answer,
        _about_the_user, _about_the_user, _about_the_user, _about_the_user, _running_sum,
        _same_request,
    )  # fmt: skip
    while True:
        turns = rng.choice(makers)(rng, split)
        if split_of(turns[-1].identity) == split:
            return turns


_WITH_PRONOUN = [
    name for name, facts in FACTS_BY_ABOUT.items() if len([f for f in facts if f.pronoun]) > 1
]
_SIBLINGS: dict[tuple[str, ...], list[str]] = {}  # subjects by the topics of their facts
for _name, _facts in FACTS_BY_ABOUT.items():
    _SIBLINGS.setdefault(tuple(fact.topic for fact in _facts), []).append(_name)


def _first(rng: Random, fact: Fact) -> Question:
    return draw(lambda rng, split: ask(rng, split, fact), rng, "train")


def _two_facts(rng: Random, split: Split) -> list[Question]:
    """Where does Mia live? And what is her job?"""
    about = rng.choice(_WITH_PRONOUN)
    facts = rng.sample([fact for fact in FACTS_BY_ABOUT[about] if fact.pronoun], 2)
    return [_first(rng, facts[0]), ask_follow_up(rng, facts[1])]


def _another_subject(rng: Random, split: Split) -> list[Question]:
    """Where does Mia live? And Oskar?"""
    fact = rng.choice(FACTS)
    others = _SIBLINGS[tuple(other.topic for other in FACTS_BY_ABOUT[fact.about])]
    other = rng.choice(others)
    next_fact = next(f for f in FACTS_BY_ABOUT[other] if f.topic == fact.topic)
    return [_first(rng, fact), ask_of_another(rng, next_fact)]


def _of_the_answer(rng: Random, split: Split) -> list[Question]:
    """Which pet does Mia have? And what colour is it?"""
    person = rng.choice(PEOPLE)
    topic = rng.choice(("pet", "pet", "town"))
    fact = next(f for f in FACTS_BY_ABOUT[person.name] if f.topic == topic)
    about = f"the {person.pet}" if topic == "pet" else person.town
    wanted = rng.choice([f for f in FACTS_BY_ABOUT[about] if f.pronoun])
    follow_up = replace(
        ask_follow_up(rng, wanted),
        answer=wanted.sentence,
        identity=f"fact|{person.name}|{wanted.topic}|its",
    )
    return [_first(rng, fact), follow_up]


@dataclass(frozen=True)
class Statement:
    """Something that users say about themselves and ask for later; {x} is the value."""

    values: Callable[[Random, Split], str]
    reply: str  # {X} is the value capitalized
    answer: str
    statements: tuple[str, ...]
    corrections: tuple[str, ...]
    questions: tuple[str, ...]


_PLACES_TO_LIVE = (*(town.name for town in TOWNS), *PLACES)
_MORE_COLOURS = (
    *COLOURS,
    *["turquoise", "violet", "gold", "silver", "beige", "cyan", "magenta", "scarlet", "teal"],
)
_AGES = tuple(str(age) for age in range(3, 100))
STATEMENTS = (
    Statement(
        lambda rng, split: open_name(rng, split)[0],
        reply="Nice to meet you, {x}!", answer="Your name is {x}.",
        statements=(
            "My name is {x}.", "I am {x}.", "Hi, I'm {x}.", "Hello, my name is {x}.", "I'm {x}.",
            "I am called {x}.", "You can call me {x}.", "Call me {x}.", "my name's {x}",
            "This is {x}.",
            "People call me {x}.", "Hello, I am {x}.", "{x} is my name.", "hey i'm {x}",
            "The name is {x}.",
        ),
        corrections=(
            "No, my name is {x}.", "Sorry, I am {x}.", "No, I am {x}.", "I mean {x}.",
            "Oh, it is {x}.",
            "Actually, my name is {x}.", "That was wrong, I am {x}.", "Not that, {x}.",
        ),
        questions=(
            "What is my name?", "Do you know my name?", "Who am I?", "What's my name?",
            "Tell me my name.",
            "Can you remember my name?", "Do you remember my name?", "What am I called?",
            "How am I called?", "Say my name.", "And what is my name?",
            "Do you still know who I am?",
        ),
    ),
    Statement(
        lambda rng, split: rng.choice(_MORE_COLOURS),
        reply="{X} is a nice colour.", answer="Your favourite colour is {x}.",
        statements=(
            "My favourite colour is {x}.", "I like {x} best.", "I love the colour {x}.",
            "The colour that I like best is {x}.", "{x} is my favourite colour.",
            "My favorite color is {x}.",
        ),
        corrections=("No, my favourite colour is {x}.", "I mean {x}.", "Sorry, it is {x}.",
        "Actually, I like {x}."),
        questions=(
            "What is my favourite colour?", "Which colour do I like best?",
            "What colour do I like?",
            "Do you know my favourite colour?", "What's my favorite color?",
            "Which colour do I love?",
        ),
    ),
    Statement(
        lambda rng, split: rng.choice(_PLACES_TO_LIVE) if rng.random() < 0.7 else open_name(rng,
        split)[0],
        reply="{x} is a nice place.", answer="You live in {x}.",
        statements=(
            "I live in {x}.", "My home is in {x}.", "I am from {x}.", "I come from {x}.",
            "I'm from {x}.",
            "My town is {x}.", "We live in {x}.",
        ),
        corrections=("No, I live in {x}.", "I mean {x}.", "Sorry, I am from {x}.",
        "Actually, I live in {x}."),
        questions=(
            "Where do I live?", "Which town am I from?", "Where is my home?", "Where am I from?",
            "Do you know where I live?", "In which town do I live?", "What is my home?",
        ),
    ),
    Statement(
        lambda rng, split: rng.choice(_AGES),
        reply="{x} is a good age.", answer="You are {x} years old.",
        statements=("I am {x} years old.", "I'm {x}.", "My age is {x}.", "I am {x}.",
        "I turned {x} today."),
        corrections=("No, I am {x}.", "Sorry, I am {x} years old.", "I mean {x}.",
        "Actually, I am {x}."),
        questions=("How old am I?", "What is my age?", "Do you know how old I am?",
        "Tell me my age."),
    ),
    Statement(
        lambda rng, split: rng.choice(ANIMALS).name,
        reply="I like {xs}, too.", answer="Your favourite animal is the {x}.",
        statements=(
            "My favourite animal is the {x}.", "I like the {x} best.",
            "The {x} is my favourite animal.",
            "I love the {x}.", "The animal that I like best is the {x}.",
        ),
        corrections=("No, my favourite animal is the {x}.", "I mean the {x}.",
        "Sorry, it is the {x}."),
        questions=(
            "What is my favourite animal?", "Which animal do I like best?",
            "What animal do I like?",
            "Do you know my favourite animal?", "Which animal do I love?",
        ),
    ),
    Statement(
        lambda rng, split: open_name(rng, split)[0],
        reply="{x} is a nice name.", answer="Your pet is called {x}.",
        statements=(
            "My dog is called {x}.", "I have a cat named {x}.", "My pet is called {x}.",
            "I have a dog called {x}.",
            "My cat's name is {x}.", "The name of my pet is {x}.", "{x} is my dog.",
        ),
        corrections=("No, it is called {x}.", "I mean {x}.", "Sorry, the name is {x}."),
        questions=(
            "What is my pet called?", "What is the name of my pet?", "How is my pet called?",
            "Do you know the name of my pet?", "What's my pet's name?",
        ),
    ),
    Statement(
        lambda rng, split: open_word(rng, split),
        reply="That sounds good.", answer="You like {x}.",
        statements=("I like {x}.", "I love {x}.", "I really like {x}.", "I like {x} very much."),
        corrections=("No, I like {x}.", "I mean {x}.", "Sorry, {x}."),
        questions=("What do I like?", "What do I love?", "Do you know what I like?",
        "Tell me what I like."),
    ),
    Statement(
        lambda rng, split: rng.choice(FEELINGS),
        reply="Thank you for telling me.", answer="You are {x}.",
        statements=("I am {x}.", "I feel {x}.", "I am {x} today.", "I'm so {x}."),
        corrections=("No, I am {x}.", "I mean {x}."),
        questions=("How do I feel?", "How am I?", "Do you know how I feel?"),
    ),
)  # fmt: skip
_ALSO = ("and", "and", ". Also,", "and by the way,")


def _about_the_user(rng: Random, split: Split) -> list[Question]:
    """My name is Tom. ... What is my name?"""
    kind = rng.choice((STATEMENTS[0], STATEMENTS[0], STATEMENTS[0], *STATEMENTS))  # the name most
    style = rng.random()
    if style < 0.12:
        return _never_said(rng, kind)
    value = kind.values(rng, split)
    turns = [_stated(rng, kind, value, kind.statements)]
    if style < 0.3:  # the correction counts
        value = kind.values(rng, split)
        turns.append(_stated(rng, kind, value, kind.corrections))
    elif style < 0.42:
        turns[0] = _with_another(rng, split, turns[0], kind)
    if style > 0.92:
        return turns  # the reply itself
    if rng.random() < 0.5:  # a turn on something else, so that the statement is not always the last
        turns.insert(rng.randint(0, len(turns)), _first(rng, rng.choice(FACTS)))
    question = rng.choice(kind.questions)
    asked = Question(
        text=question, answer=kind.answer.format(x=value), key=value,
        identity=f"memory|{'|'.join(turn.text for turn in turns)}|{question}", exact=(value,),
    )  # fmt: skip
    return [*turns, asked]


def _stated(rng: Random, kind: Statement, value: str, statements: tuple[str, ...]) -> Question:
    text = rng.choice(statements).format(x=value)
    reply = kind.reply.format(x=value, X=capitalized(value), xs=f"the {value}")
    must_contain = value if "{" in kind.reply else reply.removesuffix(".")
    return Question(
        text=capitalized(text), answer=reply, key=value, must_contain=must_contain,
        identity=f"memory|{text}", exact=(value,),
    )  # fmt: skip


def _with_another(rng: Random, split: Split, stated: Question, kind: Statement) -> Question:
    """Two statements in one: "I am Tom and I live in Lakeside."."""
    other = rng.choice([statement for statement in STATEMENTS if statement is not kind])
    value = other.values(rng, split)
    second = rng.choice(other.statements).format(x=value)
    if not second.startswith("I"):
        second = second[0].lower() + second[1:]
    text = f"{stated.text.rstrip('.')} {rng.choice(_ALSO)} {second}".replace(" .", ".")
    return replace(stated, text=text, exact=(*stated.exact, value))


def _never_said(rng: Random, kind: Statement) -> list[Question]:
    turns = [_first(rng, rng.choice(FACTS))] if rng.random() < 0.4 else []
    question, before = rng.choice(kind.questions), "|".join(turn.text for turn in turns)
    asked = Question(
        text=question, answer=DO_NOT_KNOW, key="do not know",
        identity=f"memory|never|{before}|{question}",
        kind="refusal",
    )  # fmt: skip
    return [*turns, asked]


def _running_sum(rng: Random, split: Split) -> list[Question]:
    """What is 5 + 7? And plus 10?"""
    first = draw(_first_sum, rng, "train")
    sign = rng.choice("+-*/") if rng.random() < 0.9 else "*"
    number = rng.randint(2, 9 if sign in "*/" else rng.choice((20, 999)))
    wordings = {
        "+": (
            "And plus {n}?",
            "Now add {n}.",
            "Add {n} to that.",
            "And {n} more?",
            "Plus {n}.",
            "and + {n}",
        ),
        "-": (
            "And minus {n}?",
            "Now take away {n}.",
            "Subtract {n} from that.",
            "Minus {n}.",
            "now subtract {n}",
        ),
        "*": (
            "And times {n}?",
            "Now multiply that by {n}.",
            "Times {n}.",
            "and * {n}",
            "multiply by {n}",
        ),
        "/": (
            "And divided by {n}?",
            "Now divide that by {n}.",
            "Divided by {n}.",
            "divide it by {n}",
        ),
    }[sign]
    return [
        first,
        calculation(rng.choice(wordings).format(n=number), f"{first.key} {sign} {number}"),
    ]


def _first_sum(rng: Random, split: Split) -> Question:
    limit = rng.choice((20, 99, 999))
    x, y, sign = rng.randint(1, limit), rng.randint(1, limit), rng.choice("++-*")
    x, y = max(x, y), min(x, y)
    wording = rng.choice((f"What is {x} {sign} {y}?", f"{x} {sign} {y}", f"{x}{sign}{y}"))
    return calculation(wording, f"{x} {sign} {y}")


def _same_request(rng: Random, split: Split) -> list[Question]:
    """Spell cat. And dog? Or another sum with the same signs."""
    if rng.random() < 0.5:
        while not (first := draw(spelling_question, rng, "train")).answer.startswith("The word"):
            pass
        word = open_word(rng, split) if rng.random() < 0.5 else rng.choice(ANIMALS).name
        letters = "-".join(word)
        core = rng.choice(
            ("And {w}?", "And {w}?", "And the word {w}?", "Now {w}.", "{w}?", "What about {w}?")
        )
        return [first, Question(
            text=core.format(w=word), answer=f"The word {word} is spelled {letters}.", key=letters,
            identity=f"spell|{word}|{core}", exact=(word,),
        )]  # fmt: skip
    first = draw(_first_sum, rng, "train")
    x, sign, y = first.expression.split()
    other = rng.choice([s for s in "+-*" if s != sign])
    n = rng.randint(1, 99)
    text, expression = rng.choice((
        (f"I meant {x} {other} {y}.", f"{x} {other} {y}"), (f"And {x} {sign} {n}?",
        f"{x} {sign} {n}"),
        (f"No, {x} {other} {y}.", f"{x} {other} {y}"), (f"And {n} {sign} {y}?", f"{n} {sign} {y}"),
        (f"Sorry, {n} {other} {y}.", f"{n} {other} {y}"),
    ))  # fmt: skip
    return [first, calculation(text, expression)]
