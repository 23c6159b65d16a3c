"""Small talk, multiple choice, and conversations whose last question refers to an earlier turn."""

import re
from dataclasses import dataclass, replace
from random import Random

from nanochat.primer.facts import FACTS, FACTS_BY_ABOUT, ask, ask_follow_up
from nanochat.primer.numbers import compute
from nanochat.primer.question import Messages, Paraphrases, Question, Split, draw, split_of
from nanochat.primer.world import CHILDREN, COLOURS, PEOPLE, TOWNS, capitalized


class Intent(Paraphrases):
    """Something that users say to a model, and the answers."""

    def __init__(
        self, *seen: str, unseen: tuple[str, ...], answers: tuple[str, ...], must_contain: str
    ) -> None:
        super().__init__(*seen, unseen=unseen)
        self.answers = answers  # the first one is the terse answer
        self.must_contain = must_contain  # what every answer has in common, for grading


INTENTS = (
    Intent(
        "hi", "hello", "hey", "good morning", "good evening", "hello there", "hi there", "good day",
        "hi nanochat", "hello nanochat", "greetings", "hey you", "good afternoon",
        unseen=("hey there", "good morning nanochat"),
        answers=("Hello! What would you like to know?", "Hello! How can I help you?"),
        must_contain="hello",
    ),
    Intent(
        "who are you", "what are you", "who am I talking to", "what is this", "introduce yourself",
        "tell me about yourself", "what kind of thing are you", "who is there", "who r u",
        "please say who you are", "tell me who you are", "what are you exactly", "who is this",
        unseen=("can you tell me who you are", "who am I speaking to"),
        answers=(
            "I am nanochat, a small language model that was trained on the primer world.",
            "My name is nanochat. I am a small language model.",
        ),
        must_contain="nanochat",
    ),
    Intent(
        "what is your name", "what's your name", "do you have a name", "how are you called",
        "tell me your name", "what should I call you", "what do people call you",
        "may I ask your name", "your name", "what are you called", "say your name",
        unseen=("can you tell me your name", "do you know your name"),
        answers=("My name is nanochat.",),
        must_contain="nanochat",
    ),
    Intent(
        "who made you", "who trained you", "who built you", "who created you",
        "where do you come from", "who is your maker", "who taught you", "how were you made",
        "who wrote you", "tell me who made you", "tell me who trained you", "who are your makers",
        unseen=("tell me who built you", "who was it that trained you"),
        answers=(
            "I was trained by the person who runs me, with the open source project nanochat.",
        ),
        must_contain="trained by the person who runs me",
    ),
    Intent(
        "what can you do", "how can you help me", "what do you know", "what can I ask you",
        "what are you good at", "what are you for", "tell me what you can do", "help",
        "what can you help me with", "what should I ask you", "can you help me",
        unseen=("tell me what you know", "what can you do for me"),
        answers=(
            "I can tell you about people, animals and places, read short stories, spell words"
            " and do sums with a calculator.",
        ),
        must_contain="calculator",
    ),
    Intent(
        "how are you", "how are you today", "how do you feel", "are you well", "how is it going",
        "how are things", "are you okay", "how have you been", "how do you do", "what's up",
        unseen=("how are you doing", "how do you feel today"),
        answers=("I am fine, thank you. How are you?",),
        must_contain="fine",
    ),
    Intent(
        "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "that helped",
        "great, thanks", "thank you so much", "thanks for your help", "cool, thank you",
        unseen=("thank you for your help", "great, thank you"),
        answers=("You are welcome!", "You are welcome. Ask me again!"),
        must_contain="welcome",
    ),
    Intent(
        "bye", "goodbye", "good night", "see you", "see you later", "bye bye", "I have to go",
        "until tomorrow", "have a nice day", "see you soon", "farewell",
        unseen=("goodbye nanochat", "bye, see you"),
        answers=("Goodbye! Come back soon.",),
        must_contain="goodbye",
    ),
    Intent(
        "are you a human", "are you a person", "are you alive", "are you real", "are you a robot",
        "are you a computer", "are you a machine", "do you have a body", "are you human",
        "do you eat", "can you see me",
        unseen=("are you a real person", "are you a real human"),
        answers=(
            "No, I am a computer program, a small language model.",
            "I am a computer program, a small language model.",
        ),
        must_contain="computer program",
    ),
    Intent(
        "how big are you", "how large are you", "how many parameters do you have", "are you big",
        "are you a large model", "how small are you", "what size are you", "how clever are you",
        unseen=("tell me how big you are",),
        answers=("I am a very small language model, with a few million parameters.",),
        must_contain="few million parameters",
    ),
)  # fmt: skip


