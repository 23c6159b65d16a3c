"""A cache of keys and values with a slot for each row, whose lengths may differ.

B batch (active rows)  T time  S kept positions  H heads  K kv heads  D head dim
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.errors import UserError
from nanochat.gpt import GPTConfig, attend_causally

CAPACITY_STEP = 128  # positions by which a cache grows


class KVCache:
    """Keys and values of rows 0 ... B-1, each with its own length; a forward sees a window of rows.

    The rows in use are kept together at the front, so that a batch is a slice and not a copy.
    """

    def __init__(
        self, config: GPTConfig, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config = config
        self.lengths = [0] * num_rows
        shape = num_rows, config.n_kv_head, 0, config.head_dim
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.window = slice(0, num_rows)

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.keys[0].size(2)

    def look_at(self, first: int, count: int) -> None:
        """The next forward passes are about rows first ... first + count - 1."""
        self.window = slice(first, first + count)

    def positions(self, num_new: int) -> Tensor:
        """(B, T) int64 positions of the next tokens; makes room for them.

        Raises UserError when they pass the end of the model's context.
        """
        lengths = self.lengths[self.window]
        needed, limit = max(lengths) + num_new, self.config.sequence_len
        if needed > limit:
            raise UserError(f"{needed} tokens are more than the model's context of {limit}")
        self._grow_to(needed)
        device = self.keys[0].device
        starts = torch.tensor(lengths, device=device)
        self._positions = starts[:, None] + torch.arange(num_new, device=device)
        self._visible = self._mask(lengths, num_new)
        return self._positions

    def _mask(self, lengths: list[int], num_new: int) -> Tensor | None:
        """(B, 1, T, S) True where a query may look; None where causal or full look will do."""
        is_level = min(lengths) == max(lengths)
        if is_level and (num_new == 1 or lengths[0] == 0):
            return None
        keys = torch.arange(max(lengths) + num_new, device=self._positions.device)
        return (keys <= self._positions[:, :, None])[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v (B, K, T, D), return attention of q (B, H, T, D) over all that is kept."""
        num_new, end = q.size(2), max(self.lengths[self.window]) + q.size(2)
        keys, values = self.keys[layer][self.window], self.values[layer][self.window]
        rows = torch.arange(keys.size(0), device=keys.device)[:, None]
        keys[rows, :, self._positions] = k.transpose(1, 2).to(keys.dtype)
        values[rows, :, self._positions] = v.transpose(1, 2).to(values.dtype)
        if self._visible is None and num_new > 1:
            return attend_causally(q, k, v)
        return F.scaled_dot_product_attention(
            q, keys[:, :, :end], values[:, :, :end], attn_mask=self._visible,
            enable_gqa=q.size(1) != k.size(1),
        )  # fmt: skip

    def advance(self, counts: Sequence[int]) -> None:
        """The rows of the window have taken in so many tokens each."""
        for row, count in zip(range(self.window.start, self.window.stop), counts, strict=True):
            self.lengths[row] += count

    def copy_row(self, source: int, target: int) -> None:
        """Make a row what another one is."""
        length = self.lengths[source]
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]
        self.lengths[target] = length

    def _grow_to(self, needed: int) -> None:
        if needed <= self.capacity:
            return
        steps = -(-max(needed, 2 * self.capacity) // CAPACITY_STEP)
        extra = min(steps * CAPACITY_STEP, self.config.sequence_len) - self.capacity
        self.keys = [F.pad(store, (0, 0, 0, extra)) for store in self.keys]
        self.values = [F.pad(store, (0, 0, 0, extra)) for store in self.values]
