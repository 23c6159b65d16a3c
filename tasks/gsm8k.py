"""Grade-school word problems: openai/gsm8k (arXiv 2110.14168).

`<<12*3=36>>` in an answer becomes a calculator call and its output.
"""

import re
from typing import Any, Literal

from tasks.common import Conversation, HubTask, final_number, one_turn

CALL = re.compile(r"(<<[^>]*>>)")


class GSM8K(HubTask):
    """Answers end in `#### number`, compared as text without commas."""

    def __init__(
        self,
        subset: Literal["main", "socratic"],
        split: Literal["train", "test"],
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        super().__init__("openai/gsm8k", f"{subset}/{split}", start, stop)

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        answer = row["answer"]
        return one_turn(row["question"], answer_parts(answer), answer=final_number(answer))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        number = final_number(completion)
        return number is not None and number == conversation["answer"]


def answer_parts(answer: str) -> list[dict[str, Any]]:
    """An answer as parts: text, tool calls and their outputs."""
    parts = []
    for piece in filter(None, CALL.split(answer)):
        if piece.startswith("<<"):
            # The last "=": an expression such as 1=1 may have its own.
            expression, _, result = piece[2:-2].rpartition("=")
            parts.append({"type": "python", "text": expression})
            parts.append({"type": "python_output", "text": result})
        else:
            parts.append({"type": "text", "text": piece})
    return parts
