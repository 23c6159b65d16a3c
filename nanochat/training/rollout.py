"""Reinforcement learning: sample answers, score them, and batch them weighted by advantage.

REINFORCE with the group's mean reward as baseline, on-policy, on sampled tokens only: GRPO (arXiv
2402.03300) without clipping, trust region and division by the standard deviation, normalized over
tokens as in DAPO (arXiv 2503.14476).
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nanochat.chat import Conversation, Tokenizer, render_for_completion
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import LENGTH_STEP, Conversations, padded_rows
from nanochat.engine import Completion, Engine
from nanochat.errors import UserError
from nanochat.runtime import all_reduce_sum, derive_seed

logger = logging.getLogger(__name__)


class ScoredTask(Conversations, Protocol):
    """What reinforcement learning needs of a task."""

    def reward(self, conversation: Conversation, completion: str) -> float: ...


@dataclass(frozen=True)
class Scored:
    """One answer to one prompt."""

    prompt: list[int]
    completion: Completion
    reward: float
    advantage: float


def sample_and_score(
    engine: Engine,
    task: ScoredTask,
    indices: list[int],
    *,
    num_samples: int,
    seed: int,
    step: int,
    **sampling: Any,
) -> list[Scored]:
    """`num_samples` answers to each prompt, with advantages. sampling: see `Engine.complete`."""
    tokenizer = engine.tokenizer
    conversations = [task[index] for index in indices]
    prompts = [render_for_completion(conversation, tokenizer) for conversation in conversations]
    # Seeded by prompt, not by its place in the batch: independent of the number of ranks.
    seeds = [derive_seed(seed, "rollout", step, index) for index in indices]
    completions = engine.complete(prompts, seed=seeds, num_samples=num_samples, **sampling)
    scored: list[Scored] = []
    for number, (conversation, prompt) in enumerate(zip(conversations, prompts, strict=True)):
        group = completions[number * num_samples : (number + 1) * num_samples]
        rewards = [task.reward(conversation, tokenizer.decode(c.tokens)) for c in group]
        baseline = sum(rewards) / len(rewards)  # lower variance than none, without a critic
        scored += [Scored(prompt, c, r, r - baseline) for c, r in zip(group, rewards, strict=True)]
    return scored


def to_batch(
    scored: list[Scored], *, sequence_len: int, world_size: int, step: int, num_steps: int
) -> Batch:
    """One row per answer; targets are the sampled tokens, including the stop token.

    Forced tokens (tool output) and the prompt are not targets. Collective: the norm counts the
    targets of all ranks, and the metrics are means over them.
    """
    rows = [
        (a.prompt + a.completion.tokens, [0] * len(a.prompt) + a.completion.mask) for a in scored
    ]
    length = -(-max(len(ids) for ids, _ in rows) // LENGTH_STEP) * LENGTH_STEP - 1
    length = min(length, sequence_len)  # the model refuses rows beyond its context
    inputs, targets = padded_rows(rows, num_rows=len(rows), length=length)
    advantages = torch.tensor([[answer.advantage] for answer in scored])
    reward, num_targets, num_answers = all_reduce_sum(
        [sum(a.reward for a in scored), float((targets >= 0).sum()), float(len(scored))]
    )
    return Batch(
        inputs=inputs,
        targets=targets,
        weights=advantages.repeat(1, length),
        norm=max(1.0, num_targets / world_size),
        progress=(step + 1) / num_steps,
        resume={"step": step + 1},
        metrics={"reward": reward / num_answers, "answer_tokens": num_targets / num_answers},
    )


def prompts_that_fit(task: ScoredTask, tokenizer: Tokenizer, context: int) -> list[int]:
    """Indices of prompts that leave room for an answer. Raises UserError if none does."""
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
    task: ScoredTask,
    *,
    prompts_per_step: int,
    num_steps: int,
    rank: int,
    world_size: int,
    resume: dict[str, Any] | None = None,
    **sampling: Any,
) -> Iterator[Batch]:
    """On-policy batches from the start or a loader state; sampled when the loop asks for them.

    Step s takes the prompts from s * prompts_per_step on, of those that fit; rank r answers every
    world_size-th of them.  sampling: see `sample_and_score`.
    """
    sequence_len = engine.model.config.sequence_len
    fitting = prompts_that_fit(task, engine.tokenizer, sequence_len)
    if len(fitting) < len(task) and rank == 0:
        num_omitted = len(task) - len(fitting)
        logger.info("%d of %d prompts do not fit the context: omitted", num_omitted, len(task))
    for step in range(resume["step"] if resume else 0, num_steps):
        first = step * prompts_per_step
        numbers = range(first + rank, first + prompts_per_step, world_size)
        indices = [fitting[number % len(fitting)] for number in numbers]
        scored = sample_and_score(engine, task, indices, step=step, **sampling)
        yield to_batch(
            scored, sequence_len=sequence_len, world_size=world_size, step=step, num_steps=num_steps
        )
