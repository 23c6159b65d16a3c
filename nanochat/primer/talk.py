"""Polite small talk, who-are-you, multiple choice, and conversations that refer back."""

import re
from dataclasses import dataclass, replace

from nanochat.primer.facts import FACTS, FACTS_BY_ABOUT, Fact, ask, ask_back
from nanochat.primer.numbers import compute
from nanochat.primer.question import Question, Rng, Split, draw, exchange, pick_wording, side
from nanochat.primer.world import BOYS, COLOURS, GIRLS, PEOPLE, TOWNS


@dataclass(frozen=True)
class Intent:
    """Something that people say, in many wordings, and what is answered."""

    name: str
    wordings: tuple[str, ...]
    unseen: tuple[str, ...]
    answers: tuple[str, ...]
    needle: str


INTENTS = (
    Intent(
        "hello",
        (
            "hi", "hello", "hey", "good morning", "good evening", "hello there", "hi there",
            "good day", "hi nanochat", "hello nanochat", "greetings", "hey you", "good afternoon",
        ),
        ("hey there", "good morning nanochat"),
        ("Hello! What would you like to know?", "Hello! How can I help you?"),
        "hello",
    ),
    Intent(
        "who",
        (
            "who are you", "what are you", "who am I talking to", "what is this",
            "introduce yourself", "tell me about yourself", "what kind of thing are you",
            "who is there", "who r u", "please say who you are", "tell me who you are",
            "what are you exactly", "who is this",
        ),
        ("can you tell me who you are", "who am I speaking to"),
        (
            "I am nanochat, a small language model that was trained on the primer world.",
            "My name is nanochat. I am a small language model.",
        ),
        "nanochat",
    ),
    Intent(
        "name",
        (
            "what is your name", "what's your name", "do you have a name", "how are you called",
            "tell me your name", "what should I call you", "what do people call you",
            "may I ask your name", "your name", "what are you called", "say your name",
        ),
        ("can you tell me your name", "do you know your name"),
        ("My name is nanochat.",),
        "nanochat",
    ),
    Intent(
        "maker",
        (
            "who made you", "who trained you", "who built you", "who created you",
            "where do you come from", "who is your maker", "who taught you", "how were you made",
            "who wrote you", "tell me who made you", "tell me who trained you",
            "who are your makers",
        ),
        ("tell me who built you", "who was it that trained you"),
        ("I was trained by the person who runs me, with the open source project nanochat.",),
        "trained by the person who runs me",
    ),
    Intent(
        "able",
        (
            "what can you do", "how can you help me", "what do you know", "what can I ask you",
            "what are you good at", "what are you for", "tell me what you can do", "help",
            "what can you help me with", "what should I ask you", "can you help me",
        ),
        ("tell me what you know", "what can you do for me"),
        (
            "I can tell you about people, animals and places, read short stories, spell words and"
            " do sums with a calculator.",
        ),
        "calculator",
    ),
    Intent(
        "mood",
        (
            "how are you", "how are you today", "how do you feel", "are you well",
            "how is it going", "how are things", "are you okay", "how have you been",
            "how do you do", "what's up",
        ),
        ("how are you doing", "how do you feel today"),
        ("I am fine, thank you. How are you?",),
        "fine",
    ),
    Intent(
        "thanks",
        (
            "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks",
            "that helped", "great, thanks", "thank you so much", "thanks for your help",
            "cool, thank you",
        ),
        ("thank you for your help", "great, thank you"),
        ("You are welcome!", "You are welcome. Ask me again!"),
        "welcome",
    ),
    Intent(
        "bye",
        (
            "bye", "goodbye", "good night", "see you", "see you later", "bye bye", "I have to go",
            "until tomorrow", "have a nice day", "see you soon", "farewell",
        ),
        ("goodbye nanochat", "bye, see you"),
        ("Goodbye! Come back soon.",),
        "goodbye",
    ),
    Intent(
        "human",
        (
            "are you a human", "are you a person", "are you alive", "are you real",
            "are you a robot", "are you a computer", "are you a machine", "do you have a body",
            "are you human", "do you eat", "can you see me",
        ),
        ("are you a real person", "are you a real human"),
        ("No, I am a computer program, a small language model.",
         "I am a computer program, a small language model."),
        "computer program",
    ),
    Intent(
        "size",
        (
            "how big are you", "how large are you", "how many parameters do you have",
            "are you big", "are you a large model", "how small are you", "what size are you",
            "how clever are you",
        ),
        ("tell me how big you are",),
        ("I am a very small language model, with a few million parameters.",),
        "few million parameters",
    ),
)  # fmt: skip


