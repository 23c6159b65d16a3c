"""Cross-entropy of soft-capped logits without materializing the logits.

Plain autograd keeps several tensors of all (N, V) logits for the backward pass, and a CPU reads and
writes them for longer than it multiplies. Here each group of rows goes all the way at once: logits,
loss, gradient of the logits, and from it the gradients of x and of the weight. Only these two are
kept, and nothing is recomputed. That needs a loss that is a single number, whose upstream gradient
is just a factor.

N targets  C channels  V vocab
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.cpu_matmul import (
    add_sum_of_products,
    product,
    split_for_cache,
    zeros_for_sums,
)

CPU_GROUP_ELEMENTS = 2**24  # logits at a time, 64 MB: from 512 rows on, products run at their peak
GROUP_ELEMENTS = 2**27  # on other devices, 0.5 GB with their gradient in bfloat16
FLOAT16_FACTOR = 256  # lifts the probability of a rare token out of the subnormal numbers
MAX_CAP = 40  # up to it, exp(+-cap) summed over a vocabulary fits float32 without a max


def capped_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """-log softmax(cap * tanh(z / cap))[target] with z = x @ weight.T; (N,) float32, in nats.

    x: (N, C) in the compute dtype.  weight: (V, C) float32.  targets: (N,) int64, -1 gives 0.
    Capping and softmax are computed in float32 (float64 stays). With gradients all logits are
    materialized: training uses `weighted_cross_entropy`.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return plain_cross_entropy(x, weight, targets, cap)
    matrix = weight.to(x.dtype)
    groups = [
        plain_cross_entropy(x[rows], matrix, targets[rows], cap) for rows in _groups(x, weight)
    ]
    return torch.cat(groups) if groups else x.new_zeros(0, dtype=torch.float32)


def weighted_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float,
    compiles: bool = False, softmax_factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """sum(weights * capped_cross_entropy(...)); weights: (N,) float32, without gradient.

    compiles: elsewhere than on a CPU, compile what is done between the products.
    softmax_factors: (V,) float32, of a sampled softmax: how often each token counts in the sum of
    exponentials, 0 for those left out. A row's own target counts once. Needs a cap of at most 40.
    """
    if softmax_factors is not None:
        return _sampled_cross_entropy(x, weight, targets, weights, cap, softmax_factors)
    if x.device.type != "cpu" or x.dtype == torch.float16:
        summed: Tensor = _FusedCrossEntropy.apply(x, weight, targets, weights, cap, compiles)
        return summed
    total: Tensor = _WeightedCrossEntropy.apply(x, weight, targets, weights, cap)
    return total


def _sampled_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float, factors: Tensor
) -> Tensor:
    """The loss over the U tokens that have a factor or are the target of any row."""
    assert cap <= MAX_CAP, "the largest exponential may have no factor"
    found = targets.clamp(min=0)
    is_used = (factors > 0).index_fill_(0, found, True)
    tokens = is_used.nonzero().squeeze(1)
    columns = torch.where(targets < 0, targets, (is_used.cumsum(0) - 1)[found])
    # In the backward pass, autograd puts the gradient of these rows among zeros.
    rows = weight.index_select(0, tokens)
    total: Tensor = _WeightedCrossEntropy.apply(x, rows, columns, weights, cap, factors[tokens])
    return total


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap) in float32; Gemma 2, arXiv 2408.00118."""
    capped = (logits if logits.dtype == torch.float64 else logits.float()) / cap
    if torch.is_grad_enabled():
        return cap * capped.tanh()
    return capped.tanh_().mul_(cap)  # in place: new memory costs more than the arithmetic


def plain_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """The same as `capped_cross_entropy`, in the obvious way."""
    logits = soft_cap(F.linear(x, weight.to(x.dtype)), cap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float,
        factors: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        matrix = weight.to(x.dtype)
        weights = weights.masked_fill(targets < 0, 0.0)[:, None]
        columns = targets.clamp(min=0)[:, None]  # a masked target has weight 0: any column will do
        total, log_factors = weight.new_zeros(()), None if factors is None else factors.log()
        grad_x, grad_weight = torch.empty_like(x), zeros_for_sums(weight, x.dtype)
        for rows in _groups(x, weight):
            logits = _logits_or_sigmoids(x[rows], matrix, cap)
            for part in split_for_cache(logits, columns[rows], weights[rows]):
                total += _loss_and_gradient(*part, cap=cap, log_factors=log_factors)
            # `logits` holds d loss / d z / scales now. Scaling x and grad_x instead of it touches
            # C channels per row and not V logits.
            scales = 4 * weights[rows]
            grad_x[rows] = product(logits, matrix.T).mul_(scales)
            add_sum_of_products(grad_weight, logits, (x[rows] * scales).to(x.dtype))
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scaled = grad_x * upstream[0].to(grad_x.dtype), grad_weight * upstream[0]
        return *scaled, None, None, None, None


class _FusedCrossEntropy(torch.autograd.Function):
    """The same in as few passes over the logits as the compiler can fuse: two.

    Logits and their gradient are the only two tensors of a group's size, both in the dtype of x:
    the softmax is computed again for the gradient, which costs less than to keep it in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float,
        compiles: bool,
    ) -> Tensor:  # fmt: skip
        fused = _compiled if compiles else _as_it_is
        matrix = weight.to(x.dtype)
        weights = weights.masked_fill(targets < 0, 0.0)[:, None]
        columns = targets.clamp(min=0)[:, None]
        total = weight.new_zeros(())
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        factor = FLOAT16_FACTOR if x.dtype == torch.float16 else 1
        for rows in _groups(x, weight):
            z = F.linear(x[rows], matrix)
            loss, sums = fused(_losses)(z, columns[rows], cap)
            total += (loss * weights[rows]).sum()
            grad_logits = fused(_logit_gradients)(z, columns[rows], sums, cap, factor)
            del z
            # As above: weights scale x and grad_x, where float16 does not lose small ones.
            scales = (weights[rows] / factor).to(x.dtype)
            grad_x[rows] = (grad_logits @ matrix).mul_(scales)
            grad_weight += grad_logits.T @ (x[rows] * scales)
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors  # in place: a copy would be at the peak of memory
        grad_x, grad_weight = (
            grad_x.mul_(upstream[0].to(grad_x.dtype)),
            grad_weight.mul_(upstream[0]),
        )
        return grad_x, grad_weight, None, None, None, None


