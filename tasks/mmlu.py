"""Questions of 57 subjects with four choices: cais/mmlu (arXiv 2009.03300)."""

from typing import Literal

from nanochat import dataset
from nanochat.data import shards
from tasks.common import Conversation, Task, final_text, render_choices, shuffled

REPO = "cais/mmlu"
LETTERS = ("A", "B", "C", "D")


class MMLU(Task):
    """`auxiliary_train` is the training set, `all` has dev, validation and test."""

    eval_type = "categorical"

    def __init__(
        self,
        subset: Literal["all", "auxiliary_train"],
        split: Literal["train", "dev", "validation", "test"],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__(start, stop)
        name = "auxiliary_train" if subset == "auxiliary_train" else split
        file = dataset.task_file(REPO, f"all/{name}-00000-of-00001.parquet")
        rows = shards.read_rows(file)
        # Some copies of the training file wrap each row in a column of its own.
        self.rows = shuffled([row.get("train") or row for row in rows])

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        row = self.rows[index]
        letter = LETTERS[row["answer"]]
        prompt = render_choices(row["question"], row["choices"], LETTERS)
        return {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": letter},
            ],
            "letters": list(LETTERS),
            "answer": letter,
            "subject": row.get("subject", ""),
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_text(completion) == conversation["answer"]
