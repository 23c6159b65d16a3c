"""How a question is put: its core directly, as a clause or a noun phrase in a frame, and typed.

"what colour is the fox", "do you know what colour the fox is", "tell me the colour of the fox" ask
for the same thing. Frames and cores combine, so that few lines give thousands of phrasings, and
some kinds of both are never used in training: they measure how well phrasings generalize.
"""

from random import Random

from nanochat.primer.question import Split
from nanochat.primer.world import capitalized, words

# {c} is a clause such as "where Mia lives".
CLAUSE_FRAMES = (
    "tell me {c}", "do you know {c}", "can you tell me {c}", "could you tell me {c}",
    "I want to know {c}", "I would like to know {c}", "please tell me {c}", "can you say {c}",
    "I need to know {c}", "do you happen to know {c}", "I am trying to find out {c}", "say {c}",
    "would you tell me {c}", "I was wondering {c}", "please say {c}", "could you please say {c}",
)  # fmt: skip
UNSEEN_CLAUSE_FRAMES = (
    "I wonder {c}", "any idea {c}", "remind me {c}", "I forgot {c}", "may I ask {c}",
    "let me know {c}", "I am not sure {c}",
)  # fmt: skip
# {n} is a noun phrase such as "the colour of the fox".
NOUN_FRAMES = (
    "what is {n}", "what is {n}", "tell me {n}", "{n}", "name {n}", "give me {n}",
    "do you know {n}", "I want to know {n}", "can you tell me {n}", "{n} is what",
    "could you tell me {n}", "please tell me {n}", "I need {n}", "I would like to know {n}",
    "can you name {n}", "do you remember {n}",
)  # fmt: skip
UNSEEN_NOUN_FRAMES = (
    "remind me of {n}", "any idea about {n}", "I am looking for {n}", "I forgot {n}",
    "I am curious about {n}", "let me know {n}",
)  # fmt: skip
# First words of a request, which ends with a full stop; everything else ends with a question mark.
IMPERATIVES = words("""
    tell name spell count calculate add multiply divide work compute take subtract share I give say
    please list let remind repeat double write
""")  # fmt: skip


class Paraphrases:
    """Ways to ask for one thing, as cores with fields for str.format; test has some of its own."""

    def __init__(
        self, direct: list[str], clauses: list[str], nouns: list[str], unseen: list[str]
    ) -> None:
        self.direct, self.clauses, self.nouns, self.unseen = direct, clauses, nouns, unseen

    @classmethod
    def table(cls, text: str) -> dict[str, "Paraphrases"]:
        """From lines "topic: a | b", and "topic clause", "topic noun", "topic unseen"."""
        options: dict[str, dict[str, list[str]]] = {}
        for line in text.strip().splitlines():
            head, _, cores = line.partition(": ")
            topic, _, form = head.partition(" ")
            forms = options.setdefault(topic, {})
            forms.setdefault(form or "direct", []).extend(cores.split(" | "))
        names = ("direct", "clause", "noun", "unseen")
        return {t: cls(*(forms.get(name, []) for name in names)) for t, forms in options.items()}

    def pick(self, rng: Random, split: Split, *, unseen: bool = False) -> str:
        """A core; unseen: one whose kind training never uses."""
        forms: list[list[str]] = [self.clauses, self.nouns]
        if not unseen:
            forms += [self.direct, self.direct]
        elif self.unseen:
            forms += [self.unseen, self.unseen]
        form = rng.choice([form for form in forms if form])
        core = rng.choice(form)
        if form is self.clauses:
            frame = rng.choice(UNSEEN_CLAUSE_FRAMES if unseen else CLAUSE_FRAMES)
            return frame.replace("{c}", core)
        if form is self.nouns:
            frame = rng.choice(UNSEEN_NOUN_FRAMES if unseen else NOUN_FRAMES)
            return frame.replace("{n}", core)
        return core


OPENINGS = (
    "Hi! ", "Hello! ", "Hey, ", "Please tell me: ", "Say, ", "Can you help me? ", "A question: ",
    "I have a question. ", "Do you know this? ", "So, ", "Okay, ", "Quick question: ",
    "Hello nanochat, ",
)  # fmt: skip
OPENING_SHARE, PLEASE_SHARE, AMERICAN_SHARE = 0.12, 0.06, 0.4


def as_typed(rng: Random, core: str) -> str:
    """A core such as "what colour is the fox" as a sentence, sometimes with a greeting."""
    if "colour" in core and rng.random() < AMERICAN_SHARE:  # answers use "colour"
        core = core.replace("colour", "color")
    opening = rng.choice(OPENINGS) if rng.random() < OPENING_SHARE else ""
    end = "." if core.split()[0] in IMPERATIVES else "?"
    if rng.random() < PLEASE_SHARE and not core.startswith("please"):
        end = ", please" + end
    if not opening or opening.endswith((". ", "! ", "? ")):  # not after a comma or a colon
        core = capitalized(core)
    return opening + core + end
