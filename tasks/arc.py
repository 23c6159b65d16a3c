"""Grade-school science questions with choices: allenai/ai2_arc (arXiv 1803.05457)."""

from typing import Any, Literal

from tasks.common import Conversation, HubTask, one_turn, render_choices


class ARC(HubTask):
    """Letters are the row's own labels, which are sometimes 1 to 4."""

    eval_type = "categorical"

    def __init__(
        self,
        subset: Literal["ARC-Easy", "ARC-Challenge"],
        split: Literal["train", "validation", "test"],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__("allenai/ai2_arc", f"{subset}/{split}", start, stop)

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        letters, answer = row["choices"]["label"], row["answerKey"]
        prompt = render_choices(row["question"], row["choices"]["text"], letters)
        return one_turn(prompt, answer, letters=letters, answer=answer)
