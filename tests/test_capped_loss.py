"""The rest, with the model around it, is in test_gpt.py."""

import math

import pytest
import torch
from torch import Tensor

from nanochat import capped_loss
from nanochat.capped_loss import capped_cross_entropy, plain_cross_entropy, soft_cap

VOCAB, WIDTH = 61, 12


def inputs(
    count: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    x = (scale * torch.randn(count, WIDTH, generator=generator)).to(dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    targets = torch.randint(VOCAB, (count,), generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), targets


@pytest.fixture(params=["kept", "recomputed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the logits reach the backward pass, in groups that do not divide the rows."""
    monkeypatch.setattr(capped_loss, "CACHE_ELEMENTS", 4 * VOCAB)
    if request.param == "recomputed":
        monkeypatch.setattr(capped_loss, "KEEP_BYTES", 0)
        monkeypatch.setattr(capped_loss, "GROUP_ELEMENTS", 9 * VOCAB)
    name: str = request.param
    return name


def exact(
    x: Tensor, weight: Tensor, targets: Tensor, cap: float, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and both gradients in float64, one row at a time."""
    x, weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    losses = []
    for row, target in zip(x, targets.tolist(), strict=True):
        capped = cap * torch.tanh(weight @ row / cap)
        log_share = capped - torch.logsumexp(capped, dim=0)
        losses.append(-log_share[target] if target >= 0 else torch.zeros((), dtype=torch.float64))
    nll = torch.stack(losses)
    (nll * weights.double()).sum().backward()
    assert x.grad is not None and weight.grad is not None
    return nll.detach(), x.grad, weight.grad


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("cap", [0.5, 15.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("count", [1, 9, 40])
def test_losses_and_gradients_equal_those_of_float64_row_by_row(
    cap: float, scale: float, count: int
) -> None:
    x, weight, targets = inputs(count, scale)
    targets[1::3] = -1
    weights = torch.linspace(-1, 2, count)
    nll = capped_cross_entropy(x, weight, targets, cap)
    (nll * weights).sum().backward()
    ours = nll.detach(), x.grad, weight.grad
    for found, expected in zip(ours, exact(x, weight, targets, cap, weights), strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-4)


@pytest.mark.usefixtures("path")
def test_ignored_targets_cost_nothing_and_leave_no_gradient() -> None:
    x, weight, targets = inputs(12)
    targets[[0, 5, 11]] = -1
    nll = capped_cross_entropy(x, weight, targets, 15.0)
    nll.sum().backward()
    assert x.grad is not None
    assert (nll == 0).nonzero().flatten().tolist() == [0, 5, 11]
    assert [row for row in range(12) if not x.grad[row].any()] == [0, 5, 11]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("count", [0, 5])
def test_without_targets_the_gradient_is_zero_and_not_nan(count: int) -> None:
    x, weight, targets = inputs(count)
    nll = capped_cross_entropy(x, weight, torch.full_like(targets, -1), 15.0)
    nll.sum().backward()
    assert nll.shape == (count,) and not nll.any()
    assert x.grad is not None and not x.grad.any()
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.usefixtures("path")
def test_bfloat16_activations_give_float32_losses_and_gradients_as_the_plain_way_does() -> None:
    found = []
    for loss in (capped_cross_entropy, plain_cross_entropy):
        x, weight, targets = inputs(30, dtype=torch.bfloat16)
        nll = loss(x, weight, targets, 15.0)
        nll.mean().backward()
        assert nll.dtype == torch.float32 and x.grad is not None and weight.grad is not None
        assert x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
        found.append((nll.detach(), x.grad.float(), weight.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-3, rtol=2e-2)


def test_the_way_of_a_gpu_takes_ignored_targets_in_its_stride(path: str) -> None:
    """There the rows are not picked out first, since asking for them would make the GPU wait."""
    x, weight, targets = inputs(20)
    targets[[0, 7]] = -1
    weights = torch.linspace(-1, 1, 20)
    nll = capped_loss._CappedCrossEntropy.apply(x, weight, targets, 15.0)
    (nll * weights).sum().backward()
    expected = exact(x, weight, targets, 15.0, weights)
    for found, one in zip((nll.detach(), x.grad, weight.grad), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), one, atol=2e-5, rtol=2e-4)


def saved_elements(count: int) -> int:
    """Numbers that are kept for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    x, weight, targets = inputs(count)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        capped_cross_entropy(x, weight, targets, 15.0)
    return sum(sizes)


def test_large_logits_are_not_kept_and_small_ones_are(path: str) -> None:
    count = 500
    others = count * WIDTH + VOCAB * WIDTH + 2 * count  # x, weight, targets, log sums
    logits = count * VOCAB if path == "kept" else 0
    assert saved_elements(count) == others + logits


def test_no_tensor_is_larger_than_a_group_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capped_loss, "KEEP_BYTES", 0)
    monkeypatch.setattr(capped_loss, "GROUP_ELEMENTS", 9 * VOCAB)
    sizes: list[int] = []
    tanhs = capped_loss._tanhs

    def watched(x: Tensor, matrix: Tensor, cap: float) -> Tensor:
        found = tanhs(x, matrix, cap)
        sizes.append(found.numel())
        return found

    monkeypatch.setattr(capped_loss, "_tanhs", watched)
    x, weight, targets = inputs(50)
    capped_cross_entropy(x, weight, targets, 15.0).sum().backward()
    assert max(sizes) == 9 * VOCAB
    assert sum(sizes) == 2 * 50 * VOCAB  # forward, and once more on the way back


def test_nothing_is_kept_when_no_gradient_is_wanted() -> None:
    x, weight, targets = inputs(8)
    with torch.no_grad():
        nll = capped_cross_entropy(x, weight, targets, 15.0)
    assert not nll.requires_grad
    torch.testing.assert_close(nll, plain_cross_entropy(x, weight, targets, 15.0).detach())


def test_a_frozen_weight_and_frozen_activations_leave_the_others_gradient() -> None:
    for frozen in (0, 1):
        both, one = inputs(10), inputs(10)
        capped_cross_entropy(*both, 15.0).sum().backward()
        one[frozen].requires_grad_(False)
        capped_cross_entropy(*one, 15.0).sum().backward()
        assert one[frozen].grad is None
        expected = both[1 - frozen].grad
        assert expected is not None
        torch.testing.assert_close(one[1 - frozen].grad, expected)


def test_the_cap_bends_in_float32_and_leaves_small_logits_alone() -> None:
    logits = torch.tensor([-1e4, -15.0, 0.0, 0.01, 15.0, 1e4]).to(torch.bfloat16)
    capped = soft_cap(logits, 15.0)
    assert capped.dtype == torch.float32
    expected = [15 * math.tanh(value / 15) for value in logits.tolist()]
    assert capped.tolist() == pytest.approx(expected, rel=1e-6)
