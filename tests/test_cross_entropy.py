"""The loss alone; test_gpt.py tests it within the model."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.kernels import cpu_matmul, cross_entropy
from nanochat.kernels.cross_entropy import (
    capped_cross_entropy,
    plain_cross_entropy,
    soft_cap,
    weighted_cross_entropy,
)

VOCAB, WIDTH = 61, 4


def inputs(
    count: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    x = (scale * torch.randn(count, WIDTH, generator=generator)).to(dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=generator)
    targets = torch.randint(VOCAB, (count,), generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), targets


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups and parts that do not divide the rows."""
    monkeypatch.setattr(cpu_matmul, "CACHE_ELEMENTS", 4 * VOCAB)
    monkeypatch.setattr(cross_entropy, "CPU_GROUP_ELEMENTS", 9 * VOCAB)


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


@pytest.mark.parametrize("cap", [0.5, 15.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("count", [1, 9, 40])
@pytest.mark.parametrize("is_amd", [False, True])
def test_loss_and_gradients_equal_those_of_float64_row_by_row(
    cap: float, scale: float, count: int, is_amd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_matmul, "is_amd", lambda: is_amd)
    x, weight, targets = inputs(count, scale)
    targets[1::3] = -1
    weights = torch.linspace(-1, 2, count)
    nll, grad_x, grad_weight = exact(x, weight, targets, cap, weights)
    with torch.no_grad():
        found = capped_cross_entropy(x, weight, targets, cap)
    torch.testing.assert_close(found.double(), nll, atol=2e-5, rtol=2e-4)
    total = weighted_cross_entropy(x, weight, targets, weights, cap)
    (3 * total).backward()  # scaling the loss scales its gradients
    expected = (nll * weights).sum(), 3 * grad_x, 3 * grad_weight
    for ours, one in zip((total.detach(), x.grad, weight.grad), expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), one, atol=6e-5, rtol=2e-4)


def test_single_losses_have_gradients_as_well() -> None:
    x, weight, targets = inputs(10)
    targets[3] = -1
    weights = torch.linspace(-1, 2, 10)
    (capped_cross_entropy(x, weight, targets, 15.0) * weights).sum().backward()
    _, *expected = exact(x, weight, targets, 15.0, weights)
    for ours, one in zip((x.grad, weight.grad), expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), one, atol=2e-5, rtol=2e-4)


def test_masked_targets_have_no_loss_and_no_gradient() -> None:
    x, weight, targets = inputs(12)
    targets[[0, 5, 11]] = -1
    with torch.no_grad():
        nll = capped_cross_entropy(x, weight, targets, 15.0)
    weighted_cross_entropy(x, weight, targets, torch.ones(12), 15.0).backward()
    assert x.grad is not None
    assert (nll == 0).nonzero().flatten().tolist() == [0, 5, 11]
    assert [row for row in range(12) if not x.grad[row].any()] == [0, 5, 11]


@pytest.mark.parametrize("count", [0, 5])
def test_without_targets_the_gradient_is_zero_and_not_nan(count: int) -> None:
    x, weight, targets = inputs(count)
    targets = torch.full_like(targets, -1)
    total = weighted_cross_entropy(x, weight, targets, torch.ones(count), 15.0)
    total.backward()
    assert total.shape == () and not total
    with torch.no_grad():
        nll = capped_cross_entropy(x, weight, targets, 15.0)
    assert nll.shape == (count,) and not nll.any()
    assert x.grad is not None and not x.grad.any()
    assert weight.grad is not None and not weight.grad.any()


def test_bfloat16_activations_give_the_losses_and_gradients_of_plain_autograd() -> None:
    found = []
    weights = torch.linspace(0.5, 1.5, 30) / 30
    for is_ours in (True, False):
        x, weight, targets = inputs(30, dtype=torch.bfloat16)
        if is_ours:
            total = weighted_cross_entropy(x, weight, targets, weights, 15.0)
        else:
            total = (plain_cross_entropy(x, weight, targets, 15.0) * weights).sum()
        total.backward()
        assert total.dtype == torch.float32 and x.grad is not None and weight.grad is not None
        assert x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
        found.append((total.detach(), x.grad.float(), weight.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-3, rtol=2e-2)


def test_masked_targets_may_be_kept_as_on_a_gpu() -> None:
    """There the rows are not selected first: their count would make the CPU wait for the GPU."""
    x, weight, targets = inputs(20)
    targets[[0, 7]] = -1
    weights = torch.linspace(-1, 1, 20)
    total = cross_entropy._WeightedCrossEntropy.apply(x, weight, targets, weights, 15.0)
    total.backward()
    nll, *expected = exact(x, weight, targets, 15.0, weights)
    assert total.item() == pytest.approx(float((nll * weights).sum()), rel=1e-5)
    for found, one in zip((x.grad, weight.grad), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), one, atol=2e-5, rtol=2e-4)


@pytest.mark.slow
def test_the_compiled_loss_has_the_same_gradients() -> None:
    x, weight, targets = inputs(20)
    targets[[0, 7]] = -1
    weights = torch.linspace(-1, 1, 20)
    torch.compile(weighted_cross_entropy)(x, weight, targets, weights, 15.0).backward()
    _, *expected = exact(x, weight, targets, 15.0, weights)
    for found, one in zip((x.grad, weight.grad), expected, strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), one, atol=2e-5, rtol=2e-4)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest result."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


