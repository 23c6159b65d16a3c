import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from nanochat.chat import render_for_completion
from nanochat.data.batch import Batch
from nanochat.engine import Completion, Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.training import rollout, trainer
from nanochat.training.rollout import Scored
from tests.small_model import ScriptedModel, small_model, small_tokenizer

SAMPLING: dict[str, Any] = {
    "num_samples": 5, "max_tokens": 8, "temperature": 1.0, "top_k": 50, "seed": 3
}  # fmt: skip


class Sums:
    """Conversations with a reward given by a function of the answer."""

    def __init__(self, size: int = 10, reward: Callable[[str], float] = len) -> None:
        self.size, self.rule = size, reward

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert 0 <= index < self.size
        content = f"What is {index} + {index}{'?' * (index % 4)}"
        return {"messages": [{"role": "user", "content": content}], "index": index}

    def reward(self, conversation: dict[str, Any], completion: str) -> float:
        return float(self.rule(completion))


def scored(prompt: list[int], tokens: list[int], mask: list[int], advantage: float) -> Scored:
    completion = Completion(tokens=tokens, mask=mask, finish_reason="stop")
    return Scored(prompt, completion, reward=0.0, advantage=advantage)


def some_scored(count: int) -> list[Scored]:
    """Rows of different lengths with forced tokens in some."""
    rng = random.Random(count)
    rows = []
    for _ in range(count):
        tokens = [rng.randrange(400) for _ in range(rng.randint(1, 20))]
        mask = [int(rng.random() < 0.8) for _ in tokens]
        prompt = [rng.randrange(400) for _ in range(rng.randint(1, 12))]
        rows.append(scored(prompt, tokens, mask, rng.uniform(-1, 1)))
    return rows


# ---- batches


def batch_of(rows: list[Scored], step: int = 0, num_steps: int = 1) -> Batch:
    return rollout.to_batch(rows, sequence_len=64, world_size=1, step=step, num_steps=num_steps)


def test_only_sampled_tokens_are_targets() -> None:
    one = scored([1, 2, 3], [4, 5, 6, 7], [1, 0, 0, 1], advantage=0.5)
    batch = batch_of([one])
    row = batch.targets[0]
    assert batch.inputs[0, :6].tolist() == [1, 2, 3, 4, 5, 6]
    assert row[:6].tolist() == [-1, -1, 4, -1, -1, 7]  # the stop token 7 is trained on
    assert (row[6:] == -1).all()
    assert batch.weights is not None and (batch.weights[0] == 0.5).all()
    assert batch.norm == 2.0


def test_rows_of_several_lengths_are_padded_without_targets() -> None:
    rows = [scored([1], [2] * n, [1] * n, advantage=float(n)) for n in (1, 5, 40)]
    batch = batch_of(rows)
    assert (batch.targets >= 0).sum(dim=1).tolist() == [1, 5, 40]
    assert batch.norm == 46.0


def test_token_zero_is_a_target_like_any_other() -> None:
    batch = batch_of([scored([0], [0, 0], [1, 1], 1.0)])
    assert batch.targets[0, :2].tolist() == [0, 0]


def test_answers_of_equal_reward_are_no_signal() -> None:
    """They count for the norm and the metrics, but no row is computed for them."""
    without, other = scored([1], [2, 3], [1, 1], 0.0), scored([1], [4], [1], 0.5)
    batch = batch_of([without] * 2)
    assert not batch.has_signal and batch.metrics["skipped_steps"] == 1
    assert batch.resume == {"step": 1, "skipped": 1}
    assert all(not gradient.any() for gradient in gradients_of(small_model(), batch))
    batch = batch_of([without, other])
    assert batch.has_signal and batch.metrics["skipped_steps"] == 0
    assert len(batch.inputs) == 1 and batch.norm == 3.0
    assert batch.metrics["answers_with_signal"] == 0.5


def test_a_rank_without_prompts_has_a_row_without_targets() -> None:
    batch = batch_of([scored([1], [2], [1], 1.0)])
    empty = rollout.to_batch([], sequence_len=64, world_size=1, step=0, num_steps=1)
    assert empty.inputs.shape == empty.targets.shape == empty.weights.shape == batch.inputs.shape
    assert (empty.targets == -1).all() and not empty.has_signal


def test_the_entropy_is_that_of_the_distributions_at_sampled_tokens() -> None:
    engine, rows = Engine(small_model(), small_tokenizer()), some_scored(4)
    nats, count = 0.0, 0
    for row in rows:
        tokens = torch.tensor([row.prompt + row.completion.tokens])
        logs = engine.model(tokens)[0].detach().log_softmax(-1)
        for place, sampled in enumerate(row.completion.mask, start=len(row.prompt)):
            nats -= sampled * (logs[place - 1].exp() * logs[place - 1]).sum().item()
            count += sampled
    found, num_tokens = rollout.entropy_of(engine, rows)
    assert num_tokens == count and found == pytest.approx(nats, rel=1e-5)
    assert batch_of(rows).metrics["entropy"] == 0.0  # none was given


