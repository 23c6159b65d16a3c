"""Everyday conversations: HuggingFaceTB/smol-smoltalk, 460K for training and 24K for testing."""

from typing import Any, Literal

from tasks.common import Conversation, HubTask


class SmolTalk(HubTask):
    """Conversations, some with a system message."""

    def __init__(
        self, split: Literal["train", "test"], start: int = 0, stop: int | None = None
    ) -> None:
        num_files = {"train": 4, "test": 1}[split]  # on the hub
        super().__init__("HuggingFaceTB/smol-smoltalk", f"data/{split}", start, stop, num_files)

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        return {"messages": row["messages"]}