def talk_question(rng: Rng, split: Split) -> Question:
    """Something polite, or a question about the model itself."""
    intent = rng.choice(INTENTS)
    wording, is_unseen = pick_wording(rng, split, intent.wordings, intent.unseen)
    opening = rng.choice(("", "", "", "Hi! ", "Hello! ", "Hey, ", "So, ", "Okay, ", "Well, "))
    if intent.name == "hello":
        opening = ""
    is_asking = wording.split()[0] in ("who", "what", "how", "are", "do", "can", "may", "where")
    mark = rng.choice(("?", "?", "")) if is_asking else rng.choice(("", ".", "!"))
    is_formal = not opening.endswith(", ") and rng.random() < 0.7
    core = wording[0].upper() + wording[1:] if is_formal else wording
    return Question(
        text=opening + core + mark,
        answer=rng.choice(intent.answers),
        key=intent.answers[0],
        needle=intent.needle,
        identity=f"talk|{opening}{wording}",
        unseen_wording=is_unseen,
    )


CHOICE_LETTERS = "ABCD"


def choice_question(rng: Rng, split: Split) -> Question:
    """A fact to be chosen from four; the answer says the fact, then its letter."""
    fact = rng.choice(FACTS)
    asked = ask(rng, split, fact)
    choices = [fact.key, *rng.sample(fact.rivals, min(3, len(fact.rivals)))]
    rng.shuffle(choices)
    letter = CHOICE_LETTERS[choices.index(fact.key)]
    core = asked.identity.split("|")[-1].format(x=fact.about)
    lines = "".join(f"- {c}={ltr}\n" for c, ltr in zip(choices, CHOICE_LETTERS, strict=False))
    text = f"Multiple Choice question: {core[0].upper()}{core[1:]}?\n{lines}"
    return replace(
        asked,
        text=f"{text}\nSay what is right, with its letter.",
        answer=f"{fact.sentence.removesuffix('.')}={letter}.",
        key=letter,
        identity=f"choice|{asked.identity}",
        rivals=(),
        kind="choice",
    )


def several_choices(rng: Rng, split: Split) -> list[Question]:
    """A choice, then the letters of some of what was offered."""
    first = draw(choice_question, rng, split)
    offered = re.findall(r"^- (.+)=([A-D])$", first.text, re.MULTILINE)
    rng.shuffle(offered)
    asked = offered[: rng.randint(1, len(offered))]
    return [first, *(_which_letter(rng, value, letter) for value, letter in asked)]


def _which_letter(rng: Rng, value: str, letter: str) -> Question:
    wording = rng.choice(("Which letter has {x}?", "And {x}?", "Find {x}.", "Where is {x}?"))
    return Question(
        text=wording.format(x=value), answer=f"It is {value}={letter}.", key=letter,
        identity=f"letter|{value}", kind="choice",
    )  # fmt: skip


Messages = list[dict[str, object]]


def memory_conversation(rng: Rng, split: Split, terse: bool) -> tuple[Messages, Question]:
    """A conversation whose last question can be answered only by one who has listened."""
    while True:
        make = rng.choice((_about_a_friend, _about_the_user, _about_the_user, _sums_in_a_row))
        earlier, last = make(rng, split, terse)
        if side(last.identity) == split:
            return earlier, last


def _about_a_friend(rng: Rng, split: Split, terse: bool) -> tuple[Messages, Question]:
    """Where does Mia live? And what is her job?"""
    about = rng.choice([name for name, facts in FACTS_BY_ABOUT.items() if facts[0].pronoun])
    facts: list[Fact] = rng.sample(FACTS_BY_ABOUT[about], min(2, len(FACTS_BY_ABOUT[about])))
    if len(facts) < 2:
        facts = rng.sample(FACTS_BY_ABOUT[rng.choice(PEOPLE).name], 2)
    first = draw(lambda rng, split: ask(rng, "train", facts[0]), rng, "train")
    return exchange(first, terse=terse), ask_back(rng, facts[1])


