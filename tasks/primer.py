"""The primer world as a task: a family of questions, a probe, a mixture, or typed questions."""

import random
import re
from pathlib import Path
from typing import Any, Literal

from nanochat import primer
from nanochat.errors import UserError
from nanochat.primer import FAMILIES, PROBES, Stage
from nanochat.primer.world import a
from tasks.common import Conversation, Task, final_text

MIN_WORDS = 3  # of a sentence: a bare "5" is no answer
MAX_EXTRA_CHARACTERS = 80  # beyond the reference answer: no credit for rambling until it is right
MAX_TYPED_CHARACTERS = 160  # of an answer to a typed question, which has no reference answer
TYPED = "typed by a person"
TYPED_FILE = Path(__file__).with_name("typed_by_a_person.txt")
REFUSAL = r"do not know|don't know|cannot|can't|not able to"
# Plain text among the conversations of a stage, so that it is not forgotten.
TEXT_SHARE: dict[Stage, float] = {"mid": 0.1, "sft": 0.06, "rl": 0.0}
TEXT_SEED = 2  # not the seed of pretraining: other documents


class Primer(Task):
    """Conversation i of a split is the same on every machine; train and test share no question."""

    families, probes = FAMILIES, PROBES

    def __init__(
        self,
        split: Literal["train", "test"],
        family: str | None = None,
        stage: Stage = "sft",
        size: int = 1000,
        seed: int = 0,
    ) -> None:
        """family: one of primer.FAMILIES or PROBES, or None for the stage's mixture with text."""
        super().__init__()
        if family is not None and family not in (*FAMILIES, *PROBES):
            raise UserError(f"no family {family} in the primer; use one of {', '.join(FAMILIES)}")
        self.split, self.family, self.stage = split, family, stage
        self.size, self.seed = size, seed

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> Conversation:
        if self.split == "train" and self.family is None:
            rng = random.Random(f"text {self.stage} {self.seed} {index}")
            if rng.random() < TEXT_SHARE[self.stage]:
                return {"text": primer.document(TEXT_SEED + self.seed, index)}
        return primer.conversation(self.seed, index, self.split, self.family, self.stage)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """True for a short complete sentence with the answer and none of its rivals."""
        text, answer = final_text(completion), str(conversation["answer"])
        reference = conversation["messages"][-1]["content"]
        # The last part is what follows a tool call.
        reference = reference if isinstance(reference, str) else reference[-1]["text"]
        if len(text) > len(reference) + MAX_EXTRA_CHARACTERS:
            return False
        if len(text.split()) < min(MIN_WORDS, len(reference.split())):
            return False
        if conversation["kind"] == "refusal":
            return re.search(rf"\b({REFUSAL})\b", text, re.IGNORECASE) is not None
        if conversation["kind"] == "choice":
            return re.findall(r"\b[A-D]\b", text)[-1:] == [answer]
        if conversation["kind"] == "number":
            return last_number(text) == answer
        # Listing everything is no answer: a rival in the sentence makes it wrong.
        return contains_phrase(text, answer) and not any(
            contains_phrase(text, rival) for rival in conversation["rivals"]
        )


def contains_phrase(text: str, phrase: str) -> bool:
    """True when the phrase occurs between word boundaries, in any case."""
    # A hyphen joins words: "blue-berries" does not contain "berries".
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text, re.IGNORECASE) is not None


def last_number(text: str) -> str:
    """The last number of a text without thousands commas; "" when there is none."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else ""


class TypedByAPerson(Task):
    """Questions that a person has written by hand.

    A line is "TURN >> TURN >> ... => ANSWER": turns of user and model alternate. ANSWER is a
    regular expression, "= N" for the last number of the answer, or "?" for a refusal.
    """

    def __init__(self) -> None:
        super().__init__()
        lines = TYPED_FILE.read_text(encoding="utf-8").splitlines()
        self.lines = [line for line in lines if " => " in line and not line.startswith("#")]

    def num_examples(self) -> int:
        return len(self.lines)

    def get_example(self, index: int) -> Conversation:
        talk, answer = self.lines[index].split(" => ")
        roles = ("user", "assistant")
        turns = [
            {"role": roles[number % 2], "content": turn}
            for number, turn in enumerate(talk.split(" >> "))
        ]
        return {"messages": turns, "answer": answer}

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        text, answer = final_text(completion), str(conversation["answer"])
        if len(text) > MAX_TYPED_CHARACTERS:  # no credit for naming everything
            return False
        if answer.startswith("= "):
            return last_number(text) == answer[2:]
        pattern = REFUSAL if answer == "?" else answer
        return re.search(rf"(?<![\w-])({pattern})(?![\w-])", text, re.IGNORECASE) is not None


def plain_choices(size: int) -> list[dict[str, Any]]:
    """Facts, each with one true and three false sentences, in the format of CORE's tasks."""
    task, items = Primer("test", family="facts", size=size), []
    for index in range(size):
        conversation = task[index]
        question, sentence = (message["content"] for message in conversation["messages"])
        answer, rng = str(conversation["answer"]), random.Random(index)  # equal on all ranks
        rivals = [rival for rival in conversation["rivals"] if rival != answer]
        if answer not in sentence or len(rivals) < 3:
            continue  # such as "yes", or a fact with few alternatives
        choices = [answer, *rng.sample(rivals, 3)]
        rng.shuffle(choices)
        sentences = [with_answer(sentence, answer, choice) for choice in choices]
        query = f"Question: {question} Answer:"  # the form of the base text
        items.append({"query": query, "choices": sentences, "gold": choices.index(answer)})
    return items


def with_answer(sentence: str, answer: str, other: str) -> str:
    """The sentence with another answer in place of its own, and the article that it takes."""
    with_article = re.sub(rf"\ban? {re.escape(answer)}\b", lambda _: a(other), sentence)
    return with_article if with_article != sentence else sentence.replace(answer, other)
