"""Logits of sequences that share a prefix, such as the choices of a question, in one pass.

A row is a prefix and its continuations; each of these sees the prefix and itself, so that the
prefix is computed once. Rows are concatenated without padding. Only attention pads them: causal
over the prefixes, then with a mask for the continuations.

B rows  N tokens of all rows  S positions  P longest prefix  C longest continuations of a row
H heads  K kv heads  D head dim  V vocab
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.errors import check_context
from nanochat.gpt import GPT, GPTConfig
from nanochat.kernels.attention import attend_causally, attend_masked

Row = Sequence[Sequence[int]]
"""The tokens of a prefix, then those of each of its continuations."""


@torch.inference_mode()
def logits_at(model: GPT, rows: Sequence[Row], positions: Tensor) -> Tensor:
    """Logits (S, V) float32 at positions (S,) int64 of the N tokens of all rows.

    Rows of similar lengths need least padding. Raises UserError past the model's context.
    """
    device = model.embedding.weight.device
    tokens = torch.tensor([token for row in rows for part in row for token in part])
    attention = SharedPrefixAttention(rows, model.config, device)
    check_context(attention.longest, model.config.sequence_len)
    at = positions.to(device)[None]
    logits: Tensor = model(tokens[None].to(device), kv_cache=attention, logits_at=at)
    return logits[0]


class SharedPrefixAttention:
    """Attention within rows that are concatenated; an `AttentionCache` that keeps nothing."""

    def __init__(self, rows: Sequence[Row], config: GPTConfig, device: torch.device) -> None:
        prefixes = torch.tensor([len(row[0]) for row in rows])
        lengths = torch.tensor([len(part) for row in rows for part in row])
        sizes = torch.tensor([sum(map(len, row)) for row in rows])
        self.num_rows, self.windows = len(rows), config.windows
        self.prefix_width = int(prefixes.max())
        width = self.prefix_width + int((sizes - prefixes).max())
        row = torch.arange(len(rows)).repeat_interleave(sizes)  # of each token, (N,)
        place = torch.arange(len(row)) - (sizes.cumsum(0) - sizes)[row]  # in its row
        # 0 for the prefix, then 1, 2, ...; the place where each part begins.
        numbers = torch.tensor([i for row in rows for i in range(len(row))])
        part = numbers.repeat_interleave(lengths)
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        after_prefix = prefixes[row] * (part > 0)
        positions = torch.arange(len(row)) - starts + after_prefix
        self.longest = int(positions.max()) + 1
        # Where each token is in a padded row, and which token is in each place of it.
        self._places = row * width + torch.where(part > 0, place - prefixes[row], 0)
        self._places += torch.where(part > 0, self.prefix_width, place)
        tokens = torch.zeros(len(rows) * width, dtype=torch.int64)  # padding reads the first
        tokens[self._places] = torch.arange(len(row))
        self._masks = self._continuation_masks(part, positions, width, device)
        self._places, self._tokens = self._places.to(device), tokens.to(device)
        self._positions = positions[None].to(device)
        # The token before each, -1 if none is: before a continuation, the prefix's last.
        before = torch.arange(len(row)) - 1
        begins = (positions == after_prefix) & (part > 0)
        first_of_row = (sizes.cumsum(0) - sizes)[row]
        before = torch.where(begins, first_of_row + after_prefix - 1, before)
        self._before = torch.where(positions > 0, before, -1).to(device)
        self._offset_heads = config.key_offset_heads

    def _continuation_masks(
        self, part: Tensor, positions: Tensor, width: int, device: torch.device
    ) -> dict[int | None, Tensor]:
        """For each window, what the continuations see: (B, 1, C, P + C)."""
        shape = self.num_rows, width
        padded_part = torch.full(shape, -1)  # padding sees only padding, and is seen by no other
        padded_part.view(-1)[self._places] = part
        padded_positions = torch.zeros(shape, dtype=torch.int64)
        padded_positions.view(-1)[self._places] = positions
        key_part, key_position = (x.to(device)[:, None] for x in (padded_part, padded_positions))
        query_part = key_part[:, 0, self.prefix_width :, None]
        query_position = key_position[:, 0, self.prefix_width :, None]
        is_own = (key_part == query_part) & (key_position <= query_position)
        is_seen = is_own | ((key_part == 0) & (query_part > 0))
        masks = {}
        for window in set(self.windows):
            near = is_seen if window is None else is_seen & (key_position > query_position - window)
            masks[window] = near[:, None]
        return masks

    def positions(self, _num_new: int) -> Tensor:
        """(1, N): a continuation's positions follow those of its prefix."""
        return self._positions

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention (1, H, N, D) of q (1, H, N, D) over k, v (1, K, N, D)."""
        window, width = self.windows[layer], self.prefix_width
        if heads := self._offset_heads:
            before = k[:, :heads, self._before].masked_fill((self._before < 0)[:, None], 0.0)
            k = torch.cat([before, k[:, heads:]], dim=1)
        q, k, v = self._padded(q), self._padded(k), self._padded(v)
        parts = []
        if width:
            parts = [attend_causally(q[:, :, :width], k[:, :, :width], v[:, :, :width], window)]
        if q.size(2) > width:
            parts.append(attend_masked(q[:, :, width:], k, v, self._masks[window]))
        y = torch.cat(parts, dim=2).transpose(1, 2).flatten(0, 1)[self._places]
        return y.transpose(0, 1)[None]

    def _padded(self, x: Tensor) -> Tensor:
        """(1, H, N, D) as (B, H, P + C, D)."""
        tokens = x[0].transpose(0, 1)[self._tokens]
        return tokens.view(self.num_rows, -1, *tokens.shape[1:]).transpose(1, 2)
