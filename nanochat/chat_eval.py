"""Evaluate an engine on a chat task: generated answers are graded, choices are compared by logits.

Problem i belongs to rank i % world_size. Results depend neither on ranks nor on batch sizes.

# B problems  V vocab
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from nanochat.chat import Conversation, render_for_completion, text_of
from nanochat.engine import Engine

CHUNK_BATCHES = 4  # conversations in memory at a time: finished rows of a batch can be refilled
ANSWER_SHARE = 4  # a prompt that is too long leaves 1 / 4 of the context to the answer
SAMPLES_WRONG, SAMPLES_RIGHT = 2, 1  # of each task, for the report


class Task(Protocol):
    """What evaluation needs from a task; `tasks` implements it, which nanochat never imports."""

    eval_type: Literal["generative", "categorical"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...

    def evaluate(self, conversation: Conversation, completion: str) -> bool: ...


@dataclass(frozen=True)
class Tally:
    """How many problems were solved, with samples. Sections of the report hold these names."""

    num_passed: int = 0
    num_total: int = 0
    num_passed_unseen: int = 0  # of unseen paraphrases, where a task marks them
    num_unseen: int = 0
    num_cut: int = 0  # prompts longer than the context: the model saw their end
    samples: tuple[dict[str, Any], ...] = ()  # {"index", "prompt", "answer", "passed"}, wrong first

    @property
    def accuracy(self) -> float:
        """Share of problems solved; 0 if there are none."""
        return self.num_passed / self.num_total if self.num_total else 0.0


def merged(tallies: Sequence[Tally]) -> Tally:
    """The sum of several shares of one task, such as those of all ranks."""
    samples = sorted((s for tally in tallies for s in tally.samples), key=lambda s: s["index"])
    wrong = [sample for sample in samples if not sample["passed"]][:SAMPLES_WRONG]
    right = [sample for sample in samples if sample["passed"]][:SAMPLES_RIGHT]
    return Tally(
        num_passed=sum(tally.num_passed for tally in tallies),
        num_total=sum(tally.num_total for tally in tallies),
        num_passed_unseen=sum(tally.num_passed_unseen for tally in tallies),
        num_unseen=sum(tally.num_unseen for tally in tallies),
        num_cut=sum(tally.num_cut for tally in tallies),
        samples=(*wrong, *right),
    )


def _tally(index: int, conversation: Conversation, answer: str, passed: bool, cut: bool) -> Tally:
    """The tally of a single problem."""
    # The last question: a conversation may have several turns.
    user = next(m for m in reversed(conversation["messages"]) if m["role"] == "user")
    prompt = text_of(user["content"])
    sample = {"index": index, "prompt": prompt, "answer": answer, "passed": passed}
    is_unseen = bool(conversation.get("unseen_wording"))
    return Tally(passed, 1, passed and is_unseen, is_unseen, cut, (sample,))


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
    """This rank's share of a task, to be combined by `merged`.

    A generative problem is solved if one of `num_samples` answers is right.
    """
    num_problems = len(task) if max_problems < 0 else min(max_problems, len(task))
    indices = range(rank, num_problems, world_size)
    tally, chunk_size = Tally(), CHUNK_BATCHES * batch_size
    for first in range(0, len(indices), chunk_size):
        chunk = indices[first : first + chunk_size]
        if task.eval_type == "categorical":
            tallies = _choose(task, engine, chunk, batch_size)
        else:
            tallies = _generate(
                task, engine, chunk,
                max_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                num_samples=num_samples, batch_size=batch_size,
            )  # fmt: skip
        tally = merged([tally, *tallies])
        on_progress(first + len(chunk))
    return tally


def _generate(
    task: Task, engine: Engine, indices: Sequence[int], num_samples: int, **options: Any
) -> list[Tally]:
    """Answers by the engine; each problem is sampled with its index as the seed."""
    conversations = [task[index] for index in indices]
    limit = engine.model.config.sequence_len
    room = min(options["max_tokens"], max(1, limit // ANSWER_SHARE))
    prompts, was_cut = _prompts(engine, conversations, limit - room)
    completions = engine.complete(prompts, seed=list(indices), num_samples=num_samples, **options)
    answers = [engine.tokenizer.decode(completion.tokens) for completion in completions]
    tallies = []
    for i, (index, conversation) in enumerate(zip(indices, conversations, strict=True)):
        samples = answers[i * num_samples : (i + 1) * num_samples]
        passed = any(task.evaluate(conversation, answer) for answer in samples)
        tallies.append(_tally(index, conversation, samples[0], passed, was_cut[i]))
    return tallies


@torch.inference_mode()
def _choose(task: Task, engine: Engine, indices: Sequence[int], batch_size: int) -> list[Tally]:
    """The most likely of each problem's own letters after its prompt."""
    conversations, tokenizer = [task[index] for index in indices], engine.tokenizer
    device = engine.model.embedding.weight.device
    prompts, was_cut = _prompts(engine, conversations, engine.model.config.sequence_len)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths: less pad
    answers: dict[int, str] = {}
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        # Padding at the end does not reach earlier positions: attention is causal.
        tokens = pad_sequence([torch.tensor(prompts[i]) for i in batch], batch_first=True)
        last = torch.tensor([len(prompts[i]) - 1 for i in batch])
        logits = engine.model(tokens.to(device), logits_at=last.to(device))  # (B, 1, V)
        for i, row in zip(batch, logits[:, 0], strict=True):
            letters: list[str] = conversations[i]["letters"]
            # Without a space before it, as after <|assistant_start|>.
            ids = [tokenizer.encode(letter)[0] for letter in letters]
            answers[i] = letters[int(row[ids].argmax())]
    return [
        _tally(index, c, answers[i], task.evaluate(c, answers[i]), was_cut[i])
        for i, (index, c) in enumerate(zip(indices, conversations, strict=True))
    ]


def _prompts(
    engine: Engine, conversations: Sequence[Conversation], limit: int
) -> tuple[list[list[int]], list[bool]]:
    """Ids of each prompt, of long ones the last `limit`; and which prompts were cut."""
    prompts = [render_for_completion(c, engine.tokenizer) for c in conversations]
    return [prompt[-limit:] for prompt in prompts], [len(prompt) > limit for prompt in prompts]
