"""The user's own conversations: a file with one JSON list of messages per line."""

from pathlib import Path
from typing import Any

from nanochat.chat import pieces_of
from nanochat.data import shards
from nanochat.errors import UserError
from tasks.common import Conversation, Task


class CustomJSON(Task):
    """A line is [{"role": "user", "content": "..."}, {"role": "assistant", ...}, ...]."""

    def __init__(self, path: str, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        """Raises UserError naming the line that is not a conversation."""
        super().__init__(start, stop, step)
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"--identity_file={path} does not exist")
        self.rows = [_messages(file, n, row) for n, row in enumerate(shards.read_rows(file), 1)]

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]}


def _messages(file: Path, number: int, row: Any) -> list[dict[str, Any]]:
    # Two forms are in use: the bare list and {"messages": list}.
    messages: Any = row.get("messages") if isinstance(row, dict) else row
    try:
        if not all(isinstance(text, str) for _, text, _ in pieces_of(messages)):
            raise TypeError("a text is not a string")
    except (UserError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{file}:{number} is not a list of messages by user and assistant in turn: {error}"
        ) from None
    return list(messages)
