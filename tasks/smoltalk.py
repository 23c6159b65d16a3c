"""Everyday conversations: HuggingFaceTB/smol-smoltalk, 460K for training and 24K for testing."""

from typing import Any, Literal

from nanochat.data.hub_files import split_files
from tasks.common import Conversation, HubTask

# Parquet files of each split on the hub.
NUM_FILES = {"train": 4, "test": 1}


class SmolTalk(HubTask):
    """Conversations, some with a system message."""

    def __init__(
        self, split: Literal["train", "test"], start: int = 0, stop: int | None = None
    ) -> None:
        repo = "HuggingFaceTB/smol-smoltalk"
        super().__init__(split_files(repo, f"data/{split}", NUM_FILES[split]), start, stop)

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        return {"messages": row["messages"]}
