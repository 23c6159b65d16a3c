"""Questions of 57 subjects with four choices: cais/mmlu (arXiv 2009.03300)."""

from typing import Any, Literal

from tasks.common import Conversation, HubTask, one_turn, render_choices

LETTERS = ("A", "B", "C", "D")


class MMLU(HubTask):
    """`auxiliary_train` is the training set, `all` has dev, validation and test."""

    eval_type = "categorical"

    def __init__(
        self,
        subset: Literal["all", "auxiliary_train"],
        split: Literal["train", "dev", "validation", "test"],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        # The training set is stored in the folder of the others, under the name of its subset.
        name = "auxiliary_train" if subset == "auxiliary_train" else split
        super().__init__("cais/mmlu", f"all/{name}", start, stop)

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        row = row.get("train") or row  # some copies wrap each row of the training set
        letter = LETTERS[row["answer"]]
        prompt = render_choices(row["question"], row["choices"], LETTERS)
        return one_turn(
            prompt, letter, letters=list(LETTERS), answer=letter, subject=row.get("subject", "")
        )
