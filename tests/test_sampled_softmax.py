"""The sampled softmax of pretraining; test_ranks.py and test_stages.py train with it."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from nanochat.data.batch import Batch
from nanochat.gpt import GPT, GPTConfig
from nanochat.kernels import cpu_matmul
from nanochat.kernels.cross_entropy import weighted_cross_entropy
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS
from nanochat.training import autotune, trainer
from nanochat.training.sampled_softmax import SampledSoftmax
from scripts import base_train
from tests import test_trainer

VOCAB, WIDTH, COUNT, CAP = 600, 8, 50, 15.0
SAMPLED = SampledSoftmax(VOCAB, size=60, num_steps=5, seed=7)
Gradients = tuple[Tensor, Tensor, Tensor]


def draws(count: int, **changes: int) -> Tensor:
    """(count, V) factors of the first steps."""
    sampled = dataclasses.replace(SAMPLED, num_steps=count, **changes)
    found = [sampled.factors(step + 1) for step in range(count)]
    return torch.stack([factors for factors in found if factors is not None])


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, WIDTH, generator=generator) for n in (COUNT, VOCAB))
    targets = torch.randint(VOCAB, (COUNT,), generator=generator)
    targets[::7] = -1
    return x.requires_grad_(), weight.requires_grad_(), targets, torch.linspace(-0.5, 2, COUNT)


def loss_and_gradients(factors: Tensor | None) -> Gradients:
    x, weight, targets, weights = inputs()
    total = weighted_cross_entropy(x, weight, targets, weights, CAP, softmax_factors=factors)
    (3 * total).backward()
    assert x.grad is not None and weight.grad is not None
    return total.detach(), x.grad, weight.grad


def in_the_obvious_way(factors: Tensor) -> Gradients:
    """All logits in float64, with the factors as a matrix in which each row's target has 1."""
    x, weight, targets, weights = (tensor.detach() for tensor in inputs())
    x, weight = (tensor.double().requires_grad_() for tensor in (x, weight))
    columns = targets.clamp(min=0)[:, None]
    matrix = factors.double().repeat(COUNT, 1).scatter(1, columns, 1.0)
    logits = CAP * torch.tanh(x @ weight.T / CAP)
    losses = (matrix * logits.exp()).sum(1).log() - logits.gather(1, columns)[:, 0]
    total = (losses * weights * (targets >= 0)).sum()
    (3 * total).backward()
    assert x.grad is not None and weight.grad is not None
    return total.detach(), x.grad, weight.grad


def assert_close(found: Gradients, expected: Gradients, atol: float = 1e-5) -> None:
    for ours, one in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), one.double(), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("is_amd", [False, True])
def test_loss_and_gradients_equal_those_of_all_logits_with_factors(
    step: int, is_amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "is_amd", lambda: is_amd)
    monkeypatch.setattr(cpu_matmul, "CACHE_ELEMENTS", 4 * VOCAB)  # several parts
    factors = draws(step)[-1]
    assert_close(loss_and_gradients(factors), in_the_obvious_way(factors), atol=1e-4)


def test_a_sample_of_all_tokens_is_the_full_softmax() -> None:
    factors = dataclasses.replace(SAMPLED, size=VOCAB).factors(1)
    assert_close(loss_and_gradients(factors), loss_and_gradients(None))


def test_only_drawn_tokens_and_targets_get_a_gradient() -> None:
    [factors] = draws(1)
    _, _, grad_weight = loss_and_gradients(factors)
    targets = set(inputs()[2].tolist()) - {-1}
    assert set(grad_weight.any(1).nonzero()[:, 0].tolist()) == targets | set(
        factors.nonzero()[:, 0].tolist()
    )


def test_the_mean_gradient_of_many_samples_approaches_the_full_one() -> None:
    _, *full = loss_and_gradients(None)
    samples = [loss_and_gradients(factors)[1:] for factors in draws(100)]
    for expected, found in zip(full, zip(*samples, strict=True), strict=True):
        errors = [
            float((mean - expected).norm() / expected.norm())
            for mean in (found[0], torch.stack(found).mean(0))
        ]
        assert errors[1] < min(0.05, errors[0] / 3), errors


