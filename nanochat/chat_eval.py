"""Evaluate an engine on a chat task: generated answers are graded, choices are compared by logits.

Results depend neither on how problems are split between ranks nor on batch sizes.

# B problems  V vocab
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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
        return self.num_passed / self.num_total if self.num_total else 0.0


def merged(tallies: Sequence[Tally]) -> Tally:
    """The sum of several shares of one task, such as those of all ranks."""
    samples = sorted((s for tally in tallies for s in tally.samples), key=lambda s: s["index"])
    wrong = [sample for sample in samples if not sample["passed"]][:SAMPLES_WRONG]
    right = [sample for sample in samples if sample["passed"]][:SAMPLES_RIGHT]
    counted = [field.name for field in fields(Tally) if field.name != "samples"]
    sums = {name: sum(getattr(tally, name) for tally in tallies) for name in counted}
    return Tally(**sums, samples=(*wrong, *right))


def _tally(index: int, conversation: Conversation, answer: str, passed: bool, cut: bool) -> Tally:
    # The last question: a conversation may have several turns.
    user = next(m for m in reversed(conversation["messages"]) if m["role"] == "user")
    prompt = text_of(user["content"])
    sample = {"index": index, "prompt": prompt, "answer": answer, "passed": passed}
    is_unseen = bool(conversation.get("unseen_wording"))
    return Tally(passed, 1, passed and is_unseen, is_unseen, cut, (sample,))


def evaluate_task(
    task: Task,
    engine: Engine,
    indices: Sequence[int],
    *,
    num_samples: int = 1,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int | None = None,
    batch_size: int = 64,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tally:
    """The tally of the problems at `indices`; one of `num_samples` answers must be right."""
    limit = engine.model.config.sequence_len
    is_choice = task.eval_type == "categorical"
    if is_choice:
        num_samples = 1  # nothing is sampled
    else:
        limit -= min(max_new_tokens, max(1, limit // ANSWER_SHARE))
    tally, chunk_size = Tally(), CHUNK_BATCHES * batch_size
    for first in range(0, len(indices), chunk_size):
        chunk = indices[first : first + chunk_size]
        conversations = [task[index] for index in chunk]
        prompts = [render_for_completion(c, engine.tokenizer) for c in conversations]
        fitting = [prompt[-limit:] for prompt in prompts]
        if is_choice:
            letters = [conversation["letters"] for conversation in conversations]
            answers = _choose(engine, fitting, letters, batch_size)
        else:
            completions = engine.complete(
                fitting, max_new_tokens, temperature, top_k,
                seed=list(chunk), batch_size=batch_size, num_samples=num_samples,
            )  # fmt: skip
            answers = [engine.tokenizer.decode(completion.tokens) for completion in completions]
        tallies = [tally]
        for i, (index, conversation) in enumerate(zip(chunk, conversations, strict=True)):
            samples = answers[i * num_samples : (i + 1) * num_samples]
            passed = any(task.evaluate(conversation, answer) for answer in samples)
            was_cut = len(prompts[i]) > limit
            tallies.append(_tally(index, conversation, samples[0], passed, was_cut))
        tally = merged(tallies)
        on_progress(first + len(chunk))
    return tally


@torch.inference_mode()
def _choose(
    engine: Engine, prompts: Sequence[list[int]], letters: Sequence[list[str]], batch_size: int
) -> list[str]:
    """For each prompt, the most likely of its letters to follow it."""
    device = engine.model.embedding.weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths: less pad
    answers = [""] * len(prompts)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        # Padding at the end does not reach earlier positions: attention is causal.
        tokens = pad_sequence([torch.tensor(prompts[i]) for i in batch], batch_first=True)
        last = torch.tensor([len(prompts[i]) - 1 for i in batch])
        logits = engine.model(tokens.to(device), logits_at=last.to(device))  # (B, 1, V)
        for i, row in zip(batch, logits[:, 0], strict=True):
            # Without a space before it, as after <|assistant_start|>.
            ids = [engine.tokenizer.encode(letter)[0] for letter in letters[i]]
            answers[i] = letters[i][int(row[ids].argmax())]
    return answers
