"""Reinforcement: sample answers, score them, and hand the loop batches weighted by advantage.

The method is REINFORCE with the group's mean as baseline, on-policy, on sampled tokens only
(GRPO of arXiv 2402.03300 without its clipping, its trust region and its division by the
standard deviation; normalised over tokens as in DAPO, arXiv 2503.14476).
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nanochat.chat import render_for_completion
from nanochat.data.batch import Batch
from nanochat.engine import Completion, Engine
from nanochat.errors import UserError
from nanochat.runtime import all_reduce_sum, derive_seed, world_size
from nanochat.tokenizer import RustBPETokenizer

logger = logging.getLogger(__name__)


class ScoredTask(Protocol):
    """What reinforcement asks of a task."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def reward(self, conversation: dict[str, Any], completion: str) -> float: ...


@dataclass(frozen=True)
class RolloutPlan:
    """How answers are drawn."""

    prompts_per_step: int
    """Over all ranks."""
    num_samples: int
    """Answers to each prompt; their mean reward is the baseline."""
    max_new_tokens: int
    temperature: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Scored:
    """One answer to one prompt."""

    prompt: list[int]
    completion: Completion
    reward: float
    advantage: float


def sample_and_score(
    engine: Engine,
    tokenizer: RustBPETokenizer,
    task: ScoredTask,
    indices: list[int],
    plan: RolloutPlan,
    step: int,
) -> list[Scored]:
    """`num_samples` answers to each conversation of `indices`, with advantages."""
    conversations = [task[index] for index in indices]
    prompts = [render_for_completion(conversation, tokenizer) for conversation in conversations]
    completions = engine.complete(
        prompts,
        max_tokens=plan.max_new_tokens,
        temperature=plan.temperature,
        top_k=plan.top_k,
        seed=[derive_seed(plan.seed, "rollout", step, index) for index in indices],
        num_samples=plan.num_samples,
    )
    scored: list[Scored] = []
    for number, (conversation, prompt) in enumerate(zip(conversations, prompts, strict=True)):
        first = number * plan.num_samples
        group = completions[first : first + plan.num_samples]
        rewards = [task.reward(conversation, tokenizer.decode(one.tokens)) for one in group]
        baseline = sum(rewards) / len(rewards)
        for one, reward in zip(group, rewards, strict=True):
            scored.append(Scored(prompt, one, reward, reward - baseline))
    return scored


def to_batch(scored: list[Scored], *, sequence_len: int, step: int, num_steps: int) -> Batch:
    """One row an answer, of at most `sequence_len` targets: the sampled tokens and the stop token.

    Forced tokens (tool output) and the prompt are no targets. Every rank calls it, since the
    norm counts the sampled targets of all ranks.
    """
    rows = [(one.prompt + one.completion.tokens) for one in scored]
    length = -(-max(len(row) for row in rows) // 32) * 32  # few shapes, few allocations
    length = min(length, sequence_len + 1)  # a context need not be a multiple of anything
    inputs = torch.zeros(len(rows), length - 1, dtype=torch.int64)
    targets = torch.full((len(rows), length - 1), -1, dtype=torch.int64)
    weights = torch.zeros(len(rows), length - 1)
    for i, (row, one) in enumerate(zip(rows, scored, strict=True)):
        tokens = torch.tensor(row)
        sampled = torch.tensor([0] * len(one.prompt) + one.completion.mask, dtype=torch.bool)
        inputs[i, : len(row) - 1] = tokens[:-1]
        targets[i, : len(row) - 1] = torch.where(sampled, tokens, -1)[1:]
        weights[i] = one.advantage
    num_targets = int((targets >= 0).sum())
    (total,) = all_reduce_sum([float(num_targets)])
    return Batch(
        inputs=inputs,
        targets=targets,
        weights=weights,
        norm=max(1.0, total / world_size()),
        progress=(step + 1) / num_steps,
        resume={"step": step + 1},
    )


def prompts_that_fit(task: ScoredTask, tokenizer: RustBPETokenizer, context: int) -> list[int]:
    """Indices of the conversations whose prompt leaves room for an answer.

    Raises UserError when none does.
    """
    lengths = [len(render_for_completion(task[i], tokenizer)) for i in range(len(task))]
    fitting = [i for i, length in enumerate(lengths) if length < context]
    if not fitting:
        raise UserError(
            f"none of {len(task)} prompts fits the model's context of {context} tokens, the"
            f" shortest has {min(lengths, default=0)}; train with a longer --max_seq_len"
        )
    return fitting


def rollout_batches(
    engine: Engine,
    tokenizer: RustBPETokenizer,
    task: ScoredTask,
    plan: RolloutPlan,
    *,
    num_steps: int,
    rank: int,
    first_step: int = 0,
    observe: Callable[[float, float], object] = lambda mean_reward, mean_length: None,
) -> Iterator[Batch]:
    """On-policy batches for the steps first_step ... num_steps; `observe` gets what was seen.

    Step s takes prompts s * P ... of those that fit, dealt out over the ranks; P is
    prompts_per_step.
    """
    sequence_len = engine.model.config.sequence_len
    fitting = prompts_that_fit(task, tokenizer, sequence_len)
    if len(fitting) < len(task) and rank == 0:
        left_out = len(task) - len(fitting)
        logger.info("%d of %d prompts do not fit the context and are left out", left_out, len(task))
    for step in range(first_step, num_steps):
        first = step * plan.prompts_per_step
        prompts = range(first + rank, first + plan.prompts_per_step, world_size())
        indices = [fitting[number % len(fitting)] for number in prompts]
        scored = sample_and_score(engine, tokenizer, task, indices, plan, step)
        reward, length, count = all_reduce_sum(
            [
                sum(one.reward for one in scored),
                float(sum(sum(one.completion.mask) for one in scored)),
                float(len(scored)),
            ]
        )
        observe(reward / count, length / count)
        yield to_batch(scored, sequence_len=sequence_len, step=step, num_steps=num_steps)
