"""Run a task against an engine: answers are generated and judged, or chosen by their letter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from nanochat.chat import Conversation, render_for_completion
from nanochat.engine import Engine

FORWARD_ROWS = 32


class Task(Protocol):
    """What evaluation asks of a task."""

    eval_type: Literal["generative", "categorical"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...

    def evaluate(self, conversation: Conversation, completion: str) -> bool: ...


@dataclass(frozen=True)
class Judged:
    """One problem, what the model answered, and whether that is right."""

    index: int
    conversation: Conversation
    completion: str
    passed: bool


def judge(
    task: Task,
    engine: Engine,
    *,
    rank: int = 0,
    world_size: int = 1,
    max_problems: int = -1,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    batch_size: int = 64,
) -> list[Judged]:
    """This rank's problems (index % world_size == rank) with the model's answers to them.

    Answers do not depend on ranks or batch size.
    """
    num_problems = len(task) if max_problems < 0 else min(max_problems, len(task))
    indices = list(range(rank, num_problems, world_size))
    if task.eval_type == "categorical":
        return _choose(task, engine, indices)
    judged = []
    chunk = 4 * batch_size  # conversations in memory at once, and work for a batch to refill from
    for first in range(0, len(indices), chunk):
        some = indices[first : first + chunk]
        conversations = [task[index] for index in some]
        completions = engine.complete(
            [render_for_completion(c, engine.tokenizer) for c in conversations],
            max_tokens=max_new_tokens,
            temperature=temperature,
            seed=some,
            batch_size=batch_size,
        )
        for index, conversation, one in zip(some, conversations, completions, strict=True):
            text = engine.tokenizer.decode(one.tokens)
            judged.append(Judged(index, conversation, text, task.evaluate(conversation, text)))
    return judged


@torch.inference_mode()
def _choose(task: Task, engine: Engine, indices: Sequence[int]) -> list[Judged]:
    """The likeliest of each problem's letters at the end of its prompt."""
    judged = []
    for first in range(0, len(indices), FORWARD_ROWS):
        some = indices[first : first + FORWARD_ROWS]
        conversations = [task[index] for index in some]
        logits = _last_logits(engine, conversations)
        for index, conversation, row in zip(some, conversations, logits, strict=True):
            letters: list[str] = conversation["letters"]
            ids = [engine.tokenizer.encode(letter)[0] for letter in letters]
            answer = letters[int(row[ids].argmax())]
            judged.append(Judged(index, conversation, answer, task.evaluate(conversation, answer)))
    return judged


def _last_logits(engine: Engine, conversations: Sequence[Conversation]) -> torch.Tensor:
    """(B, V) logits behind each prompt; prompts beyond the context keep their last tokens."""
    limit = engine.model.config.sequence_len
    prompts: list[list[int]] = [
        render_for_completion(conversation, engine.tokenizer)[-limit:]
        for conversation in conversations
    ]
    longest = max(map(len, prompts))
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    device = engine.model.embedding.weight.device
    logits: torch.Tensor = engine.model(padded.to(device), logits_at=last.to(device))
    return logits[:, 0]


def accuracy(judged: Sequence[Judged]) -> float:
    """Share that is right; 0 when there is nothing."""
    return sum(one.passed for one in judged) / len(judged) if judged else 0.0


def centred(value: float, baseline: float) -> float:
    """Accuracy on a scale where chance is 0: (value - baseline) / (1 - baseline)."""
    return (value - baseline) / (1 - baseline)


def sample_of(judged: Sequence[Judged], limit: int) -> list[dict[str, Any]]:
    """A few problems for the report, wrong ones first."""
    ordered = sorted(judged, key=lambda one: one.passed)[:limit]
    return [
        {
            "prompt": str(one.conversation["messages"][-2]["content"]),
            "answer": one.completion + ("" if one.passed else "  (wrong)"),
        }
        for one in ordered
    ]
