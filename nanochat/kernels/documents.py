"""Attention within documents that are joined to one row, so that no token is padding.

N tokens of all documents  H heads  K kv heads  D head dim
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanochat.kernels.attention import attend_causally

GROUP = 8  # documents that are padded to the length of the longest of them, on a CPU


class Documents(NamedTuple):
    """Where the documents of a row begin; they cover it without gaps."""

    starts: Tensor  # int32: the first token of each document, then N, repeated for empty ones
    positions: Tensor  # (1, N) int64: of each token in its document
    longest: int  # at least the length of each document


def documents_of(lengths: list[int], num_starts: int) -> Documents:
    """On the CPU. num_starts: entries of `starts`, equal for all rows: fewer shapes to compile."""
    starts = torch.zeros(num_starts, dtype=torch.int32)
    ends = torch.tensor(lengths).cumsum(0)
    starts[1 : len(lengths) + 1], starts[len(lengths) + 1 :] = ends, ends[-1]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    longest = 1 << (max(lengths) - 1).bit_length()  # rounded, since it is a constant of the code
    return Documents(starts, positions, longest)


def can_join(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether joining pays: by FlashAttention, which torch has for Ampere and later, and on CPUs.

    AMD's devices are named cuda, too, but their kernels have other limits.
    """
    if device.type == "cpu":
        return True
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    fits = head_dim % 8 == 0 and head_dim <= 256 and dtype in (torch.bfloat16, torch.float16)
    return fits and torch.cuda.get_device_capability(device) >= (8, 0)


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Documents
) -> Tensor:
    """Causal attention (1, H, N, D) of q (1, H, N, D) over k, v (1, K, N, D) of its document."""
    if q.device.type != "cuda":
        return _attend_padded(q, k, v, window, documents)
    rows = (x[0].transpose(0, 1) for x in (q, k, v))  # (N, heads, D)
    # The operator and not torch.nn.attention.varlen, which may choose cuDNN: it plans each new
    # shape, for up to a third of a second.
    y = torch.ops.aten._flash_attention_forward(
        *rows, documents.starts, documents.starts, documents.longest, documents.longest,
        0.0, True, False, window_size_left=-1 if window is None else window - 1,
        window_size_right=0,
    )[0]  # fmt: skip
    return y.transpose(0, 1)[None]


def _attend_padded(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Documents
) -> Tensor:
    """The same with documents in padded rows: only attention computes the padding."""
    lengths: list[int] = [n for n in documents.starts.diff().tolist() if n]
    found, first = [], 0
    # Neighbors have similar lengths, since the loader sorts the rows of a step.
    for group in (lengths[i : i + GROUP] for i in range(0, len(lengths), GROUP)):
        tokens = slice(first, first := first + sum(group))
        longest, size = max(group), len(group) * max(group)
        starts = torch.arange(0, size, longest).repeat_interleave(torch.tensor(group))
        places = starts + documents.positions[0, tokens]  # of each token among the padded rows
        rows = [  # (N, H, D) to (documents, H, longest, D) and, below, back
            _Placed.apply(x[0, :, tokens].transpose(0, 1), places, size)
            .view(len(group), longest, x.size(1), x.size(3)).transpose(1, 2)
            for x in (q, k, v)
        ]  # fmt: skip
        y = attend_causally(rows[0], rows[1], rows[2], window)
        found.append(_Taken.apply(y.transpose(1, 2).flatten(0, 1), places))
    return torch.cat(found).transpose(0, 1)[None]


class _Placed(torch.autograd.Function):
    """x (N, ...) at `places` of `size` rows, zeros elsewhere.

    No two places are equal, so that the gradient is a copy; autograd would add, on one thread.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(size, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        return upstream[0].index_select(0, *ctx.saved_tensors), None, None


class _Taken(torch.autograd.Function):
    """The rows of x at `places`, the inverse of `_Placed`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = x.size(0)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (places,), gradient = ctx.saved_tensors, upstream[0]
        rows = gradient.new_zeros(ctx.size, *gradient.shape[1:])
        return rows.index_copy_(0, places, gradient), None