def test_each_token_counts_once_on_average_and_bytes_and_special_tokens_always() -> None:
    drawn = draws(2000)
    always = torch.zeros(VOCAB, dtype=torch.bool)
    always[: 256 + SAMPLED.size] = always[-len(SPECIAL_TOKENS) :] = True
    assert (drawn[:, always] == 1).all() and (drawn[:, ~always] == 0).any(0).all()
    deviations = (SAMPLED.probabilities() ** -1 - 1) ** 0.5 / 2000**0.5  # of the mean
    assert ((drawn.mean(0) - 1).abs() <= 5 * torch.from_numpy(deviations)).all()


def test_another_step_or_seed_draws_others_and_the_same_ones_the_same() -> None:
    found = [*draws(2), *draws(1, seed=8), *draws(1, seed=-8)]
    assert len({tuple(factors.tolist()) for factors in found}) == 4
    assert torch.equal(draws(2), draws(2))


class RecordingModel(test_trainer.TinyModel):
    """Keeps the factors of each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor | None] = []

    def forward(
        self, inputs: Tensor, targets: Tensor, weights: Tensor,
        softmax_factors: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.seen.append(softmax_factors)
        return super().forward(inputs, targets, weights)


def test_the_passes_of_a_step_share_a_sample_and_later_steps_have_none(tmp_path: Path) -> None:
    def batches() -> Iterator[Batch]:
        return (test_trainer.batch(step) for step in range(8))

    model = RecordingModel()
    test_trainer.run(tmp_path, batches(), model=model, device_batch_size=3, sampled_softmax=SAMPLED)
    expected = [factors for step in range(1, 6) for factors in [SAMPLED.factors(step)] * 2]
    assert len(model.seen) == 16 and model.seen[10:] == [None] * 6
    for found, factors in zip(model.seen[:10], expected, strict=True):
        assert found is not None and factors is not None and torch.equal(found, factors)


def test_a_compiled_model_runs_as_it_is_while_samples_differ_in_size() -> None:
    def compile_nothing(*_: object) -> NoReturn:
        raise AssertionError("compiled")

    model, [factors] = RecordingModel(), draws(1)
    compiled: Any = torch.compile(model, backend=compile_nothing)
    trainer.accumulate_gradients(
        compiled, test_trainer.batch(0), 3, torch.device("cpu"), softmax_factors=factors
    )
    assert len(model.seen) == 2 and model.table.weight.grad is not None


def test_such_a_run_is_compiled_only_on_request(caplog: pytest.LogCaptureFixture) -> None:
    plan: Any = SimpleNamespace(
        compile="auto", has_fixed_shape=True, sampled_softmax=SAMPLED, model=RecordingModel()
    )
    runtime = Runtime(torch.device("cpu"), 0, 1, torch.bfloat16)
    with caplog.at_level("INFO"):
        assert autotune.compiled(plan, 1.0, runtime) is plan.model
    assert "eager, not compiled: only the last steps" in caplog.text


@pytest.mark.parametrize(
    ("device", "dtype", "share"),
    [
        ("cpu", torch.float32, 0.85),
        ("cpu", torch.bfloat16, 0.85),
        ("cpu", torch.float16, 0.0),
        ("cuda", torch.bfloat16, 0.0),
    ],
)
def test_pretraining_samples_only_where_that_was_measured(
    device: str, dtype: torch.dtype, share: float
) -> None:
    options = base_train.Options(sampled_softmax_share=0.85)
    assert base_train.sampled_share(options, Runtime(torch.device(device), 0, 1, dtype)) == share


def test_evaluation_always_has_the_full_softmax() -> None:
    """It asks for the losses one by one, to which no factors apply."""
    config = GPTConfig.from_depth(1, vocab_size=VOCAB, sequence_len=10)
    model, targets = GPT(config), inputs()[2].view(5, 10)
    model.init_weights(0)
    losses = [
        model(targets.clamp(min=0), targets, softmax_factors=factors)
        for factors in (None, SAMPLED.factors(1))
    ]
    assert torch.equal(*losses)