def test_progress_and_resume_count_steps() -> None:
    batch = batch_of([scored([1], [2], [1], 1.0)], step=2, num_steps=4)
    assert batch.progress == pytest.approx(0.75)
    assert batch.resume == {"step": 3, "skipped": 0}


def gradients_of(model: GPT, *batches: Batch) -> list[torch.Tensor]:
    """The gradient of each parameter, summed over batches."""
    model.zero_grad()
    for batch in batches:
        model(batch.inputs, batch.targets, weights=batch.weights / batch.norm).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_the_gradient_is_that_of_the_formula_row_by_row() -> None:
    model, rows = small_model(), some_scored(7)
    model.zero_grad()
    objective, num_sampled = torch.zeros(()), 0
    for row in rows:
        tokens = torch.tensor(row.prompt + row.completion.tokens)
        logs = model(tokens[None])[0].log_softmax(dim=-1)
        for place, sampled in enumerate(row.completion.mask, start=len(row.prompt)):
            objective = objective + sampled * row.advantage * logs[place - 1, tokens[place]]
            num_sampled += sampled
    (-objective / num_sampled).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    ours = gradients_of(model, batch_of(rows))
    for gradient, by_formula in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, by_formula, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_passes", [2, 3, 7])
def test_the_gradient_does_not_depend_on_how_passes_are_split(num_passes: int) -> None:
    """The number of samples need not be a multiple of anything."""
    model, rows = small_model(), some_scored(7)
    whole = batch_of(rows)
    size = -(-len(rows) // num_passes)
    assert whole.weights is not None
    parts = [
        Batch(
            inputs=whole.inputs[i : i + size], targets=whole.targets[i : i + size],
            weights=whole.weights[i : i + size], norm=whole.norm, progress=0.0, resume={},
        )
        for i in range(0, len(rows), size)
    ]  # fmt: skip
    together, apart = gradients_of(model, whole), gradients_of(small_model(), *parts)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("world_size", [2, 3])
def test_gradients_averaged_over_ranks_are_those_of_one_rank(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = small_model(), some_scored(8)
    whole = gradients_of(model, batch_of(rows))
    num_targets = float(sum(sum(row.completion.mask) for row in rows))
    monkeypatch.setattr(
        rollout, "all_reduce_sum", lambda _: [0.0, num_targets, 8.0, 8.0, 8.0, 0.0, 0.0]
    )
    shares = [
        rollout.to_batch(
            rows[rank::world_size], sequence_len=64, world_size=world_size, step=0, num_steps=1
        )
        for rank in range(world_size)
    ]
    averaged = [gradient / world_size for gradient in gradients_of(small_model(), *shares)]
    for one, other in zip(whole, averaged, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# ---- samples and advantages


def test_the_baseline_is_the_mean_reward_of_the_answers_to_a_prompt() -> None:
    engine = Engine(small_model(), small_tokenizer())
    found = rollout.sample_and_score(engine, Sums(), [4, 0, 9], step=0, **SAMPLING)
    assert len(found) == 15
    for number, index in enumerate((4, 0, 9)):
        group = found[5 * number : 5 * number + 5]
        prompt = render_for_completion(Sums()[index], small_tokenizer())
        assert all(one.prompt == prompt for one in group)
        rewards = [len(small_tokenizer().decode(one.completion.tokens)) for one in group]
        assert [one.reward for one in group] == rewards
        mean = sum(rewards) / 5
        assert [one.advantage for one in group] == pytest.approx([r - mean for r in rewards])
        assert len({tuple(one.completion.tokens) for one in group}) > 1
    assert any(one.advantage for one in found)


def test_the_sampled_stop_token_reaches_the_targets() -> None:
    tokenizer = small_tokenizer()
    end = tokenizer.encode_special("<|assistant_end|>")
    prompt = render_for_completion(Sums()[0], tokenizer)

    def next_token(seen: list[int]) -> int:
        return [7, end][len(seen) - len(prompt)]

    engine = Engine(ScriptedModel(next_token), tokenizer)  # type: ignore[arg-type]
    found = rollout.sample_and_score(
        engine, Sums(), [0], step=0, num_samples=2, seed=0, max_tokens=8, temperature=0.0
    )
    batch = batch_of([replace(one, advantage=1.0) for one in found])
    assert batch.targets[0][batch.targets[0] >= 0].tolist() == [7, end]


def test_the_output_of_a_tool_is_not_a_target() -> None:
    tokenizer = small_tokenizer()
    start, stop, end = (
        tokenizer.encode_special(f"<|{name}|>")
        for name in ("python_start", "python_end", "assistant_end")
    )
    prompt = render_for_completion(Sums()[0], tokenizer)
    call = [start, *tokenizer.encode("6*7"), stop]

    def next_token(seen: list[int]) -> int:
        place = len(seen) - len(prompt)
        return call[place] if place < len(call) else end

    engine = Engine(ScriptedModel(next_token), tokenizer)  # type: ignore[arg-type]
    found = rollout.sample_and_score(
        engine, Sums(), [0], step=0, num_samples=1, seed=0, max_tokens=20, temperature=0.0
    )
    assert "<|output_start|>42<|output_end|>" in tokenizer.decode(found[0].completion.tokens)
    batch = batch_of([replace(one, advantage=1.0) for one in found])
    assert batch.targets[0][batch.targets[0] >= 0].tolist() == [*call, end]


def test_each_step_samples_other_answers_and_a_repeated_step_the_same() -> None:
    engine = Engine(small_model(), small_tokenizer())

    def answers(step: int, indices: list[int]) -> list[list[int]]:
        found = rollout.sample_and_score(engine, Sums(), indices, step=step, **SAMPLING)
        return [one.completion.tokens for one in found]

    assert answers(0, [1, 2]) == answers(0, [1, 2]) != answers(1, [1, 2])
    assert answers(0, [2]) == answers(0, [1, 2])[5:]  # the rest of the batch does not matter


# ---- steps


def rollout_batches(engine: Engine, task: Sums | None = None, **changes: Any) -> Iterator[Batch]:
    shape = {"prompts_per_step": 6, "rank": 0, "world_size": 1}
    return rollout.rollout_batches(engine, task or Sums(), **{**shape, **SAMPLING, **changes})


@pytest.mark.parametrize("context", [33, 37, 61, 64])
def test_answers_that_fill_a_context_of_any_length_are_trained_on(context: int) -> None:
    model = small_model(sequence_len=context)
    engine = Engine(model, small_tokenizer())
    [batch] = rollout_batches(engine, num_steps=1, max_tokens=context)
    assert batch.inputs.size(1) <= context and (batch.targets >= 0).any(dim=0)[context - 2]
    loss = trainer.accumulate_gradients(model, batch, 4, torch.device("cpu"))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("world_size", [2, 3])
def test_prompts_are_split_over_ranks_and_all_answers_are_those_of_one_rank(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(small_model(), small_tokenizer())

    def rows(rank: int, world_size: int) -> list[set[tuple[int, ...]]]:
        batches = rollout_batches(engine, num_steps=3, rank=rank, world_size=world_size)
        return [
            {
                (*inputs[targets >= 0].tolist(), -1, *targets[targets >= 0].tolist())
                for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
            }
            for batch in batches
        ]

    alone = rows(0, 1)
    shares = [rows(rank, world_size) for rank in range(world_size)]
    for step in range(3):
        assert set.union(*(share[step] for share in shares)) == alone[step]


def test_a_resumed_run_continues_with_the_same_batches_and_metrics() -> None:
    engine = Engine(small_model(), small_tokenizer())
    uninterrupted = list(rollout_batches(engine, num_steps=4))
    assert len(uninterrupted) == 4 and uninterrupted[-1].progress == 1.0
    resumed = list(rollout_batches(engine, num_steps=4, resume=uninterrupted[1].resume))
    for ours, theirs in zip(resumed, uninterrupted[2:], strict=True):
        assert torch.equal(ours.inputs, theirs.inputs) and torch.equal(ours.targets, theirs.targets)
        assert ours.progress == theirs.progress and ours.metrics == theirs.metrics
    first = uninterrupted[0]
    assert first.metrics["answer_tokens"] == pytest.approx(first.norm / (6 * 5))
    assert first.metrics["reward"] > 0


def test_prompts_beyond_the_context_are_omitted_and_none_at_all_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, tokenizer = Engine(small_model(), small_tokenizer()), small_tokenizer()
    context = engine.model.config.sequence_len

    class Growing(Sums):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"messages": [{"role": "user", "content": "ab " * index * (context // 8)}]}

    caplog.set_level("INFO")
    fitting = rollout.prompts_that_fit(Growing(), tokenizer, context)
    assert fitting == list(range(len(fitting))) and 0 < len(fitting) < 10
    batches = rollout_batches(engine, Growing(), num_steps=2)
    assert len(list(batches)) == 2
    assert f"{10 - len(fitting)} of 10 prompts do not fit the context: omitted" in caplog.text
    with pytest.raises(UserError, match="none of 10 prompts fits"):
        rollout.prompts_that_fit(Growing(), tokenizer, 3)
