"""RMSNorm without weights, arXiv 1910.07467."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension."""
    is_slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if is_slow and not torch.compiler.is_compiling():
        y: Tensor = _RMSNorm.apply(x, eps)
        return y
    return F.rms_norm(x, (x.size(-1),), eps=eps)


class _RMSNorm(torch.autograd.Function):
    """By torch's kernel of weight normalization: 2 passes over memory instead of more than 20.

    torch has no kernel of RMSNorm for CPUs, and converts the whole tensor to float32 and back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        rows, width = x.reshape(-1, x.size(-1)), x.size(-1)
        # The kernel's factor is bfloat16, which holds powers of two exactly.
        factor = 2.0 ** round(math.log2(width) / 2)
        factors, ctx.rest = rows.new_full((len(rows), 1), factor), width**0.5 / factor
        y, norms = torch._weight_norm_interface(rows, factors, 0)
        # It has no eps: where that is not lost in rounding, autograd's way.
        ctx.is_plain = not bool((norms.square() > 2**10 * width * eps).all())
        if ctx.is_plain:
            ctx.eps = eps
            ctx.save_for_backward(x)
            return F.rms_norm(x, (width,), eps=eps)
        ctx.save_for_backward(rows, factors, norms)
        return (y if ctx.rest == 1.0 else y.mul_(ctx.rest)).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        gradient = upstream[0]
        if ctx.is_plain:
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                y = F.rms_norm(x, (x.size(-1),), eps=ctx.eps)
            return torch.autograd.grad(y, x, gradient)[0], None
        grad_rows, _ = torch.ops.aten._weight_norm_interface_backward(
            gradient.reshape(ctx.saved_tensors[0].shape), *ctx.saved_tensors, 0
        )
        return grad_rows.mul_(ctx.rest).view(gradient.shape), None
