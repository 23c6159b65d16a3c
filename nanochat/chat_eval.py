"""Evaluate an engine on a chat task: generated answers are graded, choices are compared by logits.

Results depend neither on how problems are split between ranks nor on batch sizes.

# B problems  V vocab
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from nanochat.chat import (
    Conversation,
    decode_answer,
    render_for_completion,
    text_of,
    with_prefix_space,
)  # fmt: skip
from nanochat.engine import Engine

CHUNK_BATCHES = 4  # conversations in memory at a time: finished rows of a batch can be refilled
ANSWER_SHARE = 4  # a prompt that is too long leaves 1 / 4 of the context to the answer
SAMPLES_WRONG, SAMPLES_RIGHT = 2, 1  # of each task, for the report
MAX_GRADING_THREADS = 16  # a program of HumanEval may take seconds
Z95 = 1.959964  # standard errors on either side of an estimate: an interval of 95 %


class Task(Protocol):
    """What evaluation needs from a task; `tasks` implements it, which nanochat never imports."""

    eval_type: Literal["generative", "categorical"]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the completion is right; called from several threads."""


@dataclass(frozen=True)
class Answered:
    """A problem with the model's answers. Lines of the files for inspection hold these names."""

    index: int
    prompt: str  # as the model saw it, with special tokens
    expected: str
    answers: tuple[str, ...]
    verdicts: tuple[bool, ...]  # of each answer
    was_cut: bool  # the prompt is longer than the context: the model saw its end


# ---- scores


@dataclass(frozen=True)
class Estimate:
    """A score measured on a sample of problems, with its 95 % interval."""

    value: float
    error: float  # standard error
    low: float
    high: float


def proportion(value: float, num_problems: int, error: float | None = None) -> Estimate:
    """The estimate of a share of problems; `error` is binomial unless given.

    The interval is Wilson's: with 0 of 164 right it is not empty, unlike value +- 1.96 errors.
    """
    n = max(1, num_problems)
    error = math.sqrt(value * (1 - value) / n) if error is None else error
    center = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    reach = Z95 * math.sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return Estimate(value, error, max(0.0, center - reach), min(1.0, center + reach))


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The unbiased estimate that one of k answers is right (arXiv 2107.03374, equation 1)."""
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


@dataclass(frozen=True)
class Tally:
    """How many problems were solved, with samples. Sections of the report hold these names."""

    num_passed: int = 0  # problems with a right answer
    num_total: int = 0
    num_cut: int = 0  # prompts longer than the context: the model saw their end
    histogram: Sequence[int] = ()  # number of problems with 0, 1, ... num_samples right answers
    samples: Sequence[dict[str, Any]] = ()  # {"index", "prompt", "answer", "passed"}, wrong first

    @property
    def num_samples(self) -> int:
        """Answers to each problem."""
        return max(1, len(self.histogram) - 1)

    @property
    def accuracy(self) -> Estimate:
        """The share of problems with a right answer."""
        return proportion(self.num_passed / max(1, self.num_total), self.num_total)

    def pass_at(self, k: int) -> Estimate:
        """The mean of `pass_at_k` over problems, 1 <= k <= num_samples, and its standard error."""
        values = [pass_at_k(self.num_samples, right, k) for right in range(len(self.histogram))]
        n = max(1, self.num_total)
        mean = sum(count * v for count, v in zip(self.histogram, values, strict=True)) / n
        squares = (count * (v - mean) ** 2 for count, v in zip(self.histogram, values, strict=True))
        return proportion(mean, n, error=math.sqrt(sum(squares)) / n)


def tally(answered: Sequence[Answered]) -> Tally:
    """The counts of a task, from all its problems in any order."""
    ordered = sorted(answered, key=lambda one: one.index)
    samples = [
        {"index": one.index, "prompt": _question(one.prompt), "answer": one.answers[0],
         "passed": any(one.verdicts)}
        for one in ordered
    ]  # fmt: skip
    wrong = [sample for sample in samples if not sample["passed"]][:SAMPLES_WRONG]
    right = [sample for sample in samples if sample["passed"]][:SAMPLES_RIGHT]
    counts = Counter(sum(one.verdicts) for one in ordered)
    num_samples = len(ordered[0].verdicts) if ordered else -1
    return Tally(
        num_passed=sum(any(one.verdicts) for one in ordered),
        num_total=len(ordered),
        num_cut=sum(one.was_cut for one in ordered),
        histogram=tuple(counts[right] for right in range(num_samples + 1)),
        samples=(*wrong, *right),
    )


def _question(prompt: str) -> str:
    """The user's last message: a conversation may have several turns."""
    last = prompt.rpartition("<|user_start|>")[2]
    return last.removesuffix("<|assistant_start|>").removesuffix("<|user_end|>")


# ---- answers


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
) -> list[Answered]:
    """The problems at `indices` with `num_samples` answers each; a choice has one answer."""
    limit = engine.model.config.sequence_len
    is_choice = task.eval_type == "categorical"
    if is_choice:
        num_samples = 1  # nothing is sampled
    else:
        limit -= min(max_new_tokens, max(1, limit // ANSWER_SHARE))
    answered: list[Answered] = []
    chunk_size = CHUNK_BATCHES * batch_size
    with ThreadPoolExecutor(min(MAX_GRADING_THREADS, os.cpu_count() or 1), "grading") as graders:
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
                answers = [decode_answer(one.tokens, engine.tokenizer) for one in completions]
            repeated = [c for c in conversations for _ in range(num_samples)]
            verdicts = list(graders.map(task.evaluate, repeated, answers))
            for i, index in enumerate(chunk):
                own = slice(i * num_samples, (i + 1) * num_samples)
                answered.append(
                    Answered(
                        index, engine.tokenizer.decode(fitting[i]), _expected(conversations[i]),
                        tuple(answers[own]), tuple(verdicts[own]), len(prompts[i]) > limit,
                    )
                )  # fmt: skip
            on_progress(first + len(chunk))
    return answered


def _expected(conversation: Conversation) -> str:
    """The answer of a problem, or the text of its reference solution."""
    return str(conversation.get("answer", text_of(conversation["messages"][-1]["content"])))


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
            # As after <|assistant_start|>: without a space before it, usually.
            texts = [with_prefix_space(letter, engine.tokenizer) for letter in letters[i]]
            ids = [engine.tokenizer.encode(text)[0] for text in texts]
            answers[i] = letters[i][int(row[ids].argmax())]
    return answers
