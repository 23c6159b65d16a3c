"""Attention within documents that are joined to one row, so that no token is padding.

N tokens of all documents  B batch  T time  M tokens with targets
C channels  H heads  K kv heads  D head dim
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanochat.kernels.attention import attend_causally

CPU_SIZES = 32  # sizes of products are multiples of it: oneDNN compiles code for each new size


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
    capability = torch.cuda.get_device_capability(device)
    # Gradients of wider heads need the shared memory of a data center's card.
    widest = 256 if capability[1] == 0 and capability[0] < 12 else 192
    fits = head_dim % 8 == 0 and head_dim <= widest and dtype in (torch.bfloat16, torch.float16)
    return fits and capability >= (8, 0)


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
    lengths = [n for n in documents.starts.diff().tolist() if n]
    longest = torch.tensor([_padded_length(n) for n in lengths])
    groups = list(zip(*(x.tolist() for x in longest.unique(return_counts=True)), strict=True))
    shapes = {
        heads: _padded_places(torch.tensor(lengths), longest, heads, documents)
        for heads in {q.size(1), k.size(1)}
    }
    rows = []
    for x in (q, k, v):
        sizes = [count * x.size(1) * length for length, count in groups]
        placed = _Placed.apply(x[0].transpose(0, 1).flatten(0, 1), shapes[x.size(1)], sum(sizes))
        rows.append([
            part.view(count, x.size(1), length, x.size(3))
            for (length, count), part in zip(groups, placed.split(sizes), strict=True)
        ])  # fmt: skip
    found = [
        attend_causally(queries, keys, values, window).flatten(0, 2)
        for queries, keys, values in zip(*rows, strict=True)
    ]
    y = _Taken.apply(torch.cat(found), shapes[q.size(1)])
    return y.view(-1, *q.shape[1::2]).transpose(0, 1)[None]


def _padded_length(length: int) -> int:
    """The next of 12, 16, 24, 32, 48, 64, ...: few, so that sizes of products recur."""
    power = max(16, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 else power


def _padded_places(
    lengths: Tensor, longest: Tensor, num_heads: int, documents: Documents
) -> Tensor:
    """(N * H,) of each token and head among the rows (documents, H, longest) of all groups."""
    order = longest.argsort(stable=True)
    starts = torch.empty_like(longest)  # of each document, for one head
    starts[order] = longest[order].cumsum(0) - longest[order]
    starts, longest = (x.repeat_interleave(lengths)[:, None] for x in (starts, longest))
    heads = torch.arange(num_heads)
    return (starts * num_heads + heads * longest + documents.positions[0, :, None]).flatten()


def places_of_targets(targets: Tensor) -> Tensor | None:
    """(M,) of (B * T) where something is predicted, and a few more; None for all of them.

    On other devices it is None: they would wait for M, and the compiler makes code for each M.
    """
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    has_target = targets.flatten() >= 0
    places = has_target.nonzero().squeeze(1)
    others = (~has_target).nonzero().squeeze(1)[: -len(places) % CPU_SIZES]
    places = torch.cat([places, others])
    return places if 0 < len(places) < targets.numel() else None


def taken(x: Tensor, places: Tensor) -> Tensor:
    """The tokens (1, M, C) of x (B, T, C) at different places (M,) in (B * T)."""
    rows: Tensor = _Taken.apply(x.flatten(0, 1), places)
    return rows[None]


class _Placed(torch.autograd.Function):
    """x (N, ...) at different `places` of `size` rows.

    Elsewhere is x[0], which takes no memory to be cleared; no other token attends to it, so that
    its gradient is zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(places)
        sources = places.new_zeros(size).index_copy_(0, places, torch.arange(len(places)))
        return x.index_select(0, sources)

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
