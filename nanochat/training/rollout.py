"""Reinforcement learning: sample answers, score them, and batch them weighted by advantage.

REINFORCE with the group's mean reward as baseline, on-policy, on sampled tokens only: GRPO (arXiv
2402.03300) without clipping, trust region and division by the standard deviation, normalized over
tokens as in DAPO (arXiv 2503.14476). A step in which no group has rewards that differ updates
nothing: Muon would follow its momentum, as far as with a signal.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nanochat.chat import Conversation, Tokenizer, decode_answer, render_for_completion
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
        rewards = [task.reward(conversation, decode_answer(c.tokens, tokenizer)) for c in group]
        baseline = sum(rewards) / len(rewards)  # lower variance than none, without a critic
        scored += [Scored(prompt, c, r, r - baseline) for c, r in zip(group, rewards, strict=True)]
    return scored


def to_batch(
    scored: list[Scored], *, sequence_len: int, world_size: int, step: int, num_steps: int,
    num_skipped: int = 0, entropy: tuple[float, int] = (0.0, 0),
) -> Batch:  # fmt: skip
    """One row per answer with an advantage; targets are the sampled tokens and the stop token.

    Forced tokens (tool output) and the prompt are not targets. Collective: the norm counts the
    sampled tokens of all ranks, those of answers without advantage as well, and the metrics are
    means over them. scored: may be empty, where there are more ranks than prompts. num_skipped:
    earlier steps without a signal. entropy: this rank's sum in nats and its number of tokens.
    """
    rows = [  # without an advantage a row has no gradient, so that computing it is a waste
        (a.prompt + a.completion.tokens, [0] * len(a.prompt) + a.completion.mask)
        for a in scored if a.advantage
    ]  # fmt: skip
    longest = max((len(ids) for ids, _ in rows), default=1)
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP - 1
    length = min(length, sequence_len)  # the model refuses rows beyond its context
    inputs, targets = padded_rows(rows, num_rows=max(1, len(rows)), length=length)
    advantages = torch.tensor([[a.advantage] for a in scored if a.advantage] or [[0.0]])
    sums = [sum(a.reward for a in scored), sum(sum(a.completion.mask) for a in scored), len(scored)]
    sums += [sum(a.completion.finish_reason == "stop" for a in scored), len(rows), *entropy]
    reward, num_sampled, num_answers, num_ended, num_rows, nats, num_tokens = all_reduce_sum(
        [float(value) for value in sums]
    )
    num_skipped, num_answers = num_skipped + (num_rows == 0), max(1.0, num_answers)
    return Batch(
        inputs=inputs,
        targets=targets,
        weights=advantages.repeat(1, length),
        norm=max(1.0, num_sampled / world_size),
        progress=(step + 1) / num_steps,
        resume={"step": step + 1, "skipped": num_skipped},
        metrics={
            "reward": reward / num_answers,
            "answer_tokens": num_sampled / num_answers,
            "answers_ended": num_ended / num_answers,  # the others were cut off
            "answers_with_signal": num_rows / num_answers,
            "skipped_steps": num_skipped,
            "entropy": nats / max(1.0, num_tokens),
        },
        has_signal=num_rows > 0,
    )


@torch.inference_mode()
def entropy_of(engine: Engine, answers: list[Scored]) -> tuple[float, int]:
    """Entropy of the model's distribution at each sampled token, in nats: the sum, and how many."""
    device, total, count = engine.model.embedding.weight.device, 0.0, 0
    for answer in answers:
        ids = torch.tensor(answer.prompt + answer.completion.tokens, device=device)
        is_sampled = torch.tensor(answer.completion.mask, dtype=torch.bool, device=device)
        places = is_sampled.nonzero().squeeze(1) + len(answer.prompt) - 1  # what predicts them
        logprobs = engine.model(ids[None, :-1], logits_at=places[None])[0].log_softmax(dim=-1)
        total -= float((logprobs.exp() * logprobs).sum())
        count += len(places)
    return total, count


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
    world_size-th of them, possibly none.  sampling: see `sample_and_score`.
    """
    sequence_len = engine.model.config.sequence_len
    fitting = prompts_that_fit(task, engine.tokenizer, sequence_len)
    if len(fitting) < len(task) and rank == 0:
        num_omitted = len(task) - len(fitting)
        logger.info("%d of %d prompts do not fit the context: omitted", num_omitted, len(task))
    state = {"step": 0, "skipped": 0} | (resume or {})
    for step in range(state["step"], num_steps):
        first = step * prompts_per_step
        numbers = range(first + rank, first + prompts_per_step, world_size)
        indices = [fitting[number % len(fitting)] for number in numbers]
        scored = sample_and_score(engine, task, indices, step=step, **sampling)
        # Of one answer per prompt: enough for a mean, at a fraction of the cost of sampling.
        entropy = entropy_of(engine, scored[:: sampling["num_samples"]])
        batch = to_batch(
            scored, sequence_len=sequence_len, world_size=world_size, step=step,
            num_steps=num_steps, num_skipped=state["skipped"], entropy=entropy,
        )  # fmt: skip
        state = batch.resume
        if step + 1 == num_steps and state["skipped"] and rank == 0:
            logger.info(
                "%d of %d steps were skipped: all answers to a prompt had equal rewards",
                state["skipped"], num_steps,
            )  # fmt: skip
        yield batch