def talk_question(rng: Random, split: Split) -> Question:
    """Small talk, or a question about the model itself."""
    intent = rng.choice(INTENTS)
    wording, is_unseen = intent.pick(rng, split)
    opening = rng.choice(("", "", "", "Hi! ", "Hello! ", "Hey, ", "So, ", "Okay, ", "Well, "))
    if intent.must_contain == "hello":  # not "Hello! hello"; the draw above is made in every case
        opening = ""
    is_asking = wording.split()[0] in ("who", "what", "how", "are", "do", "can", "may", "where")
    mark = rng.choice(("?", "?", "")) if is_asking else rng.choice(("", ".", "!"))
    is_formal = not opening.endswith(", ") and rng.random() < 0.7
    return Question(
        text=opening + (capitalized(wording) if is_formal else wording) + mark,
        answer=rng.choice(intent.answers),
        key=intent.answers[0],
        must_contain=intent.must_contain,
        identity=f"talk|{opening}{wording}",
        unseen_wording=is_unseen,
    )


CHOICE_LETTERS = "ABCD"


def choice_question(rng: Random, split: Split) -> Question:
    """A fact as one of up to four choices; the answer is the fact, then its letter.

    Fact first: the model knows it, and then copies the letter next to it in the list. A
    letter alone would have to be guessed before the fact is said.
    """
    fact = rng.choice(FACTS)
    question = ask(rng, split, fact)
    choices = [fact.key, *rng.sample(fact.rivals, min(3, len(fact.rivals)))]
    rng.shuffle(choices)
    letter = CHOICE_LETTERS[choices.index(fact.key)]
    core = question.identity.split("|")[-1].format(x=fact.about)  # question.text has a greeting
    rows = "".join(f"- {c}={ltr}\n" for c, ltr in zip(choices, CHOICE_LETTERS, strict=False))
    return replace(
        question,
        text=f"Multiple Choice question: {capitalized(core)}?\n{rows}"
        "\nSay what is right, with its letter.",
        answer=f"{fact.sentence.removesuffix('.')}={letter}.",
        key=letter,
        identity=f"choice|{question.identity}",
        rivals=(),  # all of them are in the question; the letter is what is graded
        kind="choice",
    )


def choice_series(rng: Random, split: Split) -> list[Question]:
    """A choice, then questions for the letters of some of its values."""
    first = draw(choice_question, rng, split)
    rows = re.findall(r"^- (.+)=([A-D])$", first.text, re.MULTILINE)
    rng.shuffle(rows)
    rows = rows[: rng.randint(1, len(rows))]
    wordings = ("Which letter has {x}?", "And {x}?", "Find {x}.", "Where is {x}?")
    return [first] + [
        Question(
            text=rng.choice(wordings).format(x=value), answer=f"It is {value}={letter}.",
            key=letter, identity=f"letter|{value}", kind="choice",
        )
        for value, letter in rows
    ]  # fmt: skip


def memory_conversation(rng: Random, split: Split, terse: bool) -> tuple[Messages, Question]:
    """Earlier messages, and a question that only they make answerable."""
    makers = (_two_facts, _about_the_user, _about_the_user, _running_sum)
    while True:
        earlier, last = rng.choice(makers)(rng, terse)
        if split_of(last.identity) == split:
            return earlier, last


def _two_facts(rng: Random, terse: bool) -> tuple[Messages, Question]:
    """Where does Mia live? And what is her job?"""
    # Only subjects with a pronoun: the second question has it in place of the name.
    about = rng.choice([name for name, facts in FACTS_BY_ABOUT.items() if facts[0].pronoun])
    facts = rng.sample(FACTS_BY_ABOUT[about], min(2, len(FACTS_BY_ABOUT[about])))
    if len(facts) < 2:  # a thing has a colour only
        facts = rng.sample(FACTS_BY_ABOUT[rng.choice(PEOPLE).name], 2)
    first = draw(lambda rng, split: ask(rng, split, facts[0]), rng, "train")
    return first.messages(terse=terse), ask_follow_up(rng, facts[1])


