import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nanochat.chat import render_for_completion
from nanochat.data.batch import Batch
from nanochat.engine import Completion, Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.training import rollout, trainer
from nanochat.training.rollout import RolloutPlan, Scored
from tests.small_model import ScriptedModel, small_model, small_tokenizer

PLAN = RolloutPlan(
    prompts_per_step=6, num_samples=5, max_new_tokens=8, temperature=1.0, top_k=50, seed=3
)


class Sums:
    """Conversations whose answer earns what a rule says."""

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


def test_sampled_tokens_are_targets_and_nothing_else_is() -> None:
    one = scored([1, 2, 3], [4, 5, 6, 7], [1, 0, 0, 1], advantage=0.5)
    batch = rollout.to_batch([one], sequence_len=64, step=0, num_steps=4)
    row = batch.targets[0]
    assert batch.inputs[0, :6].tolist() == [1, 2, 3, 4, 5, 6]
    assert row[:6].tolist() == [-1, -1, 4, -1, -1, 7]  # the stop token 7 is trained on
    assert (row[6:] == -1).all()
    assert batch.weights is not None and (batch.weights[0] == 0.5).all()
    assert batch.norm == 2.0


def test_rows_of_several_lengths_are_padded_without_targets() -> None:
    rows = [scored([1], [2] * n, [1] * n, advantage=float(n)) for n in (1, 5, 40)]
    batch = rollout.to_batch(rows, sequence_len=64, step=0, num_steps=4)
    assert (batch.targets >= 0).sum(dim=1).tolist() == [1, 5, 40]
    assert batch.norm == 46.0


def test_token_zero_is_a_target_like_any_other() -> None:
    batch = rollout.to_batch(
        [scored([0], [0, 0], [1, 1], 1.0)], sequence_len=64, step=0, num_steps=1
    )
    assert batch.targets[0, :2].tolist() == [0, 0]


def test_answers_of_equal_reward_give_no_gradient() -> None:
    rows = [scored([1], [2, 3], [1, 1], advantage=0.0)] * 2
    gradients = gradients_of(
        small_model(), rollout.to_batch(rows, sequence_len=64, step=0, num_steps=4)
    )
    assert all(not gradient.any() for gradient in gradients)


