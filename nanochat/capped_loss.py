"""Cross-entropy of soft-capped logits, without the logits standing whole where that matters.

The plain way reads and writes the (N, V) logits some twenty times, which on a CPU takes longer
than the matmuls. Here they are worked on in place, a cache-sized part at a time, and small ones
are kept for the backward pass while large ones are computed again.

N targets  C channels  V vocab
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

KEEP_BYTES = 2**30  # up to this many bytes of logits are kept for the backward pass
GROUP_ELEMENTS = 2**26  # else this many logits at a time: 256 MB, enough rows for a fast matmul
CACHE_ELEMENTS = 2**18  # 1 MB, the L2 cache of a core: 2**22 was a fifth slower at V = 32,768


def capped_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """-log softmax(cap * tanh(z / cap))[target] with z = x @ weight.T; (N,) float32, in nats.

    x: (N, C) in the compute dtype.  weight: (V, C) float32.  targets: (N,) int64, -1 gives 0.
    Capping and softmax are done in float32.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain way by itself
        return plain_cross_entropy(x, weight, targets, cap)
    if x.device.type == "cpu" and bool((targets < 0).any()):  # on a GPU asking would make it wait
        wanted = (targets >= 0).nonzero().squeeze(1)
        losses = _CappedCrossEntropy.apply(x[wanted], weight, targets[wanted], cap)
        return losses.new_zeros(targets.shape).index_put((wanted,), losses)
    losses = _CappedCrossEntropy.apply(x, weight, targets, cap)
    return losses


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """cap * tanh(logits / cap) in float32; Gemma 2, arXiv 2408.00118."""
    capped = logits.float() / cap
    if torch.is_grad_enabled():
        return cap * capped.tanh()
    return capped.tanh_().mul_(cap)  # fresh memory costs more than the arithmetic


def plain_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """The same as `capped_cross_entropy`, in the obvious way."""
    logits = soft_cap(F.linear(x, weight.to(x.dtype)), cap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


class _CappedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        num_logits = x.size(0) * weight.size(0)
        needs_gradient = any(ctx.needs_input_grad)
        is_kept = needs_gradient and 4 * num_logits <= KEEP_BYTES
        ctx.cap, ctx.num_rows = cap, _rows(x, weight, num_logits if is_kept else GROUP_ELEMENTS)
        matrix = weight.to(x.dtype)
        log_sums = x.new_empty(x.size(0), dtype=torch.float32)
        picked = torch.empty_like(log_sums)
        kept = []
        columns = targets.clamp(min=0)[:, None]
        for rows in _groups(x.size(0), ctx.num_rows):
            tanhs = _tanhs(x[rows], matrix, cap)
            for part, sums in _parts(tanhs, log_sums[rows]):
                sums.copy_(part.mul(cap).logsumexp(dim=1))
            picked[rows] = tanhs.gather(1, columns[rows]).squeeze(1).mul_(cap)
            if is_kept:
                kept.append(tanhs)
        ctx.save_for_backward(x, weight, targets, log_sums, *kept)
        return (log_sums - picked).masked_fill_(targets < 0, 0.0)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, targets, log_sums, *kept = ctx.saved_tensors
        gradient = upstream[0].float().masked_fill(targets < 0, 0.0)
        matrix = weight.to(x.dtype)
        of_x = torch.empty_like(x)
        of_weight = torch.zeros_like(weight)
        columns = targets.clamp(min=0)
        for rows in _groups(x.size(0), ctx.num_rows):
            tanhs = kept[0] if kept else _tanhs(x[rows], matrix, ctx.cap)
            for part, *of_part in _parts(tanhs, log_sums[rows], gradient[rows], columns[rows]):
                _to_gradient(part, *of_part, cap=ctx.cap)
            of_logits = tanhs.to(x.dtype)
            of_x[rows] = of_logits @ matrix
            if x.dtype == weight.dtype:
                of_weight.addmm_(of_logits.T, x[rows])
            else:
                of_weight += of_logits.T @ x[rows]
        return of_x, of_weight, None, None


def _rows(x: Tensor, weight: Tensor, num_logits: int) -> int:
    return max(1, min(x.size(0), num_logits // weight.size(0)))


def _groups(num_rows: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, num_rows, size)]


def _tanhs(x: Tensor, matrix: Tensor, cap: float) -> Tensor:
    """tanh(z / cap), (rows, V) float32."""
    tanhs = (x @ matrix.T).float()
    for (part,) in _parts(tanhs):
        part.div_(cap).tanh_()
    return tanhs


def _parts(tanhs: Tensor, *of_rows: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of rows that fit into a CPU's cache together; on a GPU everything at once."""
    if tanhs.device.type != "cpu" or not tanhs.numel():
        return [(tanhs, *of_rows)]
    num_rows = max(1, CACHE_ELEMENTS // tanhs.size(1))
    return list(zip(*(tensor.split(num_rows) for tensor in (tanhs, *of_rows)), strict=True))


def _to_gradient(
    tanhs: Tensor, log_sums: Tensor, gradient: Tensor, columns: Tensor, *, cap: float
) -> None:
    """tanh(z / cap) becomes d loss / d z, in place: (softmax - one-hot) (1 - tanh^2) upstream."""
    of_capped = (tanhs * cap).sub_(log_sums[:, None]).exp_().mul_(gradient[:, None])
    of_capped.scatter_add_(1, columns[:, None], -gradient[:, None])
    torch.addcmul(of_capped, tanhs.square_(), of_capped, value=-1, out=tanhs)