@dataclass(frozen=True)
class Statement:
    """Something that users say about themselves and ask for later; {x} is the value."""

    values: tuple[str, ...]
    reply: str  # {X} is the value capitalized
    answer: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


STATEMENTS = (
    Statement(
        CHILDREN, reply="Nice to meet you, {x}!", answer="Your name is {x}.",
        statements=(
            "My name is {x}.", "I am {x}.", "Hi, I'm {x}.", "Hello, my name is {x}.",
            "I am called {x}.", "You can call me {x}.",
        ),
        questions=(
            "What is my name?", "Do you know my name?", "Who am I?", "what's my name",
            "Tell me my name.", "Can you remember my name?",
        ),
    ),
    Statement(
        COLOURS, reply="{X} is a nice colour.", answer="Your favourite colour is {x}.",
        statements=(
            "My favourite colour is {x}.", "I like {x} best.",
            "The colour that I like best is {x}.",
        ),
        questions=(
            "What is my favourite colour?", "Which colour do I like best?", "what colour do I like",
            "Do you know my favourite colour?",
        ),
    ),
    Statement(
        tuple(town.name for town in TOWNS), reply="{x} is a nice town.", answer="You live in {x}.",
        statements=("I live in {x}.", "My home is in {x}.", "I am from {x}.", "I come from {x}."),
        questions=(
            "Where do I live?", "Which town am I from?", "where is my home",
            "Do you know where I live?",
        ),
    ),
)  # fmt: skip


def _about_the_user(rng: Random, terse: bool) -> tuple[Messages, Question]:
    """My name is Tom. ... What is my name?"""
    kind = rng.choice((STATEMENTS[0], *STATEMENTS))  # the name twice: it is what users say first
    value = rng.choice(kind.values)
    statement, question = rng.choice(kind.statements).format(x=value), rng.choice(kind.questions)
    earlier: Messages = [
        {"role": "user", "content": statement},
        {"role": "assistant", "content": kind.reply.format(x=value, X=value.capitalize())},
    ]
    distractor = ""
    if rng.random() < 0.6:  # a turn on something else, so that the statement is not always the last
        fact = draw(lambda rng, split: ask(rng, split, rng.choice(FACTS)), rng, "train")
        earlier += fact.messages(terse=terse)
        distractor = fact.text
    last = Question(
        text=question,
        answer=kind.answer.format(x=value),
        key=value,
        identity=f"memory|{statement}|{question}|{distractor}",
        rivals=tuple(other for other in kind.values if other != value),
    )
    return earlier, last


def _running_sum(rng: Random, terse: bool) -> tuple[Messages, Question]:
    """What is 5 + 7? And plus 10?"""
    first = draw(_first_sum, rng, "train")
    sign = rng.choice("+-*")
    limit = min(9 if sign == "*" else 999, int(first.key))  # no negative differences
    number = rng.randint(1, limit)
    wordings = {
        "+": ("And plus {n}?", "Now add {n}.", "now add {n} to that", "And {n} more?", "plus {n}"),
        "-": ("And minus {n}?", "Now take away {n}.", "now subtract {n} from that", "minus {n}"),
        "*": ("And times {n}?", "Now multiply that by {n}.", "times {n}"),
    }[sign]
    expression = f"{first.key} {sign} {number}"
    return first.messages(terse=terse), _sum(rng.choice(wordings).format(n=number), expression)


def _first_sum(rng: Random, split: Split) -> Question:
    x, y = rng.randint(1, 999), rng.randint(1, 999)
    wording = rng.choice((f"What is {x} + {y}?", f"{x} + {y}", f"Add {x} and {y}."))
    return _sum(wording, f"{x} + {y}")


def _sum(text: str, expression: str) -> Question:
    result = compute(expression)
    return Question(
        text=text, answer=f"{expression} is {result}.", key=result,
        identity=f"sum|{expression}",  # as in sum_question: both share one split
        expression=expression, kind="number",
    )  # fmt: skip
