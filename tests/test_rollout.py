import pytest
import torch

from nanochat import rollout
from nanochat.engine import Completion
from nanochat.rollout import Scored


def scored(prompt: list[int], tokens: list[int], mask: list[int], advantage: float) -> Scored:
    completion = Completion(tokens=tokens, mask=mask, stop="end")
    return Scored(prompt, completion, reward=0.0, advantage=advantage)


def test_sampled_tokens_are_targets_and_nothing_else_is() -> None:
    one = scored([1, 2, 3], [4, 5, 6, 7], [1, 0, 0, 1], advantage=0.5)
    batch = rollout.to_batch([one], step=0, num_steps=4)
    row = batch.targets[0]
    assert batch.inputs[0, :6].tolist() == [1, 2, 3, 4, 5, 6]
    assert row[:6].tolist() == [-1, -1, 4, -1, -1, 7]  # the stop token 7 is trained on
    assert (row[6:] == -1).all()
    assert batch.weights is not None and (batch.weights[0] == 0.5).all()
    assert batch.norm == 2.0


def test_rows_of_several_lengths_are_padded_without_targets() -> None:
    rows = [scored([1], [2] * n, [1] * n, advantage=float(n)) for n in (1, 5, 40)]
    batch = rollout.to_batch(rows, step=0, num_steps=4)
    assert (batch.targets >= 0).sum(dim=1).tolist() == [1, 5, 40]
    assert batch.norm == 46.0


def test_answers_of_equal_reward_give_no_gradient() -> None:
    rows = [scored([1], [2, 3], [1, 1], advantage=0.0)] * 2
    batch = rollout.to_batch(rows, step=0, num_steps=4)
    logits = torch.zeros(2, batch.inputs.size(1), 5, requires_grad=True)
    nll = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch.targets, ignore_index=-1, reduction="none"
    )
    ((nll * batch.weights).sum() / batch.norm).backward()
    assert logits.grad is not None and not logits.grad.any()


def test_progress_and_resume_count_steps() -> None:
    batch = rollout.to_batch([scored([1], [2], [1], 1.0)], step=2, num_steps=4)
    assert batch.progress == pytest.approx(0.75)
    assert batch.resume == {"step": 3}