def test_no_tensor_exceeds_one_group_and_no_logits_are_kept() -> None:
    count, kept = 50, []
    x, weight, targets = inputs(count)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with (
        LargestTensor() as ours,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        weighted_cross_entropy(x, weight, targets, torch.ones(count), 15.0).backward()
    assert kept == [count * WIDTH, VOCAB * WIDTH]  # the gradients of x and of the weight
    assert ours.num_elements == max(9 * VOCAB, VOCAB * WIDTH)
    with LargestTensor() as evaluated, torch.no_grad():
        capped_cross_entropy(x, weight, targets, 15.0)
    assert evaluated.num_elements == max(9 * VOCAB, VOCAB * WIDTH)
    with LargestTensor() as plain:
        plain_cross_entropy(x, weight, targets, 15.0).sum().backward()
    assert plain.num_elements == count * VOCAB


def test_with_one_input_frozen_the_other_gets_the_same_gradient() -> None:
    for frozen in (0, 1):
        both, one = inputs(10), inputs(10)
        weighted_cross_entropy(*both, torch.ones(10), 15.0).backward()
        one[frozen].requires_grad_(False)
        weighted_cross_entropy(*one, torch.ones(10), 15.0).backward()
        assert one[frozen].grad is None
        expected = both[1 - frozen].grad
        assert expected is not None
        torch.testing.assert_close(one[1 - frozen].grad, expected)


def test_the_soft_cap_is_computed_in_float32_and_keeps_small_logits() -> None:
    logits = torch.tensor([-1e4, -15.0, 0.0, 0.01, 15.0, 1e4]).to(torch.bfloat16)
    capped = soft_cap(logits, 15.0)
    assert capped.dtype == torch.float32
    expected = [15 * math.tanh(value / 15) for value in logits.tolist()]
    assert capped.tolist() == pytest.approx(expected, rel=1e-6)


PEAK_OF_A_STEP = r"""
import re, sys, torch
from nanochat import gpt
from nanochat.kernels.cross_entropy import plain_cross_entropy
if sys.argv[1] == "plain":
    gpt.weighted_cross_entropy = lambda x, weight, targets, weights, cap: (
        plain_cross_entropy(x, weight, targets, cap) * weights
    ).sum()
model = gpt.GPT(gpt.GPTConfig.from_depth(1, vocab_size=65536, sequence_len=512))
model.init_weights(0)
tokens = torch.arange(1024).view(2, 512)
model(tokens, tokens, weights=torch.ones(2, 512)).backward()
# Of this program alone: getrusage also knows what the process was before.
print(1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc elsewhere")
def test_the_peak_of_a_step_is_lower_by_more_than_the_logits_of_a_large_vocabulary() -> None:
    peaks = {
        way: int(
            subprocess.run(
                [sys.executable, "-c", PEAK_OF_A_STEP, way],
                cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True,
            ).stdout
        )
        for way in ("plain", "ours")
    }  # fmt: skip
    assert peaks["plain"] - peaks["ours"] > 4 * 1024 * 65_536


# ---- the path of GPUs, on a CPU


def fused(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of the path that GPUs take."""
    x, weight, *_ = arguments
    total: Tensor = cross_entropy._FusedCrossEntropy.apply(*arguments, False)
    (3 * total).backward()
    assert x.grad is not None and weight.grad is not None
    return total.detach(), x.grad, weight.grad


@pytest.mark.parametrize("cap", [0.5, 15.0, 100.0])
@pytest.mark.parametrize("scale", [0.1, 30.0])
@pytest.mark.parametrize("count", [1, 40])
def test_the_path_of_gpus_equals_float64_row_by_row(cap: float, scale: float, count: int) -> None:
    x, weight, targets = inputs(count, scale)
    targets[1::3] = -1
    weights = torch.linspace(-1, 2, count)
    nll, grad_x, grad_weight = exact(x, weight, targets, cap, weights)
    expected = (nll * weights).sum(), 3 * grad_x, 3 * grad_weight
    for ours, one in zip(fused(x, weight, targets, weights, cap), expected, strict=True):
        torch.testing.assert_close(ours.double(), one, atol=6e-5, rtol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_path_of_gpus_keeps_tiny_weights_in_half_precision(dtype: torch.dtype) -> None:
    """Of a step of half a million targets, in float16 multiplied by the loss scale."""
    x, weight, targets = inputs(40, dtype=dtype)
    weights = torch.linspace(0.5, 1.5, 40) / 524_288
    scaled = weights * (65_536 if dtype == torch.float16 else 1)
    factor = 3 * float(scaled[0] / weights[0])
    _, grad_x, grad_weight = exact(x, weight, targets, 15.0, weights)
    _, found_x, found_weight = fused(x, weight, targets, scaled, 15.0)
    for ours, one in ((found_x, grad_x), (found_weight, grad_weight)):
        assert float((ours.double() / factor - one).norm() / one.norm()) < 0.01
