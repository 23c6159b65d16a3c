"""Rotary embeddings, arXiv 2104.09864, on the two halves of a head, rotated by minus theta.

B batch  T time  H heads  D head dim
"""

from typing import Any

import torch
from torch import Tensor, nn

CosSin = tuple[Tensor, Tensor]  # tables at the positions of a batch, (B, 1, T, D / 2) each


class Rotary(nn.Module):
    """The tables of cosines and sines."""

    cos: Tensor
    sin: Tensor

    def __init__(self, sequence_len: int, head_dim: int, base: float, share: float = 1.0) -> None:
        """share: of the channels of a head those that are rotated."""
        super().__init__()
        self.base, self.share = base, share
        shape = sequence_len, head_dim // 2
        # Not persistent: a checkpoint holds weights only, tables are computed.
        self.register_buffer("cos", torch.empty(shape), persistent=False)
        self.register_buffer("sin", torch.empty(shape), persistent=False)

    def init_tables(self) -> None:
        """Fill cos and sin, (sequence_len, D / 2) float32, one row per position."""
        length, half = self.cos.shape
        # On the CPU and in this order of operations: the bits are those of stock engines.
        steps = torch.arange(0, 2 * half, 2, dtype=torch.float32, device="cpu")
        num_rotated = round(half * self.share)
        frequencies = 1.0 / self.base ** (steps / max(2 * num_rotated, 2))
        frequencies[num_rotated:] = 0.0
        positions = torch.arange(length, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, frequencies)
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def at(self, positions: Tensor) -> CosSin:
        """cos and sin at positions (B, T) or (T,)."""
        return self.cos[positions].unsqueeze(-3), self.sin[positions].unsqueeze(-3)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) with the rotary embedding of its positions."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        rotated: Tensor = _Rotated.apply(x, cos, sin)
        return rotated
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


class _Rotated(torch.autograd.Function):
    """The same in a third of the passes over memory; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(upstream[0], cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    y = torch.empty_like(x)  # in the layout of x
    (first, second), (left, right) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=-1)
    return y
