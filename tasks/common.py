"""Tasks: indexable conversations whose answers can be checked.

To add a task, subclass `Task` (or `HubTask` for the rows of a data set on the hub):

    class Doubling(Task):
        def num_examples(self) -> int:
            return 1000
        def get_example(self, index: int) -> Conversation:
            return one_turn(f"What is twice {index}?", str(2 * index), answer=str(2 * index))

and list it where it is used: in `training_mixture` of `scripts/mid_train.py` and `chat_sft.py`
for training, in `CHAT_TASKS` of `scripts/chat_eval.py` for evaluation. `evaluate` accepts exactly
`answer` unless it is overridden; evaluation calls it from several threads.
"""

import random
import re
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from nanochat.data import hub_files

Conversation = dict[str, Any]  # {"messages": [...]} and what `evaluate` needs
Row = TypeVar("Row")

FINAL_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")  # as published results extract answers


class Task:
    """Conversations start, start + step, ... below stop of a set that subclasses define."""

    # Categorical: the most likely of "letters" is the answer. Generative: an answer is sampled.
    eval_type: Literal["generative", "categorical"] = "generative"

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        self.start, self.stop, self.step = start, stop, step

    def num_examples(self) -> int:
        """Size of the complete set."""
        raise NotImplementedError

    def get_example(self, index: int) -> Conversation:
        """Conversation `index` of the complete set."""
        raise NotImplementedError

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """True when the completion answers the conversation's last question."""
        return final_text(completion) == conversation["answer"]

    def reward(self, conversation: Conversation, completion: str) -> float:
        """The reward of a completion in reinforcement learning: 1 if it is right, else 0."""
        return float(self.evaluate(conversation, completion))

    def _indices(self) -> range:
        size = self.num_examples()
        return range(self.start, size if self.stop is None else min(self.stop, size), self.step)

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> Conversation:
        return self.get_example(self._indices()[index])


class HubTask(Task):
    """The rows of a data set in shuffled order; subclasses make them conversations."""

    def __init__(
        self, repo: str, split: str, start: int, stop: int | None, num_files: int = 1
    ) -> None:
        """split: "folder/split" on the hub.  Raises UserError when it cannot be downloaded."""
        super().__init__(start, stop)
        self.rows = shuffled(hub_files.task_rows(hub_files.split_files(repo, split, num_files)))

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        return self.to_conversation(self.rows[index])

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        """A row as a conversation."""
        raise NotImplementedError


class TaskSequence(Task):
    """Several tasks one after another."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.order = [(task, i) for task in tasks for i in range(len(task))]

    def num_examples(self) -> int:
        return len(self.order)

    def get_example(self, index: int) -> Conversation:
        task, i = self.order[index]
        return task[i]


class TaskMixture(TaskSequence):
    """Several tasks as one, shuffled once; a task that is listed twice is seen twice."""

    def __init__(self, tasks: Sequence[Task], seed: int = 42, stop: int | None = None) -> None:
        super().__init__(tasks)
        self.stop = stop
        random.Random(seed).shuffle(self.order)


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of the `datasets` library's shuffle(seed=42), as in published results."""
    return [rows[i] for i in np.random.default_rng(42).permutation(len(rows))]


def one_turn(user: str, assistant: str | list[dict[str, Any]], **evaluation: Any) -> Conversation:
    """A question, its answer (a text or parts), and what `evaluate` needs."""
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, **evaluation}


def render_choices(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """A multiple-choice prompt."""
    # The letter follows its choice without a space: so the answer, a bare letter, is the same
    # single token that the prompt has shown (" A" and "A" are different tokens).
    lines = "".join(f"- {c}={letter}\n" for c, letter in zip(choices, letters, strict=True))
    return (
        f"Multiple Choice question: {question}\n{lines}"
        "\nRespond only with the letter of the correct answer."
    )


def final_number(text: str) -> str | None:
    """The number after the first `#### ` that one follows, without commas; None if there is none.

    >>> final_number("so many: #### 1,234 apples")
    '1234'
    """
    match = FINAL_NUMBER.search(text)
    return match[1].replace(",", "") if match else None


def final_text(completion: str) -> str:
    """The text after the last tool call, without the end token."""
    text = completion.rsplit("<|output_end|>", 1)[-1].rsplit("<|python_end|>", 1)[-1]
    return text.removesuffix("<|assistant_end|>").strip()
