"""A cache of keys and values with one slot per sequence, each with its own length.

B batch (slots of a forward pass)  T time  S cached positions  H heads  K kv heads  D head dim
N tokens of all slots
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.errors import check_context
from nanochat.gpt import GPTConfig
from nanochat.kernels.attention import PackedRows, attend_causally, attend_masked, attend_packed

CAPACITY_STEP = 128  # positions: growing copies the cache, so it is not done per token


def on_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of numbers on a device; on a GPU it arrives in order, and the host does not wait."""
    is_gpu = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=is_gpu).to(device, non_blocking=is_gpu)


class KVCache:
    """Keys and values of each layer, (num_slots, capacity, K, D); grows up to the context.

    Per slot and position the heads are contiguous, so that a new token is one copy. The keys of the
    first `key_offset_heads` are stored one position later, where they are seen; at the first one
    they are zeros, and after the context they have one position more.
    """

    def __init__(
        self,
        config: GPTConfig,
        num_slots: int,
        device: torch.device,
        dtype: torch.dtype,
        can_pack: bool = False,
    ) -> None:
        """can_pack: whether attention reads rows of any length in place, `attend_packed`."""
        self.config, self.windows, self.can_pack = config, config.windows, can_pack
        self._extra = int(config.key_offset_heads > 0)  # positions after the last token
        self.lengths = [0] * num_slots
        shape = num_slots, 0, config.n_kv_head, config.head_dim
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        # Forward passes run on the first so many slots: their batch is a view.
        self.num_active = num_slots
        # (B,) int64, or None. With it, positions come from the tensor and not from `lengths`, and
        # shapes are the same whatever the lengths, as a CUDA graph needs it. The caller reserves
        # the room.
        self.static_starts: Tensor | None = None
        # Tokens of each active slot: a pass then takes (1, N), those of all slots one after the
        # other and none of padding. Set for each such pass.
        self.counts: Sequence[int] | None = None
        self._packed_rows: PackedRows | None = None

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
        if self.counts is not None:
            return self._packed_positions(torch.tensor(self.counts), torch.tensor(lengths))
        if starts is None:
            self.reserve(num_new)
            starts = on_device(lengths, self.keys[0].device)
            is_level = min(lengths) == max(lengths)
            needs_mask = not is_level or (num_new > 1 and lengths[0] > 0)
        else:
            lengths, self._end, needs_mask = [0], self.capacity, True
        positions = starts[:, None] + torch.arange(num_new, device=starts.device)
        slots = torch.arange(self.num_active, device=starts.device)[:, None]
        self._flat_indices = (slots * self.capacity + positions).flatten()
        self._packed_rows = None
        if self.can_pack and self.static_starts is not None:  # a token per slot, at any length
            ends = torch.arange(self.num_active + 1, dtype=torch.int32, device=starts.device)
            shape = ends, ends * self.capacity, (starts + 1).int(), 1, self.capacity
            self._packed_rows = PackedRows(*shape)
            return positions
        # Layers share a mask if they share a window.
        self._views = {
            window: self._view(window, min(lengths), positions if needs_mask else None)
            for window in set(self.windows)
        }
        return positions

    def _packed_positions(self, counts: Tensor, lengths: Tensor) -> Tensor:
        """(1, N): as above, for `counts`."""
        ends = counts + lengths
        check_context(int(ends.max()), self.config.sequence_len)
        self._grow_to(int(ends.max()))
        slots = torch.arange(len(counts))
        of_token, last = slots.repeat_interleave(counts), counts.cumsum(0)
        positions = torch.arange(len(of_token)) + (lengths - last + counts)[of_token]
        query_ends, key_starts = F.pad(last, (1, 0)), torch.arange(len(counts) + 1) * self.capacity
        per_row = torch.stack([query_ends, key_starts, F.pad(ends, (0, 1))]).int()
        per_token = torch.stack([positions, of_token * self.capacity + positions])
        device = self.keys[0].device
        if device.type == "cuda":
            per_row, per_token = per_row.pin_memory(), per_token.pin_memory()
        per_row, per_token = (x.to(device, non_blocking=True) for x in (per_row, per_token))
        longest = int(counts.max()), int(ends.max())
        self._packed_rows = PackedRows(per_row[0], per_row[1], per_row[2, :-1], *longest)
        self._flat_indices = per_token[1]
        return per_token[:1]

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
        window, rows = self.windows[layer], self._packed_rows
        if rows is not None:
            keys = self._store(self.keys[layer], k, self.config.key_offset_heads)
            values = self._store(self.values[layer], v)
            y = attend_packed(q.transpose(1, 2).flatten(0, 1), keys, values, rows, window)
            return y.view(q.size(0), q.size(2), *y.shape[1:]).transpose(1, 2)
        first, is_seen = self._views[window]
        self._store(self.keys[layer], k, self.config.key_offset_heads)
        self._store(self.values[layer], v)
        keys, values = (
            store[layer][: self.num_active, first : self._end].transpose(1, 2)
            for store in (self.keys, self.values)
        )
        if is_seen is None and q.size(2) > 1:  # every row starts here: plain causal attention
            return attend_causally(q, keys if self._extra else k, v, window)
        return attend_masked(q, keys, values, is_seen)

    @property
    def is_packed(self) -> bool:
        """Whether attention of the current pass reads rows in place."""
        return self._packed_rows is not None

    def attend_projections(
        self, layer: int, qkv: Tensor, cos_sin: tuple[Tensor, Tensor], eps: float, gated: Any
    ) -> Tensor:
        """As `attend` in two kernels, (N, H, D) of (N, H + 2 K, D) before rotary and norm.

        gated: the arguments of `rotate_norm_store` for value embeddings, or None.
        """
        from nanochat.kernels.decode_kernels import rotate_norm_store

        assert self._packed_rows is not None
        keys, values = (one[layer].flatten(0, 1) for one in (self.keys, self.values))
        later = self.config.key_offset_heads
        q = rotate_norm_store(qkv, *cos_sin, self._flat_indices, keys, values, eps, gated, later)
        return attend_packed(q, keys, values, self._packed_rows, self.windows[layer])

    def _store(self, store: Tensor, new: Tensor, later: int = 0) -> Tensor:
        """Write (B, K, T, D), the first `later` heads one position later.

        Returns (slots * capacity, K, D), every position of every slot.
        """
        tokens, flat = new.transpose(1, 2).flatten(0, 1).to(store.dtype), store.flatten(0, 1)
        if later:
            flat[:, :later].index_copy_(0, self._flat_indices + 1, tokens[:, :later])
        flat[:, later:].index_copy_(0, self._flat_indices, tokens[:, later:])
        return flat

    def advance(self, counts: Sequence[int]) -> None:
        """Add to the lengths of the active slots; positions behind a length are padding."""
        for slot, count in enumerate(counts):
            self.lengths[slot] += count

    def copy_slots(
        self,
        sources: Sequence[int],
        targets: Sequence[int],
        source_cache: "KVCache | None" = None,
        length: int | None = None,
    ) -> None:
        """Overwrite slots with those of this or another cache, up to a length."""
        other = source_cache or self
        lengths = [other.lengths[one] if length is None else length for one in sources]
        length = max(lengths)
        self._grow_to(length)
        length += self._extra
        rows, to = on_device([sources, targets], self.keys[0].device)
        pairs = zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True)
        for store, other_store in pairs:
            copies = other_store[:, :length].index_select(0, rows)
            store[:, :length].index_copy_(0, to, copies)
        for target, copied in zip(targets, lengths, strict=True):
            self.lengths[target] = copied

    def free_slots(self, slots: Sequence[int], occupants: list[Any]) -> list[tuple[int, int]]:
        """Remove occupants (`occupants[i]` is in slot i), filling each gap with the last one.

        slots: ascending. Returns the (source, target) slots of each move, in order.
        """
        moves = []
        for slot in reversed(slots):  # from the end, so that what moves is never itself removed
            last = len(occupants) - 1
            if slot != last:
                self.copy_slots([last], [slot])
                occupants[slot] = occupants[last]
                moves.append((last, slot))
            occupants.pop()
        return moves

    def _grow_to(self, needed: int) -> None:
        needed += self._extra
        if needed <= self.capacity:
            return
        # At least doubling: the copies then cost O(1) per token, and capacities are few.
        steps = -(-max(needed, 2 * self.capacity) // CAPACITY_STEP)
        most = self.config.sequence_len + self._extra
        extra = min(steps * CAPACITY_STEP, most) - self.capacity
        # Zeros: masked values are multiplied by 0, and uninitialized memory may hold NaN.
        self.keys = [F.pad(store, (0, 0, 0, 0, 0, extra)) for store in self.keys]
        self.values = [F.pad(store, (0, 0, 0, 0, 0, extra)) for store in self.values]