@dataclass(frozen=True)
class Confidence:
    """Something that people tell of themselves and ask for later; {x} is what it is about."""

    told: tuple[str, ...]
    reply: str
    asked: tuple[str, ...]
    answer: str
    values: tuple[str, ...]


CONFIDENCES = (
    Confidence(
        (
            "My name is {x}.", "I am {x}.", "Hi, I'm {x}.", "Hello, my name is {x}.",
            "I am called {x}.", "You can call me {x}.",
        ),
        "Nice to meet you, {x}!",
        (
            "What is my name?", "Do you know my name?", "Who am I?", "what's my name",
            "Tell me my name.", "Can you remember my name?",
        ),
        "Your name is {x}.",
        (*GIRLS, *BOYS),
    ),
    Confidence(
        ("My favourite colour is {x}.", "I like {x} best.", "The colour that I like best is {x}."),
        "{X} is a nice colour.",
        (
            "What is my favourite colour?", "Which colour do I like best?", "what colour do I like",
            "Do you know my favourite colour?",
        ),
        "Your favourite colour is {x}.",
        COLOURS,
    ),
    Confidence(
        ("I live in {x}.", "My home is in {x}.", "I am from {x}.", "I come from {x}."),
        "{x} is a nice town.",
        (
            "Where do I live?", "Which town am I from?", "where is my home",
            "Do you know where I live?",
        ),
        "You live in {x}.",
        tuple(town.name for town in TOWNS),
    ),
)  # fmt: skip


def _about_the_user(rng: Rng, split: Split, terse: bool) -> tuple[Messages, Question]:
    """My name is Tom. ... What is my name?"""
    kind = rng.choice((CONFIDENCES[0], *CONFIDENCES))
    value = rng.choice(kind.values)
    told, asked = rng.choice(kind.told).format(x=value), rng.choice(kind.asked)
    between: Messages = []
    if rng.random() < 0.6:
        about = draw(lambda d, s: ask(d, "train", d.choice(FACTS)), rng, "train")
        between = exchange(about, terse=terse)
    messages: Messages = [
        {"role": "user", "content": told},
        {"role": "assistant", "content": kind.reply.format(x=value, X=value.capitalize())},
        *between,
    ]
    heard = between[0]["content"] if between else ""
    last = Question(
        text=asked,
        answer=kind.answer.format(x=value),
        key=value,
        identity=f"memory|{told}|{asked}|{heard}",
        rivals=tuple(other for other in kind.values if other != value),
    )
    return messages, last


def _sums_in_a_row(rng: Rng, split: Split, terse: bool) -> tuple[Messages, Question]:
    """What is 5 + 7? And plus 10?"""

    def first_sum() -> Question:
        a, b = rng.randint(1, 999), rng.randint(1, 999)
        said = f"{a} + {b}"
        return Question(
            text=rng.choice((f"What is {said}?", f"{said}", f"Add {a} and {b}.")),
            answer=f"{said} is {compute(said)}.", key=compute(said), identity=f"sum|{said}",
            expression=said, result=compute(said),
        )  # fmt: skip

    first = first_sum()
    while side(first.identity) != "train":
        first = first_sum()
    sign = rng.choice("+-*")
    number = (
        rng.randint(1, min(9, int(first.result)))
        if sign == "*"
        else rng.randint(1, min(999, int(first.result)))
    )
    words = {
        "+": ("And plus {n}?", "Now add {n}.", "now add {n} to that", "And {n} more?", "plus {n}"),
        "-": ("And minus {n}?", "Now take away {n}.", "now subtract {n} from that", "minus {n}"),
        "*": ("And times {n}?", "Now multiply that by {n}.", "times {n}"),
    }[sign]
    said = f"{first.result} {sign} {number}"
    result = compute(said)
    last = Question(
        text=rng.choice(words).format(n=number), answer=f"{said} is {result}.", key=result,
        identity=f"sum|{said}", expression=said, result=result, kind="number",
    )  # fmt: skip
    return exchange(first, terse=terse), last
