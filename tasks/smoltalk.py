"""Everyday conversations: HuggingFaceTB/smol-smoltalk, 460K to train on and 24K to test."""

from typing import Literal

from nanochat import dataset
from nanochat.data import shards
from tasks.common import Conversation, Task, shuffled

REPO = "HuggingFaceTB/smol-smoltalk"
FILES = {
    "train": [f"data/train-0000{i}-of-00004.parquet" for i in range(4)],
    "test": ["data/test-00000-of-00001.parquet"],
}


class SmolTalk(Task):
    """Conversations with an optional system text."""

    def __init__(
        self, split: Literal["train", "test"], start: int = 0, stop: int | None = None
    ) -> None:
        super().__init__(start, stop)
        files = [dataset.task_file(REPO, name) for name in FILES[split]]
        self.rows = shuffled([row for file in files for row in shards.read_rows(file)])

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return {"messages": self.rows[index]["messages"]}
