"""Grade-school science questions with choices: allenai/ai2_arc (arXiv 1803.05457)."""

from typing import Literal

from nanochat import dataset
from nanochat.data import shards
from tasks.common import Conversation, Task, final_text, render_choices, shuffled

REPO = "allenai/ai2_arc"


class ARC(Task):
    """Letters are the item's own labels, which are sometimes 1 to 4."""

    eval_type = "categorical"

    def __init__(
        self,
        subset: Literal["ARC-Easy", "ARC-Challenge"],
        split: Literal["train", "validation", "test"],
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
        letters = row["choices"]["label"]
        prompt = render_choices(row["question"], row["choices"]["text"], letters)
        return {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": row["answerKey"]},
            ],
            "letters": letters,
            "answer": row["answerKey"],
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_text(completion) == conversation["answer"]
