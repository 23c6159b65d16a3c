"""Attention within documents that are joined to one row, so that no token is padding.

N tokens of all documents  H heads  K kv heads  D head dim
"""

from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.kernels.attention import attend_causally


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
    """Whether the kernel for joined documents exists: FlashAttention, which torch has for Ampere.

    AMD's devices are named cuda, too, but their kernels have other limits.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    fits = head_dim % 8 == 0 and head_dim <= 256 and dtype in (torch.bfloat16, torch.float16)
    return fits and torch.cuda.get_device_capability(device) >= (8, 0)


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Documents
) -> Tensor:
    """Causal attention (1, H, N, D) of q (1, H, N, D) over k, v (1, K, N, D) of its document."""
    if q.device.type != "cuda":  # the obvious way, which tests compare with
        ends = documents.starts.tolist()
        parts = [slice(*ends[i : i + 2]) for i in range(len(ends) - 1) if ends[i] < ends[i + 1]]
        found = [
            attend_causally(q[:, :, part], k[:, :, part], v[:, :, part], window) for part in parts
        ]
        return torch.cat(found, dim=2)
    rows = (x[0].transpose(0, 1) for x in (q, k, v))  # (N, heads, D)
    # The operator and not torch.nn.attention.varlen, which may choose cuDNN: it plans each shape
    # anew, for up to a third of a second.
    y = torch.ops.aten._flash_attention_forward(
        *rows, documents.starts, documents.starts, documents.longest, documents.longest,
        0.0, True, False, window_size_left=-1 if window is None else window - 1,
        window_size_right=0,
    )[0]  # fmt: skip
    return y.transpose(0, 1)[None]
