"""Tasks: indexable conversations with answers that can be checked."""

import random
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np

Conversation = dict[str, Any]
Row = TypeVar("Row")


class Task:
    """Conversations start, start + step, ... below stop of a set; subclasses give the set."""

    eval_type: Literal["generative", "categorical"] = "generative"

    def __init__(self, start: int = 0, stop: int | None = None, step: int = 1) -> None:
        self.start, self.stop, self.step = start, stop, step

    def num_examples(self) -> int:
        """Size of the whole set."""
        raise NotImplementedError

    def get_example(self, index: int) -> Conversation:
        """Conversation `index` of the whole set."""
        raise NotImplementedError

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """True when the completion answers the conversation's last question."""
        raise NotImplementedError

    def reward(self, conversation: Conversation, completion: str) -> float:
        """What reinforcement gives for a completion: 1 for a right one, else 0."""
        return float(self.evaluate(conversation, completion))

    def _indices(self) -> range:
        size = self.num_examples()
        return range(self.start, size if self.stop is None else min(self.stop, size), self.step)

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, index: int) -> Conversation:
        return self.get_example(self._indices()[index])


class TaskMixture(Task):
    """Several tasks as one, shuffled once; a task that is named twice is seen twice."""

    def __init__(self, tasks: Sequence[Task], seed: int = 42) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.places = [(t, i) for t, task in enumerate(self.tasks) for i in range(len(task))]
        random.Random(seed).shuffle(self.places)

    def num_examples(self) -> int:
        return len(self.places)

    def get_example(self, index: int) -> Conversation:
        task, place = self.places[index]
        return self.tasks[task][place]


class TaskSequence(Task):
    """Several tasks one after another."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = list(tasks)

    def num_examples(self) -> int:
        return sum(len(task) for task in self.tasks)

    def get_example(self, index: int) -> Conversation:
        for task in self.tasks:
            if index < len(task):
                return task[index]
            index -= len(task)
        raise IndexError(index)


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of the `datasets` library's shuffle(seed=42), as public numbers have it."""
    return [rows[i] for i in np.random.default_rng(42).permutation(len(rows))]


def render_choices(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """A multiple-choice prompt. The letter stands behind its choice and without a space before it,
    so that the answer is one bare-letter token that the prompt has shown.
    """
    lines = "".join(f"- {c}={letter}\n" for c, letter in zip(choices, letters, strict=True))
    return (
        f"Multiple Choice question: {question}\n{lines}"
        "\nRespond only with the letter of the correct answer."
    )


def final_text(completion: str) -> str:
    """What a person reads at the end of a completion: behind the last tool output, no end token."""
    text = completion.rsplit("<|output_end|>", 1)[-1].rsplit("<|python_end|>", 1)[-1]
    return text.removesuffix("<|assistant_end|>").strip()
