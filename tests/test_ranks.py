"""Ten steps of every stage: equal weights and gradient norms for any ranks and micro-batch size.

In float64, because AdamW and Muon divide small gradients by their size, which amplifies the
rounding of float32 up to a thousand times.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from nanochat.chat import Conversation
from nanochat.data import chat_batches
from nanochat.data.batch import Batch
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.engine import Completion
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import all_reduce_sum
from nanochat.training import rollout, trainer
from nanochat.training.param_groups import build_optimizers
from nanochat.training.rollout import Scored
from nanochat.training.sampled_softmax import SampledSoftmax
from nanochat.training.schedule import Schedule
from tests.ranks import run_in_ranks
from tests.small_model import small_tokenizer

STAGES = ("base", "mid", "sft", "rl")
NUM_STEPS, ROWS, CONTEXT = 10, 8, 32  # three ranks have 3, 3 and 2 rows
NEAR = 1e-5

Weights = dict[str, torch.Tensor]


def conversations() -> list[Conversation]:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    return [
        {
            "messages": [
                turn("user", f"who is {i}?"),
                turn("assistant", f"the fox {i}" * (i % 3 + 1)),
            ]
        }
        for i in range(20)
    ]


def scored_rows(step: int) -> list[Scored]:
    """The answers of all ranks in one step, of several lengths, with some forced tokens."""
    rng = random.Random(step)
    rows = []
    for _ in range(ROWS):
        tokens = [rng.randrange(400) for _ in range(rng.randint(1, 16))]
        mask = [int(rng.random() < 0.8) for _ in tokens]
        prompt = [rng.randrange(400) for _ in range(rng.randint(1, 12))]
        rows.append(Scored(prompt, Completion(tokens, mask, "stop"), 0.0, rng.uniform(-1, 1)))
    return rows


def batches(stage: str, rank: int, world_size: int) -> Iterator[Batch]:
    """The rank's share of each step."""
    placement = {"rank": rank, "world_size": world_size}
    shape = {"rows": ROWS, "sequence_len": CONTEXT, **placement}
    if stage == "base":
        texts = [f"{i} foxes and {i * i} birds went to the lake. " * (1 + i % 4) for i in range(60)]
        yield from tokenizing_distributed_data_loader(
            texts, small_tokenizer(), num_steps=NUM_STEPS, num_threads=1, **shape
        )
    elif stage == "mid":
        yield from chat_batches.packed_conversations(
            conversations(), small_tokenizer(), num_steps=NUM_STEPS, seed=1, **shape
        )
    elif stage == "sft":
        yield from chat_batches.masked_conversations(
            conversations(), small_tokenizer(), num_epochs=4, seed=1, **shape
        )
    else:
        for step in range(NUM_STEPS):
            share = scored_rows(step)[rank::world_size]
            yield rollout.to_batch(
                share, sequence_len=CONTEXT, world_size=world_size, step=step, num_steps=NUM_STEPS
            )


def trained(stage: str, micro_batch: int, rank: int = 0, world_size: int = 1) -> Weights:
    """The weights after ten steps on this rank's share, and the gradient norm of each step."""
    vocab_size = small_tokenizer().get_vocab_size()
    config = GPTConfig(
        sequence_len=CONTEXT, vocab_size=vocab_size, n_layer=3, n_head=2, n_kv_head=1, n_embd=32,
        value_embeddings=2, key_offset_heads=1, rotary_share=0.5, window_pattern="S",
    )  # fmt: skip
    model = GPT(config, torch.float64).double()
    model.init_weights(0)
    optimizers = build_optimizers(model, weight_decay=0.1)
    schedule, norms = Schedule(NUM_STEPS, warmup_steps=2), []
    # The softmax of pretraining is a sampled one at first.
    num_sampled = NUM_STEPS // 2 if stage == "base" else 0
    sampled = SampledSoftmax(vocab_size, 20, num_sampled, seed=0)
    for step, batch in zip(range(NUM_STEPS), batches(stage, rank, world_size), strict=True):
        weights = torch.ones(batch.targets.shape) if batch.weights is None else batch.weights
        batch = replace(batch, weights=weights.double())
        trainer.accumulate_gradients(
            model, batch, micro_batch, torch.device("cpu"),
            softmax_factors=sampled.factors(step + 1),
        )  # fmt: skip
        square = sum(float(optimizer.reduce_gradients()) for optimizer in optimizers)
        norms.append(all_reduce_sum([square])[0] ** 0.5)
        trainer.update(optimizers, schedule, step, norms[-1])
        model.zero_grad(set_to_none=True)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {**weights, "gradient norms": torch.tensor(norms)}


@cache
def on_one_rank(stage: str) -> Weights:
    """The expected result: all rows in one micro-batch on one rank."""
    return trained(stage, ROWS)


def assert_near(ours: Weights, expected: Weights) -> None:
    for name, one in expected.items():
        difference = float((ours[name] - one).abs().max())
        assert difference < NEAR, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 7])
def test_results_do_not_depend_on_the_micro_batch_size(stage: str, micro_batch: int) -> None:
    assert_near(trained(stage, micro_batch), on_one_rank(stage))


def trained_in_rank(rank: int, world_size: int) -> dict[str, Weights]:
    return {stage: trained(stage, 2, rank, world_size) for stage in STAGES}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_results_do_not_depend_on_the_number_of_ranks(tmp_path: Path, world_size: int) -> None:
    for found in run_in_ranks(trained_in_rank, world_size, tmp_path):
        for stage in STAGES:
            assert_near(found[stage], on_one_rank(stage))
