"""Grade-school word problems: openai/gsm8k (arXiv 2110.14168).

`<<12*3=36>>` in an answer becomes a call of the calculator and its output.
"""

import re
from typing import Any, Literal

from nanochat import dataset
from nanochat.data import shards
from tasks.common import Conversation, Task, shuffled

REPO = "openai/gsm8k"
FINAL = re.compile(r"#### (\-?[0-9\.\,]+)")
CALL = re.compile(r"(<<[^>]*>>)")


class GSM8K(Task):
    """Answers end in `#### number`, compared as text without commas."""

    def __init__(
        self,
        subset: Literal["main", "socratic"],
        split: Literal["train", "test"],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(start, stop)
        file = dataset.task_file(REPO, f"{subset}/{split}-00000-of-00001.parquet")
        self.rows = shuffled(shards.read_rows(file))

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        return {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": parts(row["answer"])},
            ],
            "answer": final_number(row["answer"]),
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        found = final_number(completion)
        return found is not None and found == conversation["answer"]


def parts(answer: str) -> list[dict[str, Any]]:
    """An answer as text, calls and outputs."""
    found = []
    for piece in filter(None, CALL.split(answer)):
        if piece.startswith("<<"):
            expression, _, result = piece[2:-2].rpartition("=")
            found.append({"type": "python", "text": expression})
            found.append({"type": "python_output", "text": result})
        else:
            found.append({"type": "text", "text": piece})
    return found


def final_number(text: str) -> str | None:
    """The number behind `####`, commas taken out; None when there is none."""
    found = FINAL.search(text)
    return found[1].replace(",", "") if found else None
