"""A cache of keys and values with one slot per sequence, each with its own length.

B batch (slots of a forward pass)  T time  S cached positions  H heads  K kv heads  D head dim
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPTConfig, check_context
from nanochat.kernels.attention import attend_causally

CAPACITY_STEP = 128  # positions: growing copies the cache, so it is not done per token


class KVCache:
    """Keys and values of each layer, (num_slots, capacity, K, D); grows up to the context.

    Per slot and position the heads are contiguous, so that a new token is one copy.
    """

    def __init__(
        self, config: GPTConfig, num_slots: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.windows = config, config.windows
        self.lengths = [0] * num_slots
        shape = num_slots, 0, config.n_kv_head, config.head_dim
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        # Forward passes run on the first so many slots: their batch is a view.
        self.num_active = num_slots
        # (B,) int64, or None. With it, positions come from the tensor and not from `lengths`, and
        # attention runs over the whole capacity: the same work whatever the lengths, as a CUDA
        # graph needs it. The caller reserves the room.
        self.static_starts: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Positions per slot that are allocated."""
        return self.keys[0].size(1)

    def reserve(self, num_new: int) -> None:
        """Allocate for more tokens in each active slot. Raises UserError past the context."""
        self._end = max(self.lengths[: self.num_active]) + num_new
        check_context(self._end, self.config.sequence_len)
        self._grow_to(self._end)

    def positions(self, num_new: int) -> Tensor:
        """(B, T) int64 positions of the next tokens; prepares the cache to take them.

        Raises UserError when they exceed the model's context.
        """
        lengths, starts = self.lengths[: self.num_active], self.static_starts
        if starts is None:
            self.reserve(num_new)
            starts = torch.tensor(lengths, device=self.keys[0].device)
            is_level = min(lengths) == max(lengths)
            needs_mask = not is_level or (num_new > 1 and lengths[0] > 0)
        else:
            lengths, self._end, needs_mask = [0], self.capacity, True
        positions = starts[:, None] + torch.arange(num_new, device=starts.device)
        slots = torch.arange(self.num_active, device=starts.device)[:, None]
        self._flat_indices = (slots * self.capacity + positions).flatten()
        # Layers share a mask if they share a window.
        self._views = {
            window: self._view(window, min(lengths), positions if needs_mask else None)
            for window in set(self.windows)
        }
        return positions

    def _view(
        self, window: int | None, shortest: int, positions: Tensor | None
    ) -> tuple[int, Tensor | None]:
        """The first key that any query sees, and a mask (B, 1, T, S) of what each sees from there.

        Without positions there is no mask: single tokens of rows of equal length see everything.
        """
        first = 0 if window is None else max(0, shortest + 1 - window)
        if positions is None:
            return first, None
        keys = torch.arange(first, self._end, device=positions.device)
        queries = positions[:, :, None]
        is_seen = keys <= queries
        if window is not None and window < self._end:
            is_seen &= keys > queries - window
        return first, is_seen[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, K, T, D); attention of q (B, H, T, D) over all stored positions."""
        window = self.windows[layer]
        first, is_seen = self._views[window]
        keys = self._append(self.keys[layer], k, first)
        values = self._append(self.values[layer], v, first)
        if is_seen is None and q.size(2) > 1:  # every row starts here: plain causal attention
            return attend_causally(q, k, v, window)
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=is_seen, enable_gqa=q.size(1) != k.size(1)
        )

    def _append(self, store: Tensor, new: Tensor, first: int) -> Tensor:
        """Write (B, K, T, D); returns (B, K, S, D), all of the slots from position `first` on."""
        tokens = new.transpose(1, 2).flatten(0, 1).to(store.dtype)
        store.view(-1, *store.shape[2:]).index_copy_(0, self._flat_indices, tokens)
        return store[: self.num_active, first : self._end].transpose(1, 2)

    def advance(self, counts: Sequence[int]) -> None:
        """Add to the lengths of the active slots; positions behind a length are padding."""
        for slot, count in enumerate(counts):
            self.lengths[slot] += count

    def copy_slot(
        self,
        source: int,
        target: int,
        source_cache: "KVCache | None" = None,
        length: int | None = None,
    ) -> None:
        """Overwrite a slot with one of this or another cache, up to a length."""
        other = source_cache or self
        length = other.lengths[source] if length is None else length
        self._grow_to(length)
        pairs = zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True)
        for store, other_store in pairs:
            store[target, :length] = other_store[source, :length]
        self.lengths[target] = length

    def free_slots(self, slots: Sequence[int], occupants: list[Any]) -> list[tuple[int, int]]:
        """Remove occupants (`occupants[i]` is in slot i), filling each gap with the last one.

        slots: ascending. Returns the (source, target) slots of each move, in order.
        """
        moves = []
        for slot in reversed(slots):  # from the end, so that what moves is never itself removed
            last = len(occupants) - 1
            if slot != last:
                self.copy_slot(last, slot)
                occupants[slot] = occupants[last]
                moves.append((last, slot))
            occupants.pop()
        return moves

    def _grow_to(self, needed: int) -> None:
        if needed <= self.capacity:
            return
        # At least doubling: the copies then cost O(1) per token.
        steps = -(-max(needed, 2 * self.capacity) // CAPACITY_STEP)
        extra = min(steps * CAPACITY_STEP, self.config.sequence_len) - self.capacity
        # Zeros: masked values are multiplied by 0, and uninitialized memory may hold NaN.
        self.keys = [F.pad(store, (0, 0, 0, 0, 0, extra)) for store in self.keys]
        self.values = [F.pad(store, (0, 0, 0, 0, 0, extra)) for store in self.values]
