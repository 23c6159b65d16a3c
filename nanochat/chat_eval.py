"""Run a task against an engine: answers are generated and judged, or chosen by their letter.

Problem i is rank i % W's. Results depend neither on ranks nor on batch sizes.

# B problems  V vocab
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from nanochat.chat import Conversation, render_for_completion, text_of
from nanochat.engine import Engine
from nanochat.inference.prefill import padded

CHUNK_BATCHES = 4  # conversations in memory at once, so that a batch has problems to refill from
ANSWER_SHARE = 4  # a prompt that is too long leaves this part (1 / 4) of the context to the answer
SAMPLES_WRONG, SAMPLES_RIGHT = 2, 1  # of each task, for the report


class Task(Protocol):
    """What evaluation asks of a task."""

    eval_type: Literal["generative", "categorical"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...

    def evaluate(self, conversation: Conversation, completion: str) -> bool: ...


@dataclass(frozen=True)
class Judged:
    """One problem, what the model answered first, and whether one of its answers is right."""

    index: int
    conversation: Conversation
    completion: str
    passed: bool
    was_cut: bool
    """The prompt was too long: the model has seen its end."""


@dataclass(frozen=True)
class Tally:
    """How many problems were solved, and a few of them to look at."""

    num_passed: int = 0
    num_total: int = 0
    num_passed_unseen: int = 0
    """Of those worded as never in training, where a task says so."""
    num_unseen: int = 0
    num_cut: int = 0
    """Prompts longer than the context, of which the model saw the end."""
    samples: tuple[dict[str, Any], ...] = ()
    """{"index", "prompt", "answer", "passed"}, wrong and right ones, in the order of the task."""

    @property
    def accuracy(self) -> float:
        """Share that is right; 0 when there is nothing."""
        return self.num_passed / self.num_total if self.num_total else 0.0


def merged(tallies: Sequence[Tally]) -> Tally:
    """The sum of several shares of one task, such as those of all ranks."""
    samples = [sample for one in tallies for sample in one.samples]
    return Tally(
        num_passed=sum(one.num_passed for one in tallies),
        num_total=sum(one.num_total for one in tallies),
        num_passed_unseen=sum(one.num_passed_unseen for one in tallies),
        num_unseen=sum(one.num_unseen for one in tallies),
        num_cut=sum(one.num_cut for one in tallies),
        samples=_first_samples(sorted(samples, key=lambda sample: sample["index"])),
    )


def _first_samples(samples: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    wrong = [sample for sample in samples if not sample["passed"]][:SAMPLES_WRONG]
    right = [sample for sample in samples if sample["passed"]][:SAMPLES_RIGHT]
    return (*wrong, *right)


def tally_of(one: Judged) -> Tally:
    """The tally of a single problem."""
    asked = next(m for m in reversed(one.conversation["messages"]) if m["role"] == "user")
    sample = {
        "index": one.index,
        "prompt": text_of(asked["content"]),
        "answer": one.completion,
        "passed": one.passed,
    }
    is_unseen = bool(one.conversation.get("unseen_wording"))
    return Tally(one.passed, 1, one.passed and is_unseen, is_unseen, one.was_cut, (sample,))


def evaluate_task(
    task: Task,
    engine: Engine,
    *,
    rank: int = 0,
    world_size: int = 1,
    max_problems: int = -1,
    num_samples: int = 1,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tally:
    """This rank's share of a task; `merged` makes one of all ranks'.

    A generative problem is solved when one of `num_samples` answers is right. on_progress is told
    how many problems are done.
    """
    num_problems = len(task) if max_problems < 0 else min(max_problems, len(task))
    indices = list(range(rank, num_problems, world_size))
    shares, chunk = [Tally()], CHUNK_BATCHES * batch_size
    for first in range(0, len(indices), chunk):
        some = indices[first : first + chunk]
        if task.eval_type == "categorical":
            judged = _choose(task, engine, some, batch_size)
        else:
            judged = _answer(
                task, engine, some,
                max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                num_samples=num_samples, batch_size=batch_size,
            )  # fmt: skip
        shares.append(merged([tally_of(one) for one in judged]))
        on_progress(first + len(some))
    return merged(shares)


def _answer(task: Task, engine: Engine, indices: Sequence[int], **how: Any) -> list[Judged]:
    """Problems answered by the engine; each draws from a seed of its own."""
    conversations = [task[index] for index in indices]
    limit = engine.model.config.sequence_len
    room = min(how["max_tokens"], max(1, limit // ANSWER_SHARE))
    prompts, was_cut = _prompts(engine, conversations, limit - room)
    completions = engine.complete(prompts, seed=list(indices), **how)
    judged, num_samples = [], how["num_samples"]
    for place, (index, conversation) in enumerate(zip(indices, conversations, strict=True)):
        own = completions[place * num_samples : (place + 1) * num_samples]
        texts = [engine.tokenizer.decode(one.tokens) for one in own]
        passed = any(task.evaluate(conversation, text) for text in texts)
        judged.append(Judged(index, conversation, texts[0], passed, was_cut[place]))
    return judged


@torch.inference_mode()
def _choose(task: Task, engine: Engine, indices: Sequence[int], batch_size: int) -> list[Judged]:
    """The top_logprobs of each problem's letters at the end of its prompt."""
    conversations = [task[index] for index in indices]
    prompts, was_cut = _prompts(engine, conversations, engine.model.config.sequence_len)
    # Alike lengths share a batch, so that little is padding.
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers: dict[int, str] = {}
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        logits = _last_logits(engine, [prompts[place] for place in places])
        for place, row in zip(places, logits, strict=True):
            letters: list[str] = conversations[place]["letters"]
            ids = [engine.tokenizer.encode(letter)[0] for letter in letters]
            answers[place] = letters[int(row[ids].argmax())]
    return [
        Judged(index, c, answers[place], task.evaluate(c, answers[place]), was_cut[place])
        for place, (index, c) in enumerate(zip(indices, conversations, strict=True))
    ]


def _prompts(
    engine: Engine, conversations: Sequence[Conversation], limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Ids of each prompt, of one above `limit` its last tokens, and which ones that were."""
    prompts = [render_for_completion(one, engine.tokenizer) for one in conversations]
    return [prompt[-limit:] for prompt in prompts], [len(prompt) > limit for prompt in prompts]


def _last_logits(engine: Engine, prompts: Sequence[list[int]]) -> torch.Tensor:
    """(B, V) logits behind each prompt."""
    last = torch.tensor([len(prompt) - 1 for prompt in prompts])
    device = engine.model.embedding.weight.device
    logits: torch.Tensor = engine.model(padded(prompts).to(device), logits_at=last.to(device))
    return logits[:, 0]