def test_progress_and_resume_count_steps() -> None:
    batch = rollout.to_batch([scored([1], [2], [1], 1.0)], sequence_len=64, step=2, num_steps=4)
    assert batch.progress == pytest.approx(0.75)
    assert batch.resume == {"step": 3}


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
    ours = gradients_of(model, rollout.to_batch(rows, sequence_len=64, step=0, num_steps=1))
    for gradient, by_formula in zip(ours, expected, strict=True):
        torch.testing.assert_close(gradient, by_formula, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_passes", [2, 3, 7])
def test_the_gradient_does_not_depend_on_how_passes_are_split(num_passes: int) -> None:
    """Nor need the number of samples be a multiple of anything."""
    model, rows = small_model(), some_scored(7)
    whole = rollout.to_batch(rows, sequence_len=64, step=0, num_steps=1)
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
def test_ranks_share_the_step_that_one_would_do(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients averaged over ranks, as the trainer does it, are those of one rank."""
    model, rows = small_model(), some_scored(8)
    whole = gradients_of(model, rollout.to_batch(rows, sequence_len=64, step=0, num_steps=1))
    total = [float(sum(sum(row.completion.mask) for row in rows))]
    monkeypatch.setattr(rollout, "world_size", lambda: world_size)
    monkeypatch.setattr(rollout, "all_reduce_sum", lambda values: total)
    shares = [
        rollout.to_batch(rows[rank::world_size], sequence_len=64, step=0, num_steps=1)
        for rank in range(world_size)
    ]
    averaged = [gradient / world_size for gradient in gradients_of(small_model(), *shares)]
    for one, other in zip(whole, averaged, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# ---- samples and advantages


def test_the_baseline_is_the_mean_of_a_prompts_own_answers() -> None:
    engine = Engine(small_model(), small_tokenizer())
    found = rollout.sample_and_score(engine, small_tokenizer(), Sums(), [4, 0, 9], PLAN, step=0)
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
        engine, tokenizer, Sums(), [0], RolloutPlan(1, 2, 8, 0.0, 0, 0), step=0
    )
    batch = rollout.to_batch(found, sequence_len=64, step=0, num_steps=1)
    assert batch.targets[0][batch.targets[0] >= 0].tolist() == [7, end]


def test_a_tools_output_is_no_target() -> None:
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
        engine, tokenizer, Sums(), [0], RolloutPlan(1, 1, 20, 0.0, 0, 0), step=0
    )
    assert "<|output_start|>42<|output_end|>" in tokenizer.decode(found[0].completion.tokens)
    batch = rollout.to_batch(found, sequence_len=64, step=0, num_steps=1)
    assert batch.targets[0][batch.targets[0] >= 0].tolist() == [*call, end]


def test_steps_draw_anew_and_a_step_repeated_draws_the_same() -> None:
    engine = Engine(small_model(), small_tokenizer())

    def answers(step: int, indices: list[int]) -> list[list[int]]:
        found = rollout.sample_and_score(engine, small_tokenizer(), Sums(), indices, PLAN, step)
        return [one.completion.tokens for one in found]

    assert answers(0, [1, 2]) == answers(0, [1, 2]) != answers(1, [1, 2])
    assert answers(0, [2]) == answers(0, [1, 2])[5:]  # whoever else is in the batch


# ---- steps


@pytest.mark.parametrize("context", [33, 37, 61, 64])
def test_answers_that_fill_a_context_of_any_length_are_trained_on(context: int) -> None:
    model = small_model(sequence_len=context)
    plan = dataclasses.replace(PLAN, max_new_tokens=context)
    engine = Engine(model, small_tokenizer())
    [batch] = rollout.rollout_batches(engine, small_tokenizer(), Sums(), plan, num_steps=1, rank=0)
    assert batch.inputs.size(1) <= context and (batch.targets >= 0).any(dim=0)[context - 2]
    loss = trainer.accumulate_gradients(model, batch, 4, torch.device("cpu"))
    assert torch.isfinite(loss)


@pytest.mark.parametrize("world_size", [2, 3])
def test_prompts_are_dealt_out_and_all_answers_are_those_of_one_rank(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(small_model(), small_tokenizer())

    def rows(rank: int) -> list[set[tuple[int, ...]]]:
        batches = rollout.rollout_batches(
            engine, small_tokenizer(), Sums(), PLAN, num_steps=3, rank=rank
        )
        return [
            {
                (*inputs[targets >= 0].tolist(), -1, *targets[targets >= 0].tolist())
                for inputs, targets in zip(batch.inputs, batch.targets, strict=True)
            }
            for batch in batches
        ]

    alone = rows(0)
    monkeypatch.setattr(rollout, "world_size", lambda: world_size)
    shares = [rows(rank) for rank in range(world_size)]
    for step in range(3):
        assert set.union(*(share[step] for share in shares)) == alone[step]


def test_a_resumed_run_goes_on_with_the_same_batches_and_tells_what_it_saw() -> None:
    engine, seen = Engine(small_model(), small_tokenizer()), []

    def batches(first_step: int) -> list[Batch]:
        return list(
            rollout.rollout_batches(
                engine, small_tokenizer(), Sums(), PLAN, num_steps=4, rank=0, first_step=first_step,
                observe=lambda reward, length: seen.append((reward, length)),
            )
        )  # fmt: skip

    straight = batches(0)
    assert len(straight) == len(seen) == 4
    resumed = batches(straight[1].resume["step"])
    for one, other in zip(straight[2:], resumed, strict=True):
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
        assert one.progress == other.progress
    assert seen[2:4] == seen[4:]
    assert seen[0][1] == pytest.approx(straight[0].norm / (6 * 5))
    assert straight[-1].progress == 1.0


def test_prompts_beyond_the_context_are_left_out_and_none_at_all_is_an_error(
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
    batches = rollout.rollout_batches(engine, tokenizer, Growing(), PLAN, num_steps=2, rank=0)
    assert len(list(batches)) == 2
    assert f"{10 - len(fitting)} of 10 prompts do not fit" in caplog.text
    with pytest.raises(UserError, match="none of 10 prompts fits"):
        rollout.prompts_that_fit(Growing(), tokenizer, 3)
