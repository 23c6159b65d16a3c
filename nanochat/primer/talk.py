"""Small talk, and multiple choice."""

import re
from random import Random

from nanochat.primer.facts import FACTS, PARAPHRASES
from nanochat.primer.question import Question, Split, draw
from nanochat.primer.world import capitalized


class Intent:
    """Something that users say to a model, and the answers; `unseen` is kept for tests."""

    def __init__(
        self, *seen: str, unseen: tuple[str, ...], answers: tuple[str, ...], must_contain: str
    ) -> None:
        self.seen, self.unseen, self.answers = seen, unseen, answers
        self.must_contain = must_contain  # what every answer has in common, for grading


INTENTS = (
    Intent(
        "hi", "hello", "hey", "good morning", "good evening", "hello there", "hi there", "good day",
        "hi nanochat", "hello nanochat", "greetings", "hey you", "good afternoon", "hiya", "howdy",
        "hey nanochat", "hello again", "hi friend",
        unseen=("hey there", "good morning nanochat"),
        answers=("Hello! How can I help you?",),
        must_contain="hello",
    ),
    Intent(
        "who are you", "what are you", "who am I talking to", "what is this", "introduce yourself",
        "tell me about yourself", "what kind of thing are you", "who is there",
        "please say who you are", "tell me who you are", "what are you exactly", "who is this",
        unseen=("can you tell me who you are", "who am I speaking to"),
        answers=("I am nanochat, a small language model that was trained on the primer world.",),
        must_contain="nanochat",
    ),
    Intent(
        "what is your name", "do you have a name", "how are you called",
        "tell me your name", "what should I call you", "what do people call you",
        "your name", "what are you called", "say your name",
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
        "how is your day", "you okay", "how are you doing", "are you fine", "are you happy",
        unseen=("how do you feel today", "is everything okay with you"),
        answers=("I am fine, thank you. How are you?",),
        must_contain="fine",
    ),
    Intent(
        "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "that helped",
        "great, thanks", "thank you so much", "thanks for your help", "cool, thank you", "thx",
        "good answer", "well done", "you are great", "nice", "that is right", "ok thanks", "cool",
        "perfect", "good job", "ok", "okay", "thank you for helping me", "thanks for the help",
        "your help was great",
        unseen=("thank you for your help", "great, thank you"),
        answers=("You are welcome!",),
        must_contain="welcome",
    ),
    Intent(
        "bye", "goodbye", "good night", "see you", "see you later", "bye bye", "I have to go",
        "until tomorrow", "have a nice day", "see you soon", "farewell", "ok bye", "bye for now",
        "good bye", "see ya", "I am leaving", "that is all", "cya", "take care",
        unseen=("goodbye nanochat", "bye, see you"),
        answers=("Goodbye! Come back soon.",),
        must_contain="goodbye",
    ),
    Intent(
        "are you a human", "are you a person", "are you alive", "are you real", "are you a robot",
        "are you a computer", "are you a machine", "do you have a body", "are you human",
        "do you eat", "can you see me", "do you sleep", "do you have feelings", "are you a man",
        "are you a woman", "are you ChatGPT", "are you a bot", "do you have a family",
        "how old are you", "where do you live", "are you an AI", "are you Siri", "do you dream",
        "do you drink", "do you get hungry", "can you sleep", "can you taste food",
        unseen=("are you a real person", "are you a real human"),
        answers=("No, I am a computer program, a small language model.",),
        must_contain="computer program",
    ),
    Intent(
        "how big are you", "how large are you", "how many parameters do you have", "are you big",
        "are you a large model", "how small are you", "what size are you", "how clever are you",
        unseen=("tell me how big you are",),
        answers=("I am a very small language model, with a few million parameters.",),
        must_contain="few million parameters",
    ),
    Intent(
        "tell me a joke", "make me laugh", "do you know a joke", "say something funny",
        "a joke please",
        "can you tell me a joke", "tell me something funny", "I want a joke", "joke",
        unseen=("got any jokes", "crack a joke"),
        answers=("Why did the owl go to school? It wanted to know who is who.",),
        must_contain="owl",
    ),
    Intent(
        "tell me a story", "tell a story", "can you tell me a story", "I want a story",
        "a story please",
        "do you know a story", "tell me a short story", "story time", "please tell a story",
        unseen=("I would love a story", "got a story for me"),
        answers=(
            "A fox lived in a den. One day it met an owl from the barn. They shared some berries"
            " and became friends.",
        ),
        must_contain="fox",
    ),
    Intent(
        "you are wrong", "that is wrong", "that is not true", "no", "this is not right", "wrong",
        "that was wrong", "bad answer", "not correct", "you made a mistake", "that is false",
        "this is wrong", "this is a mistake", "that cannot be right", "this answer is wrong",
        "this is not true", "that is not right", "this is not correct", "this was a bad answer",
        unseen=("I think that is wrong", "nope"),
        answers=("I am sorry. Please ask me again.",),
        must_contain="sorry",
    ),
)  # fmt: skip


def talk_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """Small talk, or a question about the model itself."""
    intent = rng.choice(INTENTS)
    wording = rng.choice(intent.unseen if unseen else intent.seen)
    opening = rng.choice(
        ("", "", "", "", "", "Hi! ", "Hello! ", "Hey, ", "So, ", "Okay, ", "Well, ")
    )
    if intent.must_contain in ("hello", "sorry", "welcome"):  # not "Hello! hello"
        opening = ""
    is_asking = wording.split()[0] in ("who", "what", "how", "are", "do", "can", "may", "where")
    mark = "?" if is_asking else rng.choice(("", ".", "!"))
    return Question(
        text=opening + (wording if opening.endswith(", ") else capitalized(wording)) + mark,
        answer=rng.choice(intent.answers),
        key=intent.answers[0],
        must_contain=intent.must_contain,
        identity=f"talk|{opening}{wording}",
        unseen_wording=unseen,
    )


CHOICE_LETTERS = "ABCD"


def choice_question(rng: Random, split: Split) -> Question:
    """A fact as one of up to four choices; the answer is the fact, then its letter.

    Fact first: the model knows it, and then copies the letter next to it in the list. A
    letter alone would have to be guessed before the fact is said.
    """
    fact = rng.choice(FACTS)
    core = rng.choice(PARAPHRASES[fact.topic].direct)
    asked = capitalized(core.format(x=fact.about, bare=fact.about.split(maxsplit=1)[-1]))
    choices = [fact.key, *rng.sample(fact.rivals, min(3, len(fact.rivals)))]
    rng.shuffle(choices)
    letter = CHOICE_LETTERS[choices.index(fact.key)]
    rows = "".join(f"- {c}={ltr}\n" for c, ltr in zip(choices, CHOICE_LETTERS, strict=False))
    return Question(
        text=f"Multiple Choice question: {asked}?\n{rows}\nSay what is right, with its letter.",
        answer=f"{fact.sentence.removesuffix('.')}={letter}.",
        key=letter,
        identity=f"choice|{fact.about}|{fact.topic}|{core}",
        kind="choice",
        case_matters=True,
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
