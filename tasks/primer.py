"""The primer world as a task: one family of questions, or a stage's mixture of them."""

import re
from typing import Literal

from nanochat import primer
from nanochat.errors import UserError
from nanochat.primer import FAMILIES, Stage
from tasks.common import Conversation, Task, final_text

MIN_WORDS = 3  # of a whole short sentence
MAX_EXTRA_CHARACTERS = 80  # beyond the known answer's length


class Primer(Task):
    """Conversation i of a split is the same on every machine; train and test share no question."""

    def __init__(
        self,
        split: Literal["train", "test"],
        family: str | None = None,
        stage: Stage = "sft",
        size: int = 1000,
        seed: int = 0,
    ) -> None:
        """family: one of primer.FAMILIES, or None for the stage's mixture of them."""
        super().__init__()
        if family is not None and family not in FAMILIES:
            raise UserError(f"no family {family} in the primer; use one of {', '.join(FAMILIES)}")
        self.split, self.family, self.stage = split, family, stage
        self.size, self.seed = size, seed

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> Conversation:
        return primer.conversation(self.seed, index, self.split, self.family, self.stage)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """True for a whole short sentence that holds the answer and none of its rivals."""
        text, answer = final_text(completion), str(conversation["answer"])
        known = conversation["messages"][-1]["content"]
        known = known if isinstance(known, str) else known[-1]["text"]
        if len(text) > len(known) + MAX_EXTRA_CHARACTERS:
            return False
        if len(text.split()) < min(MIN_WORDS, len(known.split())):
            return False
        if conversation["kind"] == "choice":
            return re.findall(r"\b[A-D]\b", text)[-1:] == [answer]
        if conversation["kind"] == "number":
            return last_number(text) == answer
        return holds(text, answer) and not any(holds(text, r) for r in conversation["rivals"])


def holds(text: str, words: str) -> bool:
    """True when `words` stand in the text as whole words; capitals do not matter."""
    return re.search(rf"(?<![\w-]){re.escape(words)}(?![\w-])", text, re.IGNORECASE) is not None


def last_number(text: str) -> str:
    """The last whole number of a text, thousands commas taken out; "" when there is none."""
    numbers = re.findall(r"-?\d[\d,]*", text)
    return numbers[-1].replace(",", "") if numbers else ""
