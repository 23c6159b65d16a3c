"""Cross-entropy of soft-capped logits, without the logits ever standing whole.

The plain way keeps the (N, V) logits for the backward pass, several times over, and on a CPU reads
and writes them for longer than the products take. Here a group of rows at a time goes the whole
way: logits, loss, gradient of the logits, and from it those of x and of the weight. Nothing is kept
but these two, and nothing is computed again. It takes a loss that is one number, so that its own
gradient is but a factor.

N targets  C channels  V vocab
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.cpu_matmul import mkl_is_slow_for, product, sigmoids, sum_of_products

CPU_GROUP_ELEMENTS = 2**24  # logits at a time, 64 MB: 512 rows or more are fast matmuls
GROUP_ELEMENTS = 2**28  # on other devices, 1 GB
MAX_CAP = 40  # up to it, float32 holds the sum of a vocabulary's exponentials as they are
CACHE_ELEMENTS = 2**18  # worked on at a time on a CPU: 1 MB, the L2 cache of a core


def capped_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """-log softmax(cap * tanh(z / cap))[target] with z = x @ weight.T; (N,) float32, in nats.

    x: (N, C) in the compute dtype.  weight: (V, C) float32.  targets: (N,) int64, -1 gives 0.
    Capping and softmax are done in float32 (float64 stays). Where a gradient is wanted, the logits
    stand whole: training takes `weighted_cross_entropy`.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return plain_cross_entropy(x, weight, targets, cap)
    matrix = weight.to(x.dtype)
    groups = [
        plain_cross_entropy(x[rows], matrix, targets[rows], cap) for rows in _groups(x, weight)
    ]
    return torch.cat(groups) if groups else x.new_zeros(0, dtype=torch.float32)


def weighted_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float
) -> Tensor:
    """sum(weights * capped_cross_entropy(x, weight, targets, cap)), one number.

    weights: (N,) float32, which get no gradient.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a GPU would have to wait
        wanted = (targets >= 0).nonzero().squeeze(1)
        if len(wanted) < len(targets):
            x, targets, weights = x[wanted], targets[wanted], weights[wanted]
    total: Tensor = _WeightedCrossEntropy.apply(x, weight, targets, weights, cap)
    return total


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap) in float32; Gemma 2, arXiv 2408.00118."""
    capped = (logits if logits.dtype == torch.float64 else logits.float()) / cap
    if torch.is_grad_enabled():
        return cap * capped.tanh()
    return capped.tanh_().mul_(cap)  # fresh memory costs more than the arithmetic


def plain_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """The same as `capped_cross_entropy`, in the obvious way."""
    logits = soft_cap(F.linear(x, weight.to(x.dtype)), cap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float
    ) -> Tensor:
        matrix = weight.to(x.dtype)
        weights = weights.masked_fill(targets < 0, 0.0)[:, None]
        columns = targets.clamp(min=0)[:, None]
        total = weight.new_zeros(())
        is_turned = mkl_is_slow_for(matrix)
        # Laid out as the sums come that are added to it.
        zeros = weight.new_zeros(weight.shape[::-1]).T if is_turned else torch.zeros_like(weight)
        grad_x, grad_weight = torch.empty_like(x), zeros
        for rows in _groups(x, weight):
            bent = _bent(x[rows], matrix, cap)
            scales = bent.new_empty(bent.size(0), 1)
            for part in _parts(bent, columns[rows], weights[rows], scales):
                total += _to_gradient(*part, cap=cap)
            grad_logits, scales = bent.to(x.dtype), scales.to(x.dtype)
            grad_x[rows] = product(grad_logits, matrix.T).mul_(scales)
            if x.dtype == weight.dtype and not is_turned:
                grad_weight.addmm_(grad_logits.T, x[rows] * scales)
            else:
                grad_weight += sum_of_products(grad_logits, x[rows] * scales)
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * upstream[0].to(grad_x.dtype), grad_weight * upstream[0], None, None, None


def rows_at_once(vocab_size: int, device_type: str) -> int:
    """How many targets' logits stand at the same time."""
    num_elements = CPU_GROUP_ELEMENTS if device_type == "cpu" else GROUP_ELEMENTS
    return max(1, num_elements // vocab_size)


def _groups(x: Tensor, weight: Tensor) -> Iterator[slice]:
    size = rows_at_once(weight.size(0), x.device.type)
    return (slice(first, first + size) for first in range(0, x.size(0), size))


def _parts(logits: Tensor, *of_rows: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of rows that fit into a CPU's cache together; elsewhere everything at once."""
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return [(logits, *of_rows)]
    num_rows = max(1, CACHE_ELEMENTS // logits.size(1))
    return list(zip(*(tensor.split(num_rows) for tensor in (logits, *of_rows)), strict=True))


def _bent(x: Tensor, matrix: Tensor, cap: float) -> Tensor:
    """s = sigmoid(2 z / cap) of the logits z = x @ matrix.T; tanh(z / cap) is 2 s - 1."""
    if x.dtype == torch.bfloat16:
        return F.linear(x, matrix).float().mul_(2 / cap).sigmoid_()
    return sigmoids(x * (2 / cap), matrix)


def _to_gradient(
    bent: Tensor, columns: Tensor, weights: Tensor, scales: Tensor, *, cap: float
) -> Tensor:
    """The weighted loss of some rows; what `_bent` gave becomes d loss / d z / scales, in place.

    d loss / d z is weight * (softmax - one-hot) * (1 - tanh^2), the last of which is 4 s (1 - s).
    What is the same for a whole row goes into `scales`, (rows, 1), also in place: it is multiplied
    to a few channels instead of the vocabulary.
    """
    middle = bent.new_full((), 0.5) if cap <= MAX_CAP else bent.amax(dim=1, keepdim=True)
    of_targets = (bent.gather(1, columns) - middle) * (2 * cap)
    exponentials = torch.add(middle * (-2 * cap), bent, alpha=2 * cap).exp_()
    sums = exponentials.sum(dim=1, keepdim=True)
    if torch.compiler.is_compiling():  # what the compiler fuses
        places = torch.arange(bent.size(1), device=bent.device)
        exponentials = torch.where(places == columns, exponentials - sums, exponentials)
    else:
        exponentials.scatter_(1, columns, exponentials.gather(1, columns) - sums)
    torch.addcmul(bent, bent, bent, value=-1, out=bent).mul_(exponentials)
    torch.div(4 * weights, sums, out=scales)
    return ((sums.log() - of_targets) * weights).sum()