def _losses(z: Tensor, columns: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Loss (rows, 1) of the logits z, and the sums of exponentials that belong to it."""
    shift = _shift(z, cap)
    target = torch.tanh(z.gather(1, columns).float() / cap)
    sums = ((torch.tanh(z.float() / cap) - shift) * cap).exp().sum(dim=1, keepdim=True)
    return sums.log() - (target - shift) * cap, sums


def _logit_gradients(z: Tensor, columns: Tensor, sums: Tensor, cap: float, factor: int) -> Tensor:
    """d loss / d z * factor in the dtype of z."""
    capped = torch.tanh(z.float() / cap)
    softmax = ((capped - _shift(z, cap)) * cap).exp() / sums
    is_target = (torch.arange(z.size(1), device=z.device) == columns).float()
    return ((softmax - is_target) * (1 - capped * capped) * factor).to(z.dtype)


def _shift(z: Tensor, cap: float) -> float | Tensor:
    """What tanh(z / cap) is reduced by: the bound, or where exp would vanish the maximum."""
    return 1.0 if cap <= MAX_CAP else torch.tanh(z.float().amax(dim=1, keepdim=True) / cap)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def rows_at_once(vocab_size: int, device_type: str) -> int:
    """The number of targets whose logits are in memory at the same time."""
    num_elements = CPU_GROUP_ELEMENTS if device_type == "cpu" else GROUP_ELEMENTS
    return max(1, num_elements // vocab_size)


def _groups(x: Tensor, weight: Tensor) -> Iterator[slice]:
    size = rows_at_once(weight.size(0), x.device.type)
    return (slice(first, first + size) for first in range(0, x.size(0), size))


def _logits_or_sigmoids(x: Tensor, matrix: Tensor, cap: float) -> Tensor:
    """The logits z = x @ matrix.T in bfloat16, else s = sigmoid(2 z / cap).

    tanh(z / cap) = 2 s - 1, and oneDNN fuses a sigmoid into the product but no scaled tanh.
    """
    if x.dtype == torch.bfloat16:  # s would lose precision, and in float32 leave the caches
        return F.linear(x, matrix)
    return product(x * (2 / cap), matrix, "sigmoid")


def _loss_and_gradient(
    logits: Tensor, columns: Tensor, weights: Tensor, *, cap: float,
    log_factors: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The weighted loss of some rows; logits becomes d loss / d z / (4 weights).

    logits: (rows, V) by `_logits_or_sigmoids`; columns, weights: (rows, 1). The capped logit is
    cap * (2 s - 1), so d loss / d z = weight * (softmax - one_hot) * (1 - tanh^2) with
    1 - tanh^2 = 4 s (1 - s). log_factors: (V,) of the exponentials of all but the row's target.
    """
    is_rounded = logits.dtype == torch.bfloat16
    s = logits.float().mul_(2 / cap).sigmoid_() if is_rounded else logits
    scores = s * (2 * cap)  # the softmax needs no constant
    target_scores = scores.gather(1, columns)
    if log_factors is not None:
        scores.add_(log_factors).scatter_(1, columns, target_scores)
    softmax = scores.softmax(dim=1)  # takes less time than exp alone, of which it has a faster one
    probabilities = softmax.gather(1, columns)
    losses = -probabilities.log()
    if cap > MAX_CAP:  # where a probability may be 0
        losses = scores.logsumexp(dim=1, keepdim=True) - target_scores
    if torch.compiler.is_compiling():  # a `where` is fused, a scatter is not
        vocabulary = torch.arange(s.size(1), device=s.device)
        softmax = torch.where(vocabulary == columns, softmax - 1, softmax)
    else:
        softmax.scatter_(1, columns, probabilities - 1)
    torch.addcmul(s, s, s, value=-1, out=s).mul_(softmax)
    if is_rounded:
        logits.copy_(s)
    return (losses * weights).sum()
